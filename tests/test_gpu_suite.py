"""bench/gpu_suite.sh, as far as it goes without a GPU: what is pure, and dry runs of what is not."""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.cases import Case  # noqa: E402
from bench.gpu import __main__ as gpu  # noqa: E402
from bench.gpu import bench as gpu_bench  # noqa: E402
from bench.gpu import build as gpu_build  # noqa: E402
from bench.gpu import device as gpu_device  # noqa: E402
from bench.gpu import layers as gpu_layers  # noqa: E402
from bench.gpu import limits as gpu_limits  # noqa: E402
from bench.gpu import model as gpu_model  # noqa: E402
from bench.gpu import others as gpu_others  # noqa: E402
from bench.gpu import peers as gpu_peers  # noqa: E402
from bench.gpu import programs as gpu_programs  # noqa: E402
from bench.gpu import report as gpu_report  # noqa: E402
from bench.gpu import rows as gpu_rows  # noqa: E402
from bench.gpu import sanitize as gpu_sanitize  # noqa: E402
from bench.gpu import small as gpu_small  # noqa: E402
from bench.gpu import smoke as gpu_smoke  # noqa: E402
from bench.gpu import steps as gpu_steps  # noqa: E402
from bench.gpu import tests as gpu_tests  # noqa: E402
from bench.gpu import timing as gpu_timing  # noqa: E402
from bench.gpu.budget import LEAST_ROUNDS, MOST_ROUNDS, Budget  # noqa: E402
from bench.gpu.cases import (  # noqa: E402
    MEASURED,
    PRECISIONS,
    SHAPES,
    GpuCase,
    dry_cases,
    gpu_cases,
    key_cases,
    smoke_cases,
)
from bench.gpu.floor import bytes_moved, floor, operations  # noqa: E402
from bench.gpu.part import NOT_REACHED, Section, run_logged  # noqa: E402
from bench.gpu.pytest_outcomes import OUTCOMES, summarize  # noqa: E402

LIMITS = {
    "copy": {"median": 1e12},
    "gemm_f16": {"median": 1e14},
    "gemm_f32": {"median": 1e13},
    "cluster_hop_2": {"median": 1e-6},
}


def emulated() -> dict[str, str]:
    extension = gpu_device.emulated_extension()
    if extension is None:
        pytest.skip("the extension whose GPU is emulated is not built: run `make emulated`")
    return os.environ | {gpu_device.EXTENSION: str(extension), "RNNFUSED_ISA": "scalar"}


def emulation() -> None:
    if not gpu_programs.emulation_library().exists():
        pytest.skip("the emulation is not built: run `make emulated`")


def suite(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "bench" / "gpu_suite.sh"), "--python", sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# ---- Arguments


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--sections", "tests,bake"], "--sections: expected some of build,"),
        (["--frob"], "expected an option (--help names them), got --frob"),
        (["--out"], "--out: expected a value, got none"),
        (["--rows", "some"], "--rows: expected key or all, got some"),
        (["--seconds", "soon"], "--seconds: expected a whole number, got soon"),
        (["--python", "no-such-python"], "--python: no-such-python was not found"),
    ],
)
def test_words_for_wrong_arguments(arguments: list[str], words: str) -> None:
    run = suite(*arguments)
    assert run.returncode == 2 and words in run.stderr


def test_help_names_every_option() -> None:
    help_text = suite("--help").stdout
    for option in ("--sections", "--rows", "--dry-run", "--out", "--python", "--seconds", "--commit"):
        assert option in help_text


def test_sections_have_modules(tmp_path: Path) -> None:
    assert [*gpu.MODULES][1:] == list(gpu_report.SECTIONS)
    arguments = ["bench", "--parts", str(tmp_path), "--dry-run"]
    options = gpu.parse(arguments)
    assert (options.section, options.parts, options.dry_run) == ("bench", tmp_path, True)
    assert options.rows == "key" and gpu.parse([*arguments, "--rows", "all"]).rows == "all"
    with pytest.raises(SystemExit):
        gpu.parse(["report", "--parts", str(tmp_path)])  # without --out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    run = suite("--sections", "limits", "--out", str(tmp_path))
    assert run.returncode == 2
    assert "torch finds no CUDA device" in run.stderr and "--dry-run needs none" in run.stderr


# ---- Rows and floors


def test_rows_that_say_most() -> None:
    rows = key_cases()
    assert len(rows) == len(set(rows)) == 24
    # However early the time is over there is something of each kind.
    for count, found in ((8, rows[:8]), (24, rows)):
        assert {r.case.mode for r in found} == {"inference", "training", "ragged", "stacked"}, count
        assert {"lstm", "gru"} <= {r.case.cell for r in found}
        assert {"bf16", "f32"} <= {r.precision for r in found}
    assert {r.case.cell for r in rows} == {"rnn", "lstm", "gru"}
    assert {r.precision for r in rows} == set(MEASURED)
    assert {r.case.hidden for r in rows} == {64, 256, 512, 768, 1024}
    assert {r.case.batch for r in rows} == {1, 16, 64}
    assert all((r.case.layers, r.case.directions) == (2, 2) for r in rows if r.case.mode == "stacked")


def test_every_row() -> None:
    rows = gpu_cases()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) and len(rows) > 200
    assert rows[: len(key_cases())] == key_cases()
    of_shapes = {(r.case.steps, r.case.batch, r.case.hidden) for r in rows}
    assert set(SHAPES) <= of_shapes
    assert {(r.case.cell, r.precision) for r in rows} == {
        (cell, precision) for cell in ("rnn", "lstm", "gru") for precision in MEASURED
    }
    assert {r.precision for r in dry_cases()} == set(MEASURED)


def test_smoke_covers_cells_and_precisions() -> None:
    every = {(cell, precision) for cell in ("rnn", "lstm", "gru") for precision in PRECISIONS}
    rows = smoke_cases()
    assert len({row.name for row in rows}) == len(rows) and all(row.case.trains for row in rows)
    assert set(PRECISIONS) == {"f16", "bf16", "tf32", "f32", "f64"}
    for small in (True, False):
        assert {(r.case.cell, r.precision) for r in rows if (r.case.hidden < 16) == small} == every


def test_operations_and_bytes() -> None:
    row = GpuCase(Case("inference", "lstm", steps=10, batch=4, hidden=8), "f16")
    assert operations(row.case) == 2 * 10 * 4 * (4 * 8) * (8 + 8)
    assert bytes_moved(row) == 2 * (10 * 4 * (8 + 8) + 4 * 8 * (8 + 8 + 2))
    training = GpuCase(Case("training", "lstm", steps=10, batch=4, hidden=8), "f32")
    assert operations(training.case) == 3 * operations(row.case)
    assert bytes_moved(training) == 2 * 2 * bytes_moved(row)
    stacked = Case("stacked", "gru", steps=5, batch=2, hidden=4, layers=2, bidirectional=True)
    weights = 2 * (12 * (4 + 4 + 2) + 12 * (8 + 4 + 2))
    assert bytes_moved(GpuCase(stacked, "f32")) == 4 * 2 * (10 * (4 + 8) + weights)


def test_floor() -> None:
    row = GpuCase(Case("training", "gru", steps=100, batch=4, hidden=8), "f16")
    found = floor(row, LIMITS)
    assert found["terms"]["operations"] == operations(row.case) / 1e14
    assert found["terms"]["bytes"] == bytes_moved(row) / 1e12
    assert found["terms"]["exchange"] == pytest.approx(200 * 1e-6)
    assert found["seconds"] == max(found["terms"]["operations"], found["terms"]["bytes"])
    assert found["by"] in ("operations", "bytes")
    assert floor(row, {})["seconds"] is None  # nothing was measured
    assert floor(row, {"copy": {"failed": "why"}})["seconds"] is None


def test_bounds_of_errors() -> None:
    for precision, of in PRECISIONS.items():
        assert gpu_rows.bound(precision, 0.0) == gpu_rows.FLOOR_ROUNDINGS * of.epsilon
        assert gpu_rows.bound(precision, 1e9) <= gpu_rows.TORCH_ERRORS * gpu_rows.SANE
    exact = torch.randn(5, dtype=torch.float64)
    nan = torch.full((5,), torch.nan)
    assert not gpu_rows.errors({"y": nan}, {"y": exact})["y"] <= 1e9  # NaN never passes


def test_sets_leave_the_cache() -> None:
    assert gpu_peers.sets_that_leave_cache(10e6, 50e6) == gpu_peers.MAX_SETS
    assert gpu_peers.sets_that_leave_cache(60e6, 50e6) == 2
    assert gpu_peers.sets_that_leave_cache(200e6, 50e6) == 1


def test_ratios_and_shares() -> None:
    row = GpuCase(Case("inference", "lstm", steps=10, batch=4, hidden=8), "f16")
    times = {"torch": {"median": 3e-3}, "rnnfused": {"median": 1e-3}}
    found = gpu_bench.judged({"name": row.name, "eager": times, "graph": {}}, row, LIMITS)
    assert found["eager_result"]["ratio"] == pytest.approx(3)
    assert found["eager_result"]["us_per_step"] == pytest.approx({"torch": 300, "rnnfused": 100})
    assert found["eager_result"]["share_of_floor"] == pytest.approx(floor(row, LIMITS)["seconds"] / 1e-3)
    assert found["eager_result"]["share_with_exchange"] == pytest.approx(10e-6 / 1e-3)
    assert "graph_result" not in found
    alone = gpu_bench.judged({"eager": {"torch": {"median": 1.0}}}, row, {})
    assert "ratio" not in alone["eager_result"] and "share_of_floor" not in alone["eager_result"]


def test_budget() -> None:
    now = 0.0
    budget = Budget(100, rows=50, clock=lambda: now)
    assert budget.allows_another() and budget.rounds() == MOST_ROUNDS
    for _ in range(3):
        budget.row_starts()
        now += 30
        budget.row_ended()
    assert budget.left() == 10 and not budget.allows_another()  # a row takes 30
    assert budget.rounds() == LEAST_ROUNDS
    now = 200.0
    assert not budget.allows_another() and budget.rounds() == LEAST_ROUNDS


# ---- What the tools print


def test_what_ptxas_says_of_spills() -> None:
    log = (
        "ptxas info    : Function properties for _Z4good\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Function properties for _Z3bad\n"
        "    64 bytes stack frame, 48 bytes spill stores, 52 bytes spill loads\n"
    )
    assert gpu_build.spills(log) == {"_Z3bad": 48}


def test_what_the_build_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1")
    found = gpu_build.settings("90a", 16, True, False)
    assert (found["RNNFUSED_CUDA_ARCHS"], found["MAX_JOBS"]) == ("90a-real", "16")
    assert found["RNNFUSED_ISAS"] == "scalar" and found["CMAKE_ARGS"] == "-DX=1 -DCMAKE_CUDA_FLAGS=-Xptxas=-v"
    dry = gpu_build.settings("90a", 2, False, True)
    assert dry["RNNFUSED_CUDA"] == "0" and "RNNFUSED_ISAS" not in dry
    commands = gpu_build._commands(found)
    assert any("build_ext" in c or "-DRNNFUSED_ISAS=scalar" in c for c in commands)


def test_the_build_and_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(name: str, arch: str, seconds: float) -> Path:
        assert arch == "90a" and seconds > 0
        if name == "limits":
            raise RuntimeError("limits.cu does not compile")
        return tmp_path

    monkeypatch.setattr(gpu_build, "compile_program", compiled)
    monkeypatch.setattr(gpu_build, "_commands", lambda environment: [["bash", "-c", "echo $MAX_JOBS"]])
    monkeypatch.delenv("MAX_JOBS", raising=False)
    section = Section("build", tmp_path, 20, False)
    (tmp_path / "device.json").write_text('{"arch": "90a", "cpus": 7}')
    assert gpu_build.run(section) == 1
    found = section.of("build")
    assert found["programs"] == {"limits": "limits.cu does not compile", "wrappers": "ok"}
    assert "failed" in found or any("stepwise" in line for line in found["config"])
    assert (found["kernels"], found["spills"]) == (0, {}) and len(found["config"]) > 1

    monkeypatch.setattr(gpu_build, "_commands", lambda environment: [["sleep", "60"]])
    assert gpu_build.run(Section("build", tmp_path, 1, False)) == 1
    late = {"build": section.of("build")}
    assert late["build"]["status"] is None
    assert gpu_report.line(late, "build").endswith(
        "failed: sleep 60 (no time left), limits; cut by time: the extension"
    )


MEMCHECK = """========= COMPUTE-SANITIZER
case 1: LSTM
========= Invalid __global__ read of size 4 bytes
=========     at void rnnfused::cuda::forward_step<...>(T3)+0x130
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Invalid __global__ read of size 4 bytes
=========     at cublas_kernel
=========         Host Frame: rnnfused::gpu::multiply() in rnnfused/_C.cpython-312-x86_64-linux-gnu.so
=========
========= ERROR SUMMARY: 2 errors
"""


def test_what_the_sanitizers_say() -> None:
    found = gpu_sanitize.parse(MEMCHECK)
    assert (found["errors"], found["reports_of_our_kernels"], found["cases"]) == (2, 1, 1)
    assert "forward_step" in found["first_report"]
    assert gpu_sanitize.verdict("memcheck", found | {"status": 9}, MEMCHECK, 1) == (
        "2 errors, 1 reports name our kernels"
    )
    clean = "cases: 8 of 8\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    found = gpu_sanitize.parse(clean) | {"status": 0}
    assert (found["errors"], found["cases"], found["cases_in_all"]) == (0, 8, 8)
    assert gpu_sanitize.verdict("racecheck", found, clean, 1) is None
    refused = gpu_sanitize.parse("Device not supported") | {"status": 1}
    words = gpu_sanitize.verdict("memcheck", refused, "Device not supported", 1)
    assert words is not None and "no summary" in words and "Device not supported" in words
    late = gpu_sanitize.parse("case 1: a\ncase 2: b\n") | {"status": None}
    assert gpu_sanitize.verdict("synccheck", late, "", 30) == "stopped after 30 s, 2 cases done"


def test_initcheck_may_find_what_others_read() -> None:
    output = (
        "cases: 8 of 8\n========= Uninitialized read\n=========  at cublas\n========= ERROR SUMMARY: 3 errors"
    )
    found = gpu_sanitize.parse(output) | {"status": gpu_sanitize.FOUND}
    assert found["errors"] == 3 and gpu_sanitize.verdict("initcheck", found, output, 1) is None


def test_sanitizer_commands() -> None:
    for tool in gpu_sanitize.TOOLS:
        assert ("shared" in gpu_sanitize.program(tool, 5)) == (tool in gpu_sanitize.OF_SHARED_MEMORY)
        line = " ".join(gpu_sanitize.command(tool, ["program"]))
        assert f"--tool {tool} --error-exitcode {gpu_sanitize.FOUND}" in line and line.endswith("program")
        assert ("kns=rnnfused" in line) == (tool != "initcheck")


FAKE_SANITIZER = """#!/bin/bash
case "$*" in
  *--kernel-regex*) echo "unrecognised option" && exit 1 ;;
  *initcheck*) sleep 60 ;;
esac
echo "case 1: LSTM"
echo "cases: 1 of 1"
echo "========= ERROR SUMMARY: 0 errors"
"""


def test_a_sanitizer_that_refuses_options_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(FAKE_SANITIZER)
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    section = Section("sanitizers", tmp_path / "parts", 3, False)
    section.parts.mkdir()
    assert gpu_sanitize.run(section) == 1
    found = section.of("sanitizers")
    assert (found["memcheck"]["filters"], found["memcheck"]["errors"]) == (False, 0)
    assert "failed" not in found["memcheck"] and "stopped after 3 s" in found["initcheck"]["failed"]


def outcomes_of(folder: Path, tests: str) -> Path:
    """Where the plugin has written what became of them."""
    (folder / "test_it.py").write_text(tests)
    outcomes = folder / "outcomes.jsonl"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.pytest_outcomes", str(folder)],
        cwd=ROOT,
        env=os.environ | {OUTCOMES: str(outcomes)},
        capture_output=True,
        check=False,
    )
    return outcomes


def test_outcomes_of_tests(tmp_path: Path) -> None:
    outcomes = outcomes_of(
        tmp_path,
        "import os, pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'words'\n"
        "@pytest.mark.skip('why')\ndef test_left_out(): pass\ndef test_dies(): os._exit(3)\n",
    )
    found = summarize(outcomes)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert "test_bad" in found["failures"][0]["test"] and "words" in found["failures"][0]["words"]
    assert len(found["running"]) == 1 and "test_dies" in found["running"][0]


def test_what_only_a_gpu_shows_is_tested_first(tmp_path: Path) -> None:
    outcomes = outcomes_of(
        tmp_path,
        "import pytest\ndef test_first(): pass\ndef test_second(): pass\n"
        "@pytest.mark.gpu\ndef test_third(): pass\n",
    )
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    started = [entry["test"].rpartition("::")[2] for entry in lines if entry["outcome"] == "started"]
    assert started == ["test_third", "test_first", "test_second"]


def test_a_command_that_does_not_end_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    status, output = run_logged(["bash", "-c", "echo begun; sleep 60 & wait"], 1)
    assert status is None and output == "begun\n" and "stopped after 1 s" in capfd.readouterr().out


# ---- Steps of the resident kernels

RESIDENT = "forward lstm bf16 H256 M1 N2 cluster W8 R32"


def test_kernels_have_the_names_of_their_machine_code() -> None:
    inside = "rnnfused::device::Lstm, rnnfused::BFloat16, 256, 1, 2, (rnnfused::cuda::Exchange)1, 8, 32"
    inside += ", (rnnfused::cuda::Products)0, (rnnfused::cuda::ForwardFault)0"
    full = f"void rnnfused::cuda::resident_forward<{inside}>(int)"
    assert (
        gpu_steps.kernel_of(full) == RESIDENT
        and RESIDENT in json.loads(gpu_model.NUMBERS.read_text())["kernels"]
    )
    rnn = "rnnfused::device::Rnn<rnnfused::device::TanhActivation>, float, 128, 1, 1"
    for split, held, dtype in ((0, 32, "tf32"), (1, 16, "f32")):
        more = f"(rnnfused::cuda::Exchange)0, 8, {held}, (rnnfused::cuda::Products){split}"
        found = gpu_steps.kernel_of(f"void resident_backward<{rnn}, {more}>")
        assert found == f"backward rnn_tanh {dtype} H128 M1 N1 block W8 R{held}"
    assert (
        gpu_steps.kernel_of("void rnnfused::cuda::forward_step<rnnfused::device::Lstm, float>(int)") is None
    )


def test_a_step_is_what_more_steps_add() -> None:
    found = gpu_steps.slopes([80e-6, 74e-6, 76e-6], [330e-6, 332e-6, 900e-6])
    assert found == pytest.approx({"step": 1e-6, "start": 12e-6})


def test_layers_whose_steps_are_timed() -> None:
    rows = gpu_steps.rows()
    assert len(set(rows)) == len(rows)
    assert {row.precision for row in rows} == {"bf16", "tf32", "f32"}
    assert not [row for row in rows if row.precision == "f32" and row.case.hidden > 256]


# ---- The report


def record(dry_run: bool) -> dict[str, Any]:
    row = GpuCase(Case("training", "gru", 128, 16, 768), "bf16")
    times = {"torch": {"median": 3e-3}, "rnnfused": {"median": 1e-3}, "autocast": {"median": 4e-3}}
    measured = gpu_bench.judged(row.as_dict() | {"name": row.name, "eager": times, "graph": times}, row, {})
    entry = {"unit": "s", "what": "", "median": 1.5e-6, "low": 1e-6, "high": 2e-6}
    found = {
        "dry_run": dry_run,
        "device": {"name": "NVIDIA H100 80GB HBM3", "commit": "abc123-dirty", "torch": "2.11"},
        "sections": [{"section": name, "result": "failed", "seconds": 12.0} for name in gpu_report.SECTIONS],
        "build": {"arch": "90a", "spills": {"k": 4}, "programs": {"limits": "ok", "wrappers": "no"}},
        "smoke": {
            "wrappers": gpu_smoke.of_wrappers("a ok\nb (float) differs: element 3: expected 1, got 2", 1),
            "layers": gpu_smoke.of_layers('{"name": "rnn f32", "failed": "y: error 1"}', None),
        },
        "limits": {
            "limits": {
                "launch": entry,
                "copy": {"unit": "bytes/s", "what": "", "failed": "no"},
                "l2_hop": {"unit": "s", "what": "", "failed": NOT_REACHED},
            },
            "occupancy": [
                {"cluster": 8, "shared_kib": 100, "clusters": 16},
                {"cluster": 16, "shared_kib": 200, "failed": "no"},
            ],
        },
        "steps": {
            "rows": [
                row.as_dict() | {"name": "a", "kernels": {RESIDENT: {"step": 7e-7, "start": 9e-6}}},
                row.as_dict() | {"name": "b", "failed": "RuntimeError: no"},
            ],
            "rows_in_all": 3,
        },
        "bench": {"rows": [measured, row.as_dict() | {"name": "w", "failed": "wrong"}], "not_reached": ["r"]},
        "tests": {
            "counts": {"passed": 2},
            "failures": [{"test": "test_x", "words": "boom\nmore"}],
            "running": ["test_y"],
            "stopped": "late",
        },
        "sanitizers": {
            "memcheck": {"errors": 1, "cases": 3, "cases_in_all": 9, "status": 9, "failed": "1 errors"},
            "racecheck": {"errors": 0, "cases": 9, "cases_in_all": 9, "status": 0},
        },
    }
    for section in found["sections"]:
        section["line"] = gpu_report.line(found, section["section"])
    return found


def test_name_of_the_file() -> None:
    assert gpu_report.file_name(record(False)["device"]) == "nvidia-h100-80gb-hbm3-abc123-dirty.json"
    assert gpu_device.safe_name("../ ") == "unknown"


def test_a_line_for_each_section() -> None:
    found = record(False)
    assert {s["section"]: s["line"] for s in found["sections"]} == {
        "build": "ran extension for 90a, 1 kernels spill registers, 2 programs; failed: wrappers;"
        " cut by time: nothing",
        "smoke": "ran 2 checks of wrappers, 1 layers; failed: b (float), rnn f32;"
        " cut by time: layers after 1",
        "limits": "ran 1 limits, 1 of 2 occupancies; failed: copy; cut by time: l2_hop",
        "steps": "ran 1 kernels in 2 layers; failed: b (RuntimeError: no); cut by time: 1 layers",
        "bench": "ran 2 rows; failed: w; cut by time: 1 rows",
        "tests": "ran 2 passed; failed: test_x; cut by time: what came after, 1 running",
        "sanitizers": "ran memcheck (1 errors in 3 layers), racecheck (0 errors in 9 layers);"
        " failed: memcheck; cut by time: memcheck",
    }
    assert gpu_report.line({"bench": {}}, "bench") == "ran nothing that it could tell of"
    late = {"build": {"arch": "90a", "failed": "cmake (no time left)", "status": None}}
    assert gpu_report.line(late, "build").endswith("failed: cmake (no time left); cut by time: the extension")
    none = {"sanitizers": {"failed": "compute-sanitizer was not found"}}
    assert "failed: compute-sanitizer was not found" in gpu_report.line(none, "sanitizers")
    well = {"smoke": {"wrappers": gpu_smoke.of_wrappers("a ok", 0)}}
    assert gpu_report.line(well, "smoke").endswith(
        "1 checks of wrappers, 0 layers; failed: nothing; cut by time: nothing"
    )


def test_tables() -> None:
    shown = gpu_report.tables(record(False))
    assert "1 errors in 3 layers" in shown and "launch 1.5 us" in shown and "copy -" in shown
    assert "FAILED test_x: boom" in shown and "FAILED b (float) differs: element 3" in shown
    assert "clusters of 8 at once: 100 KiB 16" in shown and "clusters of 16 at once: 200 KiB -" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("training gru")]
    assert "7.81/7.81 us/step, torch 3.00/3.00" in row and row.endswith("autocast 4.00/4.00")
    assert len(shown) < 4000  # a log's end holds it
    dry = gpu_report.tables(record(True))
    assert "no result" in dry and "3.00" not in dry and "1.5" not in dry


def test_a_dry_run_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path / "results")
    assert gpu_report.save(record(True), tmp_path / "out") == [
        tmp_path / "out" / "nvidia-h100-80gb-hbm3-abc123-dirty.json"
    ]
    assert not (tmp_path / "results").exists()
    with pytest.raises(ValueError, match="a dry run is never written"):
        gpu_report.save(record(True), tmp_path / "results")
    assert (tmp_path / "results").joinpath("x").parent in {
        path.parent for path in gpu_report.save(record(False), tmp_path / "out")
    }


# ---- Times, with a device that is played


def test_times_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    def work() -> None:
        clock[0] += 4.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert gpu_timing.elapsed("cuda", work, 5) == pytest.approx(4e-3)
    assert gpu_timing.repeats_for(4e-3, 0.02) == 5 and gpu_timing.repeats_for(1.0, 0.02) == 1
    assert gpu_timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_a_graph_is_captured_after_a_run_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            said.append("wait")

    @contextlib.contextmanager
    def during(name: str) -> Iterator[None]:
        said.append(name)
        yield
        said.append(f"end of {name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: during("stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", during)
    assert gpu_timing.capture(lambda: said.append("run")) == ("graph", None)
    assert said == [
        *("wait", "stream", "run", "end of stream", "wait"),
        *("graph", "run", "end of graph"),
    ]


def test_names_that_torch_has() -> None:
    for name in (
        "Event",
        "Stream",
        "CUDAGraph",
        "graph",
        "stream",
        "current_stream",
        "get_device_properties",
    ):
        assert hasattr(torch.cuda, name)
    assert gpu_device._arch(9, 0) == "90a" and gpu_device._arch(8, 6) == "86"


# ---- Dry runs


def test_small_cases_cover_what_they_say() -> None:
    cases = gpu_small.small_cases()
    assert len({case.name for case in cases}) == len(cases)
    first = cases[: len(cases) // 4]
    assert {case.dtype for case in first} == set(gpu_small.DTYPES)
    assert {case.projection > 0 for case in first} == {False, True}
    assert {case.varied for case in first} == {False, True}
    for attribute in ("ragged", "bidirectional", "recompute", "shares"):
        assert len({getattr(case, attribute) for case in cases}) == 2
    assert {case.hidden for case in cases} == {5, 8, gpu_small.WIDE, gpu_small.CLUSTER}


def test_small_cases_run_every_source_with_shared_memory() -> None:
    # Small.shares says which layers' kernels they are: a further source needs a case.
    folder = ROOT / "csrc" / "cuda"
    sources = {path.name for path in folder.glob("*.cuh") if "shared_memory<" in path.read_text()}
    found = {name for name in sources if not name.startswith(("ptx", "varied", "resident"))}
    assert "varied.cuh" in sources and not found


@pytest.mark.parametrize("only", [[], ["shared"]], ids=["all", "shared"])
def test_the_sanitizers_script_on_the_emulated_gpu(only: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu.small", "cpu", "5", *only],
        cwd=ROOT,
        env=emulated(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "case 1: " in run.stdout and run.stdout.splitlines()[-1].startswith("cases: ")
    named = [line for line in run.stdout.splitlines() if line.startswith("case ")]
    words = ("with options", f"H{gpu_small.WIDE}", f"H{gpu_small.CLUSTER}")
    assert not only or all(any(word in line for word in words) for line in named)


def test_limits_kernels_on_the_emulated_gpu(tmp_path: Path) -> None:
    emulation()
    kernels = gpu_limits.Kernels(gpu_programs.compile_program("limits", None, tmp_path), "cpu", blocks=3)
    kernels.nothing(2)
    for rounds in (1, 4):
        kernels.grid_barriers(rounds, checks=True)
        kernels.check("grid", [rounds] * 3)
        kernels.counter_barriers(rounds, checks=True)
        kernels.check("counter", [rounds] * 3)
        kernels.l2_hops(rounds)
        kernels.check("l2", [rounds] * 2)
        for cluster in gpu_limits.CLUSTERS:
            kernels.cluster_barriers(cluster, rounds, checks=True)
            kernels.check("cluster", [rounds] * cluster)
            kernels.passed.zero_()
            kernels.cluster_hops(cluster, rounds)
            kernels.check("hops", [2 * rounds, *[0] * (cluster - 2), 2 * rounds - 1])
            for sent in gpu_limits.EXCHANGED if cluster <= 4 else (512,):
                kernels.cluster_exchanges(cluster, rounds, sent)
                kernels.check("exchanges", [rounds] * cluster)
    with pytest.raises(RuntimeError, match="expected the counters"):
        kernels.check("wrong", [7])
    with pytest.raises(RuntimeError, match="cluster"):
        kernels.cluster_barriers(32, 1)  # more than any device takes
    found = gpu_limits.occupancy(kernels)
    assert {(row["cluster"], row["shared_kib"]) for row in found} == {
        (cluster, kib) for cluster in (2, 4, 8, 12, 16) for kib in (20, 50, 100, 150, 200)
    }
    assert all("clusters" in row for row in found)  # as many as the schedule says


@pytest.mark.long
def test_programs_compile_for_a_gpu(tmp_path: Path) -> None:
    if gpu_programs.find_nvcc() is None:
        pytest.skip("nvcc was not found")
    library = gpu_programs.compile_program("limits", "90a", tmp_path)
    wrappers = gpu_programs.compile_program("wrappers", "90a", tmp_path)
    with pytest.raises(RuntimeError, match="does not compile"):
        gpu_programs.compile_program("limits", "1", tmp_path)
    with pytest.raises(RuntimeError, match="not compiled in"):
        gpu_programs.compile_program("limits", "90a", tmp_path, seconds=0.1)
    if torch.cuda.is_available():
        return
    # Without a device both say so, and the program that checks wrappers has not checked any.
    kernels = gpu_limits.Kernels(library, "cpu", blocks=3)
    assert all("NVIDIA driver" in row["failed"] for row in gpu_limits.occupancy(kernels))
    status, output = run_logged([str(wrappers)], 60)
    assert status == 77 and "no device: " in output
    assert "no device" in gpu_smoke.of_wrappers(output, status)["failed"]


@pytest.mark.long
def test_a_kernel_for_one_block_on_a_multiprocessor(tmp_path: Path) -> None:
    nvcc = gpu_programs.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found")
    source, target = ROOT / "bench" / "gpu" / "limits.cu", tmp_path / "limits.o"
    command = [nvcc, "-std=c++17", "-O3", "-I", str(ROOT / "csrc"), "-Xptxas=-v", "-c", str(source)]
    status, log = run_logged([*command, "-gencode=arch=compute_90a,code=sm_90a", "-o", str(target)], 120)
    (registers,) = re.findall(r"'_ZN\S*4keep\S*' for 'sm_90a'\n(?:.*\n)+?.*Used (\d+) registers", log)
    # Two blocks would need twice as many as there are; none is in memory.
    assert status == 0 and 2 * 256 * int(registers) > 65536 and gpu_build.spills(log) == {}


def test_a_program_is_compiled_anew_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, compiler = tmp_path / "limits.cu", tmp_path / "compiler"
    compiler.write_text('#!/bin/bash\necho "$@" >"${@: -1}"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(gpu_programs, "FOLDER", tmp_path / "programs")
    monkeypatch.setattr(gpu_programs, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_programs, "EMULATION", tmp_path / "emulation")
    first = gpu_programs.built("limits", None)  # nothing that it is made of: any is new enough
    assert str(ROOT / "bench" / "gpu" / "limits.cu") in first.read_text()
    for age, again in ((-100, False), (100, True)):
        source = tmp_path / "csrc" / "cuda" / "ptx.cuh"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("")
        os.utime(source, (first.stat().st_mtime + age,) * 2)
        first.write_text("kept")
        stamp = source.stat().st_mtime - age
        os.utime(first, (stamp, stamp))
        assert (gpu_programs.built("limits", None).read_text() != "kept") == again


def test_wrappers_on_the_emulated_gpu(tmp_path: Path) -> None:
    emulation()
    program = gpu_programs.compile_program("wrappers", None, tmp_path)
    status, output = run_logged([str(program)], 120)
    found = gpu_smoke.of_wrappers(output, status)
    assert "failed" not in found and found["ok"] > 60 and not found["skipped"]
    status, output = run_logged([str(program), "trap", "cp_async"], 60)
    names = [line.split(" ")[0] for line in output.splitlines()]
    assert status == 0 and sorted(names) == [*("cp_async",) * 3, "trap", "wrappers:"]


# Instead of the project's checks: what goes wrong in each way, and what comes after it.
BAD_CHECKS = """
#pragma once
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include "%s/wrappers/checks.h"
namespace rnnfused::cuda {
inline WrapperChecks wrapper_checks() {
  return {{"good", "", 80, [] { return std::string(); }},
          {"wrong", "float", 80, [] { return std::string("element 3: expected 1, got 2"); }},
          {"throws", "", 80, []() -> std::string { throw std::runtime_error("no launch"); }},
          {"dies", "", 80, []() -> std::string { std::abort(); }},
          {"hangs", "", 80, []() -> std::string { raise(SIGALRM); return ""; }},
          {"new", "", 100, [] { return std::string(); }},
          {"last", "", 90, [] { return std::string(); }}};
}
}  // namespace rnnfused::cuda
"""


def test_checks_that_go_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulation()
    folder = gpu_programs.EMULATION
    (tmp_path / "all.cuh").write_text(BAD_CHECKS % folder)
    (tmp_path / "main.cu").write_text((folder / "wrappers" / "main.cu").read_text())
    program = gpu_programs.Program(tmp_path / "main.cu")
    monkeypatch.setitem(gpu_programs.PROGRAMS, "wrappers", program)
    status, output = run_logged([str(gpu_programs.compile_program("wrappers", None, tmp_path))], 60)
    assert status == 1 and output.splitlines() == [
        "good ok",
        "wrong (float) differs: element 3: expected 1, got 2",
        "throws differs: no launch",
        "dies differs: ended by signal 6",
        "hangs differs: no end after 60 s",
        "new skipped: needs sm_100",
        "last ok",
        "wrappers: 4 differ",
    ]
    found = gpu_smoke.of_wrappers(output, status)
    assert (found["ok"], len(found["differ"]), len(found["skipped"])) == (2, 4, 1)
    assert found["failed"] == "4 differ"
    assert "stopped" in gpu_smoke.of_wrappers("good ok", None)["failed"]
    assert "exit status 0" in gpu_smoke.of_wrappers("", 0)["failed"]  # nothing ran


def test_layers_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import rnnfused

    monkeypatch.setattr(gpu_layers, "precision_of_products", lambda row: None)  # it is the process's
    row = GpuCase(Case("training", "gru", 5, 3, 7), "f32")
    right = gpu_layers.check(row, "cpu")
    assert set(right) == {"y", "x", *(f"{w}_l0" for w in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))}
    assert gpu_layers.wrong(right) == []

    def broken(module: torch.nn.Module) -> torch.nn.Module:
        module.weight_hh_l0.data[0, 0] += 1e-3
        return module

    monkeypatch.setattr(rnnfused, "convert", broken)
    assert any(words.startswith("y: error ") for words in gpu_layers.wrong(gpu_layers.check(row, "cpu")))
    assert gpu_layers.wrong({"y": (float("nan"), 1.0)})
    said = gpu_smoke.of_layers('{"name": "a"}\nlibrary: hello\n{"name": "b", "failed": "y"}', 1)
    assert said["failed"] == "1 of 2 wrong" and len(said["not_reached"]) == len(smoke_cases())
    assert "exit status 0" in gpu_smoke.of_layers('{"name": "a"}', 0)["failed"]  # not all were reached


@pytest.mark.long
def test_tests_that_all_skip_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = tmp_path / "test_nothing.py"
    test.write_text("import pytest\n@pytest.mark.skip('why')\ndef test_it(): pass\n")
    monkeypatch.setattr(gpu_tests, "SELECTED", [str(test)])
    section = Section("tests", tmp_path / "parts", 60, False)
    section.parts.mkdir()
    (section.parts / "device.json").write_text('{"cpus": 1}')
    assert gpu_tests.run(section) == 1 and section.of("tests")["counts"]["skipped"] == 1
    test.write_text("import time\ndef test_it(): pass\ndef test_slow(): time.sleep(60)\n")
    late = Section("tests", section.parts, 8, False)
    assert gpu_tests.run(late) == 1
    found = late.of("tests")
    assert found["counts"]["passed"] == 1 and "stopped" in found and "test_slow" in found["running"][0]


@pytest.mark.parametrize("mode", ["inference", "training", "ragged", "stacked"])
def test_rows_on_the_emulated_gpu(mode: str) -> None:
    options = {"layers": 2, "bidirectional": True} if mode == "stacked" else {}
    process = gpu_bench.Process("cpu", 1e6, emulated())
    try:
        row = GpuCase(Case(mode, "gru", 3, 2, 8, **options), "f32")
        found = process.ask(60, row=row.as_dict(), rounds=1, seconds=0.0)
        assert "failed" not in found, found
        assert set(found["eager"]) == {"torch", "rnnfused"}
        assert set(found["not_captured"]) == set(found["eager"]) and found["left_out"] == {}
        broken = row.as_dict() | {"precision": "f99"}
        assert "KeyError" in process.ask(60, row=broken, rounds=1, seconds=0.0)["failed"]
    finally:
        process.close()
    with pytest.raises(RuntimeError, match="process"):
        process.ask(5, row=row.as_dict(), rounds=1, seconds=0.0)


class PlayedGraph:
    """Replays by calling again; `forgets` is a result that it does not write."""

    def __init__(self, run: Callable[[], dict[str, torch.Tensor]], forgets: str) -> None:
        self.run, self.results, self.forgets = run, {k: v.clone() for k, v in run().items()}, forgets

    def replay(self) -> None:
        fresh = self.run()
        with torch.inference_mode():
            for name, value in fresh.items():
                if name != self.forgets:
                    self.results[name].copy_(value)


@pytest.mark.parametrize("forgets", ["nothing", "y", "weight_hh_l0"])
def test_replays_are_checked(forgets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Any) -> Any:
        graph = PlayedGraph(run, forgets)
        return graph, graph.results

    monkeypatch.setattr(gpu_rows, "precision_of_products", lambda row: None)  # it is the process's
    monkeypatch.setattr(gpu_rows, "can_capture", lambda device: True)
    monkeypatch.setattr(gpu_rows, "capture", capture)
    row = GpuCase(Case("training", "gru", 3, 2, 8), "f32")
    found = gpu_rows.measure(row, "cpu", 1e6, rounds=2, seconds=0.0)
    assert "failed" not in found and set(found["eager"]) == {"torch", "rnnfused"}
    if forgets == "nothing":
        assert set(found["graph"]) == {"torch", "rnnfused"} and not found["not_captured"]
    else:
        assert not found["graph"] and f"{forgets} differs" in found["not_captured"]["rnnfused"]


def test_torch_is_measured_where_rnnfused_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import rnnfused

    monkeypatch.setattr(gpu_rows, "precision_of_products", lambda row: None)
    row = GpuCase(Case("inference", "lstm", 3, 2, 8), "f32")

    def broken(module: torch.nn.Module) -> torch.nn.Module:
        for parameter in module.parameters():
            parameter.data.mul_(1.01)
        return module

    def raises(module: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("out of order")

    for convert, words in (
        (broken, "rnnfused: y is wrong"),
        (raises, "rnnfused: RuntimeError: out of order"),
    ):
        monkeypatch.setattr(rnnfused, "convert", convert)
        found = gpu_rows.measure(row, "cpu", 1e6, rounds=1, seconds=0.0)
        assert words in found["failed"] and set(found["eager"]) == {"torch"}


# ---- Other packages, played by torch in their documented layouts


class PlayedHaste(torch.nn.Module):
    """haste_pytorch.LSTM: kernel [I, 4 H], gates i, g, f, o."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.zeros(features, 4 * hidden))
        self.recurrent_kernel = torch.nn.Parameter(torch.zeros(hidden, 4 * hidden))
        self.bias = torch.nn.Parameter(torch.zeros(4 * hidden))

    def from_native_weights(self, *weights: torch.Tensor) -> None:
        w_ih, w_hh, b_ih, b_hh = weights
        theirs = (w_ih.t(), w_hh.t(), b_ih + b_hh)
        for parameter, value in zip(self.parameters(), theirs, strict=True):
            i, f, g, o = value.detach().chunk(4, -1)
            parameter.data.copy_(torch.cat([i, g, f, o], -1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        hidden = len(self.recurrent_kernel)
        h = c = x.new_zeros(x.shape[1], hidden)
        outputs = []
        for row in x:
            i, g, f, o = (row @ self.kernel + h @ self.recurrent_kernel + self.bias).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), None


def played_flashrnn(wx: torch.Tensor, r: torch.Tensor, b: torch.Tensor, function: str, dtype: str) -> Any:
    """flashrnn.flashrnn: wx [B, T, 4, N, H], r [4, N, H, H before], b [4, N, H]; states [2, B, T, N, H]."""
    assert function == "lstm" and getattr(torch, dtype) == wx.dtype and wx.is_contiguous()
    h = c = wx.new_zeros(wx.shape[0], *wx.shape[3:])
    states = []
    for step in wx.unbind(1):
        raw = step + torch.einsum("gndp,bnp->bgnd", r, h) + b
        i, f, z, o = raw.unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(torch.stack([h, c]))
    return torch.stack(states, 2), None


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("package", ["haste_pytorch", "flashrnn"])
def test_other_packages_are_peers(package: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    played = types.ModuleType(package)
    played.__spec__ = importlib.machinery.ModuleSpec(package, None)
    played.LSTM, played.flashrnn = PlayedHaste, played_flashrnn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, played)
    monkeypatch.setattr(gpu_rows, "precision_of_products", lambda row: None)  # it is the process's
    name, precision = {"haste_pytorch": ("haste", "f32"), "flashrnn": ("flashrnn", "bf16")}[package]
    row = GpuCase(Case(mode, "lstm", 3, 2, 8), precision)
    assert name in gpu_others.others_of(row)
    assert name not in gpu_others.others_of(GpuCase(Case("ragged", "lstm", 3, 2, 8), precision))
    found = gpu_rows.measure(row, "cpu", 1e6, rounds=1, seconds=0.0)
    assert "failed" not in found and name not in found["left_out"]
    assert name in found["eager"] and found["errors"][name] < 0.05

    monkeypatch.setattr(played, "LSTM", None)
    monkeypatch.setattr(played, "flashrnn", None)
    found = gpu_rows.measure(row, "cpu", 1e6, rounds=1, seconds=0.0)
    assert "failed" not in found and "TypeError" in found["left_out"][name]
    assert name not in found["eager"] and {"torch", "rnnfused"} <= set(found["eager"])


def test_autocast_is_a_peer_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rows, "precision_of_products", lambda row: None)
    for mode in ("inference", "training", "ragged", "stacked"):
        options = {"layers": 2, "bidirectional": True} if mode == "stacked" else {}
        row = GpuCase(Case(mode, "gru", 3, 2, 8, **options), "bf16")  # LSTMs ask more of a processor
        assert list(gpu_others.others_of(row)) == ["autocast"]
        found = gpu_rows.measure(row, "cpu", 1e6, rounds=1, seconds=0.0)
        assert set(found["eager"]) == {"torch", "rnnfused", "autocast"}, found["left_out"]
    assert not gpu_others.others_of(GpuCase(Case("training", "lstm", 3, 2, 8), "f32"))


def test_a_process_that_does_not_answer() -> None:
    row = dry_cases()[0]
    process = gpu_bench.Process("cpu", 1e6, dict(os.environ))
    try:
        with pytest.raises(RuntimeError, match="no answer in"):
            process.ask(0.01, row=row.as_dict(), rounds=1, seconds=0.0)
    finally:
        process.close()


def test_the_suite_goes_on_after_a_failure(tmp_path: Path) -> None:
    emulated()
    run = suite(
        "--dry-run", "--sections", "limits,sanitizers", "--out", str(tmp_path), CXX="no-such-compiler"
    )
    (written,) = tmp_path.glob("dry-run-*.json")
    found = json.loads(written.read_text())
    assert run.returncode == 1 and "no-such-compiler was not found" in run.stdout
    assert [(s["section"], s["result"]) for s in found["sections"]] == [
        ("limits", "failed"),
        ("sanitizers", "ok"),
    ]
    assert found["dry_run"] is True and set(found) == {
        *("dry_run", "device", "sections"),
        *gpu_report.SECTIONS,
    }
    assert found["limits"]["limits"]["copy"]["unit"] == "bytes/s"  # what it found before it failed
    assert not list((ROOT / "bench" / "results").glob("dry-run*"))


FAKE_PYTHON = """#!/bin/bash
section=$3
[ "$section" = report ] && exit 0
echo "$section $7 $9" >>"$(dirname "$0")/calls"
[ "$section" = build ] && sleep 2
[ "$section" != limits ]
"""


def test_sections_in_order_each_with_its_time(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    command = [str(ROOT / "bench" / "gpu_suite.sh"), "--python", str(python), "--out", str(tmp_path)]
    run = subprocess.run([*command, "--rows", "all"], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "limits: failed" in run.stdout and "sanitizers: ok" in run.stdout
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [name for name, _, _ in calls] == ["device", *gpu_report.SECTIONS]
    assert {rows for _, _, rows in calls} == {"all"}
    seconds = {name: int(given) for name, given, _ in calls}
    shares = {"build": 45, "smoke": 20, "limits": 30, "steps": 15}
    shares |= {"bench": 70, "tests": 55, "sanitizers": 35}
    # All of them leave the report its time; what a section did not take is the next one's.
    assert sum(shares.values()) == 270 and seconds["build"] == 2 * (45 * 252 // 270)
    assert all(seconds[name] >= share * 252 // 270 for name, share in shares.items())
    assert seconds["smoke"] > 20 + 30 and 245 <= seconds["sanitizers"] <= 250
    (tmp_path / "calls").unlink()
    alone = subprocess.run([*command, "--sections", "bench"], capture_output=True, text=True, check=False)
    assert alone.returncode == 0
    assert re.search(r"^bench 25[012] key$", (tmp_path / "calls").read_text(), re.MULTILINE)


def test_a_suite_without_time(tmp_path: Path) -> None:
    run = suite(
        "--dry-run", "--sections", "bench", "--out", str(tmp_path), "--seconds", "1", "--commit", "c1"
    )
    assert run.returncode == 1 and "bench: no time" in run.stdout
    assert json.loads((tmp_path / "dry-run-c1.json").read_text())["bench"] == {}
    assert Section("x", tmp_path, 1, True).of("nothing") == {}
