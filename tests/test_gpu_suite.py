"""bench/gpu_suite.sh, as far as it goes without a GPU: what is pure, and dry runs of what is not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
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
from bench.gpu import limits as gpu_limits  # noqa: E402
from bench.gpu import peers as gpu_peers  # noqa: E402
from bench.gpu import report as gpu_report  # noqa: E402
from bench.gpu import rows as gpu_rows  # noqa: E402
from bench.gpu import sanitize as gpu_sanitize  # noqa: E402
from bench.gpu import small as gpu_small  # noqa: E402
from bench.gpu import timing as gpu_timing  # noqa: E402
from bench.gpu.budget import LEAST_ROUNDS, MOST_ROUNDS, Budget  # noqa: E402
from bench.gpu.cases import PRECISIONS, SHAPES, GpuCase, dry_cases, gpu_cases  # noqa: E402
from bench.gpu.floor import bytes_moved, floor, operations  # noqa: E402
from bench.gpu.part import Section, run_logged  # noqa: E402
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
        (["--seconds", "soon"], "--seconds: expected a whole number, got soon"),
        (["--python", "no-such-python"], "--python: no-such-python was not found"),
    ],
)
def test_words_for_wrong_arguments(arguments: list[str], words: str) -> None:
    run = suite(*arguments)
    assert run.returncode == 2 and words in run.stderr


def test_help_names_every_option() -> None:
    help_text = suite("--help").stdout
    for option in ("--sections", "--dry-run", "--out", "--python", "--seconds", "--commit"):
        assert option in help_text


def test_sections_have_modules(tmp_path: Path) -> None:
    assert [*gpu.MODULES][1:] == list(gpu_report.SECTIONS)
    options = gpu.parse(["bench", "--parts", str(tmp_path), "--dry-run"])
    assert (options.section, options.parts, options.dry_run) == ("bench", tmp_path, True)
    with pytest.raises(SystemExit):
        gpu.parse(["report", "--parts", str(tmp_path)])  # without --out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    run = suite("--sections", "limits", "--out", str(tmp_path))
    assert run.returncode == 2
    assert "torch finds no CUDA device" in run.stderr and "--dry-run needs none" in run.stderr


# ---- Rows and floors


def test_rows() -> None:
    rows = gpu_cases()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {r.case.cell for r in rows} == {"rnn", "lstm", "gru"}
    assert {r.case.mode for r in rows} == {"inference", "training", "ragged", "stacked"}
    # However early the time is over: all sizes, of one cell at least.
    assert {(r.case.steps, r.case.batch, r.case.hidden) for r in rows[: len(SHAPES)]} == set(SHAPES)
    assert {r.precision for r in dry_cases()} == set(PRECISIONS)


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


def test_outcomes_of_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'words'\n"
        "@pytest.mark.skip('why')\ndef test_left_out(): pass\ndef test_dies(): os._exit(3)\n"
    )
    outcomes = tmp_path / "outcomes.jsonl"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.pytest_outcomes", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {OUTCOMES: str(outcomes)},
        capture_output=True,
        check=False,
    )
    found = summarize(outcomes)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert "test_bad" in found["failures"][0]["test"] and "words" in found["failures"][0]["words"]
    assert len(found["running"]) == 1 and "test_dies" in found["running"][0]


def test_a_command_that_does_not_end_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    status, output = run_logged(["bash", "-c", "echo begun; sleep 60 & wait"], 1)
    assert status is None and output == "begun\n" and "stopped after 1 s" in capfd.readouterr().out


# ---- The report


def record(dry_run: bool) -> dict[str, Any]:
    row = GpuCase(Case("training", "gru", 128, 16, 768), "bf16")
    times = {"torch": {"median": 3e-3}, "rnnfused": {"median": 1e-3}}
    measured = gpu_bench.judged(row.as_dict() | {"name": row.name, "eager": times, "graph": times}, row, {})
    entry = {"unit": "s", "what": "", "median": 1.5e-6, "low": 1e-6, "high": 2e-6}
    return {
        "dry_run": dry_run,
        "device": {"name": "NVIDIA H100 80GB HBM3", "commit": "abc123-dirty", "torch": "2.11"},
        "sections": [{"section": name, "result": "failed", "seconds": 12.0} for name in gpu_report.SECTIONS],
        "build": {"arch": "90a", "spills": {"k": 4}},
        "tests": {"gpu": {"counts": {"passed": 2}, "failures": [{"test": "test_x", "words": "boom\nmore"}]}},
        "sanitizers": {"memcheck": {"errors": 1, "cases": 3, "failed": "1 errors"}},
        "limits": {"limits": {"launch": entry, "copy": {"unit": "bytes/s", "what": "", "failed": "no"}}},
        "bench": {"rows": [measured, row.as_dict() | {"name": "w", "failed": "wrong"}], "not_reached": ["r"]},
    }


def test_name_of_the_file() -> None:
    assert gpu_report.file_name(record(False)["device"]) == "nvidia-h100-80gb-hbm3-abc123-dirty.json"
    assert gpu_device.safe_name("../ ") == "unknown"


def test_tables() -> None:
    shown = gpu_report.tables(record(False))
    assert "1 in 3" in shown and "launch 1.5 us" in shown and "copy -" in shown
    assert "FAILED test_x: boom" in shown and "2 rows, 1 failed, 1 not reached" in shown
    measured = record(False)
    del measured["bench"]["rows"][1]
    assert "training  gru  bf16      3.00/3.00" in gpu_report.tables(measured)
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
    for attribute in ("ragged", "bidirectional", "recompute", "hidden"):
        assert len({getattr(case, attribute) for case in cases}) == 2


def test_the_sanitizers_script_on_the_emulated_gpu() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu.small", "cpu", "5"],
        cwd=ROOT,
        env=emulated(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "case 1: " in run.stdout and run.stdout.splitlines()[-1].startswith("cases: ")


def test_limits_kernels_on_the_emulated_gpu(tmp_path: Path) -> None:
    if not gpu_limits.emulation_library().exists():
        pytest.skip("the emulation is not built: run `make emulated`")
    kernels = gpu_limits.Kernels(gpu_limits.build(tmp_path, None), "cpu", blocks=3)
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
            if cluster <= 8:
                kernels.cluster_exchanges(cluster, rounds)
                kernels.check("exchanges", [rounds] * cluster)
    with pytest.raises(RuntimeError, match="expected the counters"):
        kernels.check("wrong", [7])
    with pytest.raises(RuntimeError, match="cluster"):
        kernels.cluster_barriers(32, 1)  # more than any device takes


def test_limits_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    if gpu_build.find_nvcc() is None:
        pytest.skip("nvcc was not found")
    assert gpu_limits.build(tmp_path, "90a").exists()
    with pytest.raises(RuntimeError, match="does not compile"):
        gpu_limits.build(tmp_path, "1")


@pytest.mark.parametrize("mode", ["inference", "training", "ragged", "stacked"])
def test_rows_on_the_emulated_gpu(mode: str) -> None:
    options = {"layers": 2, "bidirectional": True} if mode == "stacked" else {}
    process = gpu_bench.Process("cpu", 1e6, emulated())
    try:
        row = GpuCase(Case(mode, "gru", 3, 2, 8, **options), "f32")
        found = process.ask(60, row=row.as_dict(), rounds=1, seconds=0.0)
        assert "failed" not in found, found
        assert set(found["eager"]) == {"torch", "rnnfused"} and set(found["not_captured"]) == set(
            found["eager"]
        )
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


def test_a_suite_without_time(tmp_path: Path) -> None:
    run = suite(
        "--dry-run", "--sections", "bench", "--out", str(tmp_path), "--seconds", "1", "--commit", "c1"
    )
    assert run.returncode == 1 and "bench: no time" in run.stdout
    assert json.loads((tmp_path / "dry-run-c1.json").read_text())["bench"] == {}
    assert Section("x", tmp_path, 1, True).of("nothing") == {}
