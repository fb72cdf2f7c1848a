"""Puts the sections' parts together: one JSON file, and tables that are short enough to end a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.device import safe_name
from bench.gpu.part import NOT_REACHED, ROOT, read, write

__all__ = ["RESULTS", "assemble", "file_name", "save", "tables"]

RESULTS = ROOT / "bench" / "results"
SECTIONS = ("build", "smoke", "limits", "steps", "bench", "tests", "sanitizers")
_UNITS = {"s": (1e6, "us"), "bytes/s": (1e-9, "GB/s"), "operations/s": (1e-12, "TFLOP/s")}


def file_name(device: dict[str, Any]) -> str:
    parts = [safe_name(device.get("name", "unknown")), safe_name(device.get("commit", "unknown"))]
    return "-".join(parts) + ".json"


def _outcomes(parts: Path) -> list[dict[str, Any]]:
    """What the shell wrote: name, result and seconds of every section, in tabs."""
    file = parts / "sections.tsv"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = (line.split("\t") for line in lines)
    return [{"section": name, "result": result, "seconds": float(seconds)} for name, result, seconds in rows]


def assemble(parts: Path, dry_run: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"dry_run": dry_run, "device": read(parts / "device.json")}
    record["sections"] = _outcomes(parts)
    record |= {name: read(parts / f"{name}.json") for name in SECTIONS}
    for entry in record["sections"]:
        entry["line"] = line(record, entry["section"])
    return record


def save(record: dict[str, Any], out: Path) -> list[Path]:
    """Under `out`, and of a device under bench/results too. A dry run is nobody's result."""
    name = file_name(record["device"])
    if record["dry_run"] and out.resolve() == RESULTS.resolve():
        raise ValueError(f"--out: a dry run is never written under {RESULTS}")
    paths = [out / name] if record["dry_run"] else [out / name, RESULTS / name]
    for path in paths:
        write(path, record)
    return paths


def _outcome(ran: str, failed: list[str], cut: str = "") -> str:
    """A section in a line: what ran, what failed, and what the time cut off."""
    named = ", ".join(failed[:4]) + (f", ... ({len(failed)})" if len(failed) > 4 else "")
    return f"ran {ran}; failed: {named or 'nothing'}; cut by time: {cut or 'nothing'}"


def _build(part: dict[str, Any]) -> str:
    programs = part.get("programs", {})
    failed = [part["failed"]] if "failed" in part else []
    failed += [name for name, words in programs.items() if words != "ok"]
    spilling = f", {len(part['spills'])} kernels spill registers" if "spills" in part else ""
    cut = "the extension" if "failed" in part and part.get("status", 0) is None else ""
    return _outcome(f"extension for {part['arch']}{spilling}, {len(programs)} programs", failed, cut)


def _named(part: dict[str, Any], names: list[str], whole: str) -> list[str]:
    """What failed by name; where nothing has one, the whole of it with its words."""
    if names or "failed" not in part:
        return names
    return [f"{whole} ({_first_line(part['failed'], 60)})"]


def _smoke(part: dict[str, Any]) -> str:
    wrappers, layers = part.get("wrappers", {}), part.get("layers", {})
    said = [text.split(" differs: ")[0] for text in wrappers.get("differ", [])]
    cases = [case["name"] for case in layers.get("failures", [])]
    failed = _named(wrappers, said, "wrappers") + _named(layers, cases, "layers")
    checks, reached = wrappers.get("ok", 0) + len(said), len(layers.get("cases", []))
    cut = [f"wrappers after {checks}"] if wrappers.get("status", 0) is None else []
    cut += [f"layers after {reached}"] if layers.get("status", 0) is None else []
    return _outcome(f"{checks} checks of wrappers, {reached} layers", failed, ", ".join(cut))


def _of_limits(part: dict[str, Any]) -> str:
    entries = part["limits"]
    cut = [name for name, entry in entries.items() if entry.get("failed") == NOT_REACHED]
    failed = [name for name, entry in entries.items() if "failed" in entry and name not in cut]
    failed += [_first_line(part["failed"], 60)] if "failed" in part else []
    rows = part.get("occupancy", [])
    found = [row for row in rows if "clusters" in row]
    ran = f"{len(entries) - len(failed) - len(cut)} limits, {len(found)} of {len(rows)} occupancies"
    return _outcome(ran, failed, ", ".join(cut))


def _steps(part: dict[str, Any]) -> str:
    rows = part["rows"]
    kernels = {name for row in rows for name in row.get("kernels", {})}
    cut = part["rows_in_all"] - len(rows)
    failed = [f"{row['name']} ({_first_line(row['failed'], 60)})" for row in rows if "failed" in row]
    return _outcome(f"{len(kernels)} kernels in {len(rows)} layers", failed, f"{cut} layers" if cut else "")


def _bench(part: dict[str, Any]) -> str:
    failed = [row["name"] for row in part["rows"] if "failed" in row]
    cut = part["not_reached"]
    return _outcome(f"{len(part['rows'])} rows", failed, f"{len(cut)} rows" if cut else "")


def _tests(part: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in part["counts"].items())
    cut = f"what came after, {len(part['running'])} running" if "stopped" in part else ""
    return _outcome(counts, [failure["test"] for failure in part["failures"]], cut)


def _sanitizers(part: dict[str, Any]) -> str:
    if "commands" in part:
        failed = ["the layers"] if part["emulated"]["status"] != 0 else []
        return _outcome("the layers without a tool", failed)
    if "failed" in part:
        return _outcome("no tool", [part["failed"]])
    tools = [f"{tool} ({of['errors']} errors in {of['cases']} layers)" for tool, of in part.items()]
    cut = [
        tool for tool, of in part.items() if of["status"] is None or (of["cases_in_all"] or 0) > of["cases"]
    ]
    return _outcome(", ".join(tools), [tool for tool, of in part.items() if "failed" in of], ", ".join(cut))


_LINES = {
    "build": _build,
    "smoke": _smoke,
    "limits": _of_limits,
    "steps": _steps,
    "bench": _bench,
    "tests": _tests,
    "sanitizers": _sanitizers,
}


def line(record: dict[str, Any], section: str) -> str:
    """What ran in the section, what failed, and what the time cut off; nothing known: it left no part."""
    part = record.get(section, {})
    return _LINES[section](part) if part else "ran nothing that it could tell of"


def _sections(record: dict[str, Any]) -> list[str]:
    lines = [f"{'section':<11} {'result':<10} {'s':>4}  what"]
    for entry in record["sections"]:
        name = entry["section"]
        lines.append(f"{name:<11} {entry['result']:<10} {entry['seconds']:>4.0f}  {entry['line'][:210]}")
    return lines


def _first_line(words: str, most: int) -> str:
    return words.strip().partition("\n")[0][:most]


def _failures(record: dict[str, Any]) -> list[str]:
    lines = []
    smoke = record["smoke"]
    lines += [f"FAILED {_first_line(said, 150)}" for said in smoke.get("wrappers", {}).get("differ", [])]
    lines += [
        f"FAILED {case['name']}: {_first_line(case['failed'], 100)}"
        for case in smoke.get("layers", {}).get("failures", [])
    ]
    lines += [
        f"FAILED {f['test']}: {_first_line(f['words'], 90)}" for f in record["tests"].get("failures", [])
    ]
    for tool, result in record["sanitizers"].items():
        if isinstance(result, dict) and "failed" in result:
            lines.append(f"FAILED {tool}: {_first_line(result['failed'], 120)}")
    for row in record["bench"].get("rows", []):
        if "failed" in row:
            lines.append(f"FAILED {row['name']}: {_first_line(row['failed'], 100)}")
    more = [f"... and {len(lines) - 16} more, in the JSON"] if len(lines) > 16 else []
    return lines[:16] + more


def _limits(record: dict[str, Any]) -> list[str]:
    cells = []
    for name, entry in record["limits"].get("limits", {}).items():
        scale, unit = _UNITS[entry["unit"]]
        cells.append(f"{name} {entry['median'] * scale:.3g} {unit}" if "median" in entry else f"{name} -")
    return ["; ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]


def _occupancy(record: dict[str, Any]) -> list[str]:
    """How many clusters run at once: a line for each size, a column for each share of shared memory."""
    by_cluster: dict[int, list[str]] = {}
    for row in record["limits"].get("occupancy", []):
        said = f"{row['shared_kib']} KiB {row.get('clusters', '-')}"
        by_cluster.setdefault(row["cluster"], []).append(said)
    return [f"clusters of {size} at once: {', '.join(said)}" for size, said in by_cluster.items()]


def _resident(record: dict[str, Any]) -> list[str]:
    """Microseconds a step of each resident kernel, and what was expected."""
    cells = []
    for row in record["steps"].get("rows", []):
        for name, of in row.get("kernels", {}).items():
            expected = f" ({1e6 * of['estimate']:.2f})" if "estimate" in of else ""
            cells.append(f"{name} B{row['case']['batch']} {1e6 * of['step']:.2f}{expected}")
    return ["; ".join(cells[i : i + 3]) for i in range(0, len(cells), 3)]


def _pair(values: list[float | None]) -> str:
    return "/".join("-" if value is None else f"{value:.2f}" for value in values)


def _row(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']:<42} FAILED"
    ways = [row.get(f"{way}_result", {}) for way in ("eager", "graph")]
    ours = _pair([way.get("us_per_step", {}).get("rnnfused") for way in ways])
    text = f"{row['name']:<42} {ours:>13} us/step, torch {_pair([way.get('ratio') for way in ways])}"
    share = row.get("graph_result", row.get("eager_result", {})).get("share_of_floor")
    text += f", floor {100 * share:.0f}%" if share is not None else ""
    others = {name for way in ways for name in way.get("ratios", {}) if name != "torch"}
    for name in sorted(others):
        text += f", {name} {_pair([way.get('ratios', {}).get(name) for way in ways])}"
    return text


def tables(record: dict[str, Any]) -> str:
    device = record["device"]
    parts = [
        f"{device.get('name', 'unknown device')}, {device.get('commit', '')}, torch {device.get('torch', '')}"
    ]
    parts.append("\n".join(_sections(record)))
    if failures := _failures(record):
        parts.append("\n".join(failures))
    if record["dry_run"]:
        return "\n\n".join([*parts, "dry run: what it timed is in its JSON, and is no result"])
    if record["limits"]:
        parts.append("\n".join(["limits", *_limits(record), *_occupancy(record)]))
    if steps := _resident(record):
        parts.append("\n".join(["microseconds a step of the resident kernels (by estimate)", *steps]))
    if record["bench"].get("rows"):
        head = "rnnfused, and times as fast as others; eager/in a CUDA graph; the share of the floor"
        parts.append("\n".join([head, *map(_row, record["bench"]["rows"])]))
    return "\n\n".join(parts)


def run(parts: Path, out: Path, dry_run: bool, quiet: bool) -> int:
    record = assemble(parts, dry_run)
    paths = save(record, out)
    if not quiet:
        print(tables(record))
        print("\nwritten:", *paths)
    return 0
