"""Benchmarks: one script per question, all over the same cases and harness."""
