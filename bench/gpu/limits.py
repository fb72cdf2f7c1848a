"""What the device can do at most: bandwidth, rates of products, and what launches and exchanges cost.

Every limit is the median of several repetitions with its quartiles, in the unit that it names. The kernels
are in limits.cu, which also runs on the emulation: a dry run proves their logic; its times mean nothing.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device import take_emulated_extension
from bench.gpu.part import NOT_REACHED, Section, tail
from bench.gpu.programs import built
from bench.gpu.timing import Spread, capture, elapsed, host_seconds, repeats_for, spread

__all__ = ["CLUSTERS", "OCCUPANCY_CLUSTERS", "OCCUPANCY_KIB", "Kernels", "occupancy", "run"]

CLUSTERS = (2, 4, 8, 16)
EXCHANGED = (512, 1024, 2048)  # bytes to a peer: those of a step's h, of its partial sums, and more
OCCUPANCY_CLUSTERS = (2, 4, 8, 12, 16)
OCCUPANCY_KIB = (20, 50, 100, 150, 200)  # of shared memory a block
REPETITIONS = 9
_LINE = 64  # words, as in limits.cu


def _repetitions(device: str) -> int:
    return REPETITIONS if device == "cuda" else 2


class Kernels:
    """The library's functions, on the device's current stream. Each raises RuntimeError where the kernel can
    not be started, and its counters are checked where they are read.
    """

    def __init__(self, library: Path, device: str, blocks: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.limits_error.restype = ctypes.c_char_p
        self._device = device
        self.blocks = blocks
        self.passed = torch.zeros(max(blocks, 16), dtype=torch.int32, device=device)
        self._slots = torch.zeros(2 * max(blocks, 16), dtype=torch.int32, device=device)
        self._words = torch.zeros(2 * _LINE, dtype=torch.int32, device=device)  # a counter, or two flags

    def _call(self, name: str, *arguments: torch.Tensor | int) -> None:
        stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else 0
        given = [ctypes.c_void_p(stream)]
        for argument in arguments:
            pointer = isinstance(argument, torch.Tensor)
            given.append(ctypes.c_void_p(argument.data_ptr()) if pointer else ctypes.c_int(argument))
        if getattr(self._library, f"limits_{name}")(*given) != 0:
            raise RuntimeError(self._library.limits_error().decode())

    def nothing(self, launches: int) -> None:
        self._call("nothing", launches)

    def grid_barriers(self, rounds: int, checks: bool = False) -> None:
        self._call("grid_barriers", self._slots, self.passed, self.blocks, rounds, int(checks))

    def counter_barriers(self, rounds: int, checks: bool = False) -> None:
        self._words.zero_()
        self._call(
            "counter_barriers", self._words, self._slots, self.passed, self.blocks, rounds, int(checks)
        )

    def cluster_barriers(self, cluster: int, rounds: int, checks: bool = False) -> None:
        self._call("cluster_barriers", self._slots, self.passed, cluster, rounds, int(checks))

    def cluster_hops(self, cluster: int, rounds: int) -> None:
        self._call("cluster_hops", self.passed, cluster, rounds)

    def cluster_exchanges(self, cluster: int, steps: int, sent: int = 2048) -> None:
        self._call("cluster_exchanges", self.passed, cluster, steps, sent // 16)

    def l2_hops(self, rounds: int) -> None:
        self._words.zero_()
        self._call("l2_hops", self._words, self.passed, rounds)

    def max_clusters(self, cluster: int, shared_bytes: int) -> int:
        """How many clusters of a kernel that leaves a multiprocessor room for one block run at once."""
        found = ctypes.c_int(0)
        arguments = (ctypes.c_int(cluster), ctypes.c_int(shared_bytes), ctypes.byref(found))
        if self._library.limits_max_clusters(*arguments) != 0:
            raise RuntimeError(self._library.limits_error().decode())
        return found.value

    def check(self, name: str, expected: list[int]) -> None:
        """Raises RuntimeError unless the first words of `passed` are the expected ones."""
        found = self.passed[: len(expected)].tolist()
        if found != expected:
            raise RuntimeError(f"{name}: expected the counters {expected[:4]}, got {found[:4]}")


def _per_round(device: str, few: int, many: int, call: Callable[[int], None]) -> Spread:
    """Of a kernel with `rounds`: the launch, and what else comes once, is in both times and so in neither."""
    call(few)
    values = []
    for _ in range(_repetitions(device)):
        short = elapsed(device, lambda: call(few), 1)
        values.append((elapsed(device, lambda: call(many), 1) - short) / (many - few))
    return spread(values)


def occupancy(kernels: Kernels) -> list[dict[str, Any]]:
    """A row for each size of a cluster and of the shared memory; one that fails has the words."""
    rows: list[dict[str, Any]] = []
    for cluster in OCCUPANCY_CLUSTERS:
        for kib in OCCUPANCY_KIB:
            row: dict[str, Any] = {"cluster": cluster, "shared_kib": kib}
            try:
                row["clusters"] = kernels.max_clusters(cluster, kib << 10)
            except RuntimeError as error:
                row["failed"] = str(error)
            rows.append(row)
    return rows


class _Measures:
    """Names every limit, measures it, and saves after each: what a hang cuts off is only what comes after."""

    def __init__(self, section: Section, device: str) -> None:
        self._section, self._device = section, device
        self._end = time.monotonic() + section.seconds
        self.found: dict[str, Any] = {}
        self.occupancy: list[dict[str, Any]] = []

    def save(self, **more: Any) -> None:
        self._section.save({"limits": self.found, "occupancy": self.occupancy, **more})

    def take(self, name: str, unit: str, what: str, measure: Callable[[], Spread]) -> None:
        entry: dict[str, Any] = {"unit": unit, "what": what}
        if time.monotonic() > self._end:
            entry["failed"] = NOT_REACHED
        else:
            try:
                entry |= measure()
                if self._device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:  # the other limits are still wanted, and this one's words are kept
                entry["failed"] = f"{type(error).__name__}: {tail(str(error), 3)}"
        self.found[name] = entry
        self.save()
        figure = "ok" if self._section.dry_run else f"{entry.get('median')} {unit}"
        print(name, entry.get("failed", figure), flush=True)


def _copy(device: str, elements: int) -> Spread:
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    repeats = repeats_for(elapsed(device, lambda: target.copy_(source), 1), 0.02)
    times = [elapsed(device, lambda: target.copy_(source), repeats) for _ in range(_repetitions(device))]
    return spread([2 * 4 * elements / seconds for seconds in times])


def _gemm(device: str, n: int, dtype: torch.dtype, tf32: bool) -> Spread:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(2):
        torch.mm(a, b, out=out)
    repeats = repeats_for(elapsed(device, lambda: torch.mm(a, b, out=out), 1), 0.03)
    times = [elapsed(device, lambda: torch.mm(a, b, out=out), repeats) for _ in range(_repetitions(device))]
    return spread([2.0 * n**3 / seconds for seconds in times])


def _graph_node(device: str, kernels: Kernels) -> Spread:
    if device != "cuda":
        raise RuntimeError("the CPU has no CUDA graphs")
    few, many = 100, 1100
    graphs = {nodes: capture(lambda nodes=nodes: kernels.nothing(nodes))[0] for nodes in (few, many)}
    for graph in graphs.values():
        graph.replay()
    values = []
    for _ in range(_repetitions(device)):
        short, long = (elapsed(device, graphs[nodes].replay, 3) for nodes in (few, many))
        values.append((long - short) / (many - few))
    return spread(values)


def _libraries(measures: _Measures, device: str, dry_run: bool) -> None:
    measures.take(
        "copy",
        "bytes/s",
        "device to device, bytes read plus bytes written",
        lambda: _copy(device, 1 << 12 if dry_run else 1 << 28),
    )
    kinds = {
        "f32": (torch.float32, False, 4096),
        "tf32": (torch.float32, True, 8192),
        "f16": (torch.float16, False, 8192),
        "bf16": (torch.bfloat16, False, 8192),
        "f64": (torch.float64, False, 4096),
    }
    for name, (dtype, tf32, n) in kinds.items():
        measures.take(
            f"gemm_{name}",
            "operations/s",
            "a large square product, random data",
            lambda n=n, dtype=dtype, tf32=tf32: _gemm(device, 32 if dry_run else n, dtype, tf32),
        )


def _launches(measures: _Measures, device: str, kernels: Kernels, dry_run: bool) -> None:
    launches = 4 if dry_run else 500  # fewer than the driver queues, or the host would wait for the device

    def repeated(time_of: Callable[[str, Callable[[], None], int], float]) -> Spread:
        kernels.nothing(launches)
        values = [time_of(device, lambda: kernels.nothing(launches), 1) for _ in range(_repetitions(device))]
        return spread([seconds / launches for seconds in values])

    back_to_back = "an empty kernel after another on one stream, the host's calls included"
    measures.take("launch", "s", back_to_back, lambda: repeated(elapsed))
    measures.take(
        "launch_host", "s", "the host's call that launches a kernel", lambda: repeated(host_seconds)
    )
    measures.take("graph_node", "s", "an empty kernel in a CUDA graph", lambda: _graph_node(device, kernels))


def _exchanges(measures: _Measures, device: str, kernels: Kernels, dry_run: bool) -> None:
    few, many = (2, 4) if dry_run else (200, 2200)

    def halved(measured: Spread) -> Spread:
        return {name: seconds / 2 for name, seconds in measured.items()}

    def checked(name: str, expected: list[int], proof: Callable[[], None]) -> None:
        """The protocol holds, before its time counts."""
        proof()
        kernels.check(name, expected)

    def l2() -> Spread:
        checked("l2_hops", [5, 5], lambda: kernels.l2_hops(5))
        return halved(_per_round(device, few, many, kernels.l2_hops))

    def barrier(name: str, members: int, call: Callable[..., None]) -> Spread:
        checked(name, [5] * members, lambda: call(5, True))
        return _per_round(device, few, many, call)

    blocks = kernels.blocks
    measures.take("l2_hop", "s", "a word from one SM to another: release store, polled acquire load", l2)
    grid = f"a barrier of {blocks} blocks, one an SM: cooperative groups'"
    measures.take("grid_barrier", "s", grid, lambda: barrier("grid_barrier", blocks, kernels.grid_barriers))
    counter = f"a barrier of {blocks} blocks, one an SM: a counter that all add to and poll"
    measures.take(
        "counter_barrier", "s", counter, lambda: barrier("counter_barrier", blocks, kernels.counter_barriers)
    )
    for cluster in CLUSTERS:

        def meet(rounds: int, checks: bool = False, cluster: int = cluster) -> None:
            kernels.cluster_barriers(cluster, rounds, checks)

        def hop(cluster: int = cluster) -> Spread:
            expected = [10] + [0] * (cluster - 2) + [9]
            kernels.passed.zero_()
            checked("cluster_hops", expected, lambda: kernels.cluster_hops(cluster, 5))
            return halved(_per_round(device, few, many, lambda rounds: kernels.cluster_hops(cluster, rounds)))

        def exchange(sent: int, cluster: int = cluster) -> Spread:
            checked("cluster_exchanges", [5] * cluster, lambda: kernels.cluster_exchanges(cluster, 5, sent))
            return _per_round(
                device, few, many, lambda steps: kernels.cluster_exchanges(cluster, steps, sent)
            )

        name, words = f"cluster_barrier_{cluster}", f"a barrier of a cluster of {cluster} blocks"
        measures.take(name, "s", words, lambda meet=meet, name=name, c=cluster: barrier(name, c, meet))
        words = f"a word from an SM to another of a cluster of {cluster}: st.async and an mbarrier"
        measures.take(f"cluster_hop_{cluster}", "s", words, hop)
        for sent in EXCHANGED if cluster == CLUSTERS[-1] else EXCHANGED[-1:]:
            words = f"{sent} bytes from every block of a cluster of {cluster} to every one, by shared memory"
            name = f"cluster_exchange_{cluster}" + ("" if sent == EXCHANGED[-1] else f"_{sent}")
            measures.take(name, "s", words, lambda sent=sent, exchange=exchange: exchange(sent))


def run(section: Section) -> int:
    take_emulated_extension()
    of_device = section.of("device")
    device = "cpu" if section.dry_run else "cuda"
    measures = _Measures(section, device)
    _libraries(measures, device, section.dry_run)
    try:
        library = built("limits", None if section.dry_run else of_device["arch"])
    except RuntimeError as error:
        print(f"limits: {error}", file=sys.stderr)
        measures.save(failed=str(error))
        return 1
    kernels = Kernels(library, device, of_device["multiprocessors"])
    measures.occupancy = occupancy(kernels)
    measures.save()
    _launches(measures, device, kernels, section.dry_run)
    _exchanges(measures, device, kernels, section.dry_run)
    failed = [name for name, entry in measures.found.items() if "failed" in entry]
    if wrong := [row["failed"] for row in measures.occupancy if "failed" in row]:
        print("occupancy:", wrong[0])
        failed.append("occupancy")
    return 1 if failed and not (section.dry_run and failed == ["graph_node"]) else 0
