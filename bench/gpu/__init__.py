"""What bench/gpu_suite.sh runs: one module per section, and what sections share."""
