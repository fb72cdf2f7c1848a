"""Threads as users have them: many callers, forked children, restricted OpenMP, few processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

# Every script runs a layer that is large enough to be shared out, and prints a checksum of its bits.
LAYER = """
import hashlib, os, torch, rnnfused
torch.manual_seed(0)
layer, x = rnnfused.LSTM(256, 256), torch.randn(20, 8, 256)
def bits(layer=layer):
    y, (h, c) = layer(x)
    (y.sum() + c.sum()).backward()
    tensors = [y.detach(), *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
"""


def script(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", LAYER + code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


@pytest.fixture(scope="module")
def serial() -> str:
    return script("torch.set_num_threads(1); print(bits())")


@pytest.mark.parametrize("threads", [2, 4, 16])
def test_more_threads_give_the_same_bits(serial: str, threads: int) -> None:
    assert script(f"torch.set_num_threads({threads}); print(bits())") == serial


def test_many_callers_at_once(serial: str) -> None:
    code = """
import copy
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(2)
with ThreadPoolExecutor(8) as callers:
    found = list(callers.map(bits, [copy.deepcopy(layer) for _ in range(24)]))
print(*set(found))
"""
    assert script(code) == serial


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is found through /proc")
def test_inside_a_parallel_region(serial: str) -> None:
    # As an operator of torch runs that calls a layer for each of its pieces: on one thread each, no deadlock.
    code = """
import copy, ctypes
torch.set_num_threads(2)
bits()
with open("/proc/self/maps") as maps:
    gomp = ctypes.CDLL(next(line.split()[-1] for line in maps if "libgomp" in line))
found = []
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(bits(copy.deepcopy(layer))))
gomp.GOMP_parallel(body, None, 2, 0)
print(len(found), *set(found))
"""
    assert script(code) == f"2 {serial}"


def test_a_forked_child_runs(serial: str) -> None:
    # The parent's threads have run before: in the child they are gone, and nothing may wait for them.
    code = """
assert bits()
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    with torch.no_grad():
        layer(x)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bits())
"""
    assert script(code) == f"0 {serial}"


@pytest.mark.parametrize("name, value", [("OMP_MAX_ACTIVE_LEVELS", "0"), ("OMP_THREAD_LIMIT", "1")])
def test_openmp_that_allows_no_second_thread(serial: str, name: str, value: str) -> None:
    assert script("torch.set_num_threads(2); print(bits())", **{name: value}) == serial


def test_openmp_that_may_give_fewer_threads(serial: str) -> None:
    assert script("torch.set_num_threads(2); print(bits())", OMP_DYNAMIC="true") == serial


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen on this system")
def test_a_process_pinned_to_one_processor(serial: str) -> None:
    code = """
bits()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(2)
print(rnnfused._C.describe_plan("lstm", 20, 8, 256, 256, 256, 1, 1, torch.float32), bits())
"""
    assert script(code) == f"('serial', 1, 1, 1, 1) {serial}"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
@pytest.mark.parametrize(
    "name, value",
    [
        ("OMP_PROC_BIND", "true"),
        ("OMP_PROC_BIND", "close"),
        ("OMP_PLACES", "cores"),
        ("OMP_PLACES", "threads"),
    ],
)
def test_threads_that_are_bound_to_processors(serial: str, name: str, value: str) -> None:
    code = """
torch.set_num_threads(2)
bits()
print(rnnfused._C.describe_plan("lstm", 20, 8, 256, 256, 256, 1, 1, torch.float32), bits())
"""
    assert script(code, **{name: value}) == f"('partition', 1, 2, 1, 1) {serial}"


def test_threads_that_are_bound_to_one_place(serial: str) -> None:
    place = f"{{{min(os.sched_getaffinity(0))}}}"
    code = """
torch.set_num_threads(2)
print(rnnfused._C.describe_plan("lstm", 20, 8, 256, 256, 256, 1, 1, torch.float32), bits())
"""
    assert script(code, OMP_PLACES=place) == f"('serial', 1, 1, 1, 1) {serial}"


def test_denormal_numbers_are_on_all_threads_what_they_are_to_the_caller() -> None:
    code = """
layer = rnnfused.RNN(256, 256, nonlinearity="relu", bias=False)
with torch.no_grad():
    for weight in layer.parameters():
        weight *= 1e-3
x = torch.randn(20, 8, 256) * 1e-35
def small():
    return hashlib.sha256(layer(x)[0].detach().numpy().tobytes()).hexdigest()
torch.set_num_threads(2)
with_denormals = small()  # the other thread is there before the mode is changed
torch.set_flush_denormal(True)
on_two = small()
torch.set_num_threads(1)
print(on_two == small(), on_two == with_denormals)
torch.set_flush_denormal(False)
torch.set_num_threads(2)
print(small() == with_denormals)
"""
    assert script(code).split() == ["True", "False", "True"]


@pytest.mark.long
def test_beside_busy_processes(serial: str) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        code = "torch.set_num_threads(2); print(*{bits() for _ in range(20)})"
        assert script(code) == serial
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.long
def test_four_processes_at_once(serial: str) -> None:
    code = "torch.set_num_threads(2); print(*{bits() for _ in range(10)})"
    with ThreadPoolExecutor(4) as callers:
        assert set(callers.map(script, [code] * 4)) == {serial}


@pytest.fixture
def quota() -> Iterator[Path]:
    """A group of processes that may use one and a half processors, of either version of Linux's cgroups."""
    root = Path("/sys/fs/cgroup")
    is_first = (root / "cpu").is_dir()
    group = (root / "cpu" if is_first else root) / f"rnnfused-{os.getpid()}"
    try:
        group.mkdir()
        if is_first:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("150000")
        else:
            (group / "cpu.max").write_text("150000 100000")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no group with a quota can be made here: {error}")
    yield group / "cgroup.procs"
    group.rmdir()


def test_a_quota_of_one_and_a_half_processors(serial: str, quota: Path) -> None:
    code = f"""
open({str(quota)!r}, "w").write(str(os.getpid()))
torch.set_num_threads(2)
print(*{{bits() for _ in range(60)}})
"""
    assert script(code) == serial


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped on this system")
def test_a_process_that_is_put_to_sleep(serial: str) -> None:
    """As by a laptop's lid: at any moment, for longer than any wait."""
    code = """
import signal, subprocess, sys
torch.set_num_threads(2)
bits()
wakes = f"import os, time; time.sleep(0.5); os.kill({os.getpid()}, {int(signal.SIGCONT)})"
found = set()
for nap in range(3):
    alarm = subprocess.Popen([sys.executable, "-c", wakes])
    stops = f"import os; os.kill({os.getpid()}, {int(signal.SIGSTOP)})"
    stop = subprocess.Popen([sys.executable, "-c", stops])
    while alarm.poll() is None or stop.poll() is None:
        found.add(bits())
print(*found)
"""
    assert script(code) == serial


def test_a_quiet_process_has_the_processors_that_it_counts_on() -> None:
    code = "torch.set_num_threads(1); bits(); print(rnnfused.show_config())"
    (line,) = (line for line in script(code).splitlines() if line.startswith("processors"))
    assert line.split(maxsplit=1)[1].startswith("enough so far")
