"""Puts the sections' parts together: one JSON file, and tables that are short enough to end a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.cases import PRECISIONS
from bench.gpu.device import safe_name
from bench.gpu.part import ROOT, read, write

__all__ = ["RESULTS", "assemble", "file_name", "save", "tables"]

RESULTS = ROOT / "bench" / "results"
SECTIONS = ("build", "tests", "sanitizers", "limits", "bench")
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
    return record | {name: read(parts / f"{name}.json") for name in SECTIONS}


def save(record: dict[str, Any], out: Path) -> list[Path]:
    """Under `out`, and of a device under bench/results too. A dry run is nobody's result."""
    name = file_name(record["device"])
    if record["dry_run"] and out.resolve() == RESULTS.resolve():
        raise ValueError(f"--out: a dry run is never written under {RESULTS}")
    paths = [out / name] if record["dry_run"] else [out / name, RESULTS / name]
    for path in paths:
        write(path, record)
    return paths


def _notes(record: dict[str, Any], section: str) -> str:
    part = record[section]
    if section == "build" and part:
        spilling = part.get("spills", {})
        return part.get("failed", f"for {part['arch']}; {len(spilling)} kernels spill registers")
    if section == "tests" and part:
        notes = []
        for name, result in part.items():
            counts = ", ".join(f"{count} {kind}" for kind, count in result["counts"].items())
            notes.append(f"{name} {counts}" + (", STOPPED" if "stopped" in result else ""))
        return "; ".join(notes)
    if section == "sanitizers" and part and not record["dry_run"]:
        if "failed" in part:
            return str(part["failed"])
        return "; ".join(f"{tool} {result['errors']} in {result['cases']}" for tool, result in part.items())
    if section == "limits" and part:
        failed = [name for name, entry in part["limits"].items() if "failed" in entry]
        without = f", without {', '.join(failed)}" if failed else ""
        return f"{len(part['limits']) - len(failed)} measured{without}"
    if section == "bench" and part:
        failed = [row for row in part["rows"] if "failed" in row]
        return f"{len(part['rows'])} rows, {len(failed)} failed, {len(part['not_reached'])} not reached"
    return ""


def _sections(record: dict[str, Any]) -> list[str]:
    lines = [f"{'section':<11} {'result':<10} {'s':>4}  what"]
    for entry in record["sections"]:
        note = _notes(record, entry["section"]) if entry["section"] in SECTIONS else ""
        lines.append(f"{entry['section']:<11} {entry['result']:<10} {entry['seconds']:>4.0f}  {note[:170]}")
    return lines


def _first_line(words: str, most: int) -> str:
    return words.strip().partition("\n")[0][:most]


def _failures(record: dict[str, Any]) -> list[str]:
    lines = []
    for part in record["tests"].values():
        lines += [f"FAILED {f['test']}: {_first_line(f['words'], 90)}" for f in part["failures"]]
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


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "."
    if "failed" in row:
        return "FAILED"
    ratios = [row.get(f"{way}_result", {}).get("ratio") for way in ("eager", "graph")]
    text = "/".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    share = row.get("graph_result", row.get("eager_result", {})).get("share_of_floor")
    return text + (f" {100 * share:.0f}%" if share is not None else "")


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each mode, cell and precision, a column for each size."""
    of: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        case = row["case"]
        shape = f"{case['steps']},{case['batch']},{case['hidden']}"
        of.setdefault((case["mode"], case["cell"], row["precision"]), {})[shape] = row
    shapes = list(dict.fromkeys(shape for found in of.values() for shape in found))
    lines = [f"{'T,B,H':<19}" + "".join(f" {shape:>14}" for shape in shapes)]
    order = {name: i for i, name in enumerate(("inference", "training", "ragged", "stacked", *PRECISIONS))}
    for key in sorted(of, key=lambda k: (order[k[0]], k[1], order[k[2]])):
        name = f"{key[0][:9]:<9} {key[1]:<4} {key[2]:<4}"
        lines.append(f"{name:<19}" + "".join(f" {_cell(of[key].get(shape)):>14}" for shape in shapes))
    return lines


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
        parts.append("\n".join(["limits", *_limits(record)]))
    if record["bench"].get("rows"):
        head = (
            "torch.nn / rnnfused, eager/in a CUDA graph, and the share of the floor (of the graph, or eager)"
        )
        parts.append("\n".join([head, *ratios(record["bench"]["rows"])]))
    return "\n\n".join(parts)


def run(parts: Path, out: Path, dry_run: bool, quiet: bool) -> int:
    record = assemble(parts, dry_run)
    paths = save(record, out)
    if not quiet:
        print(tables(record))
        print("\nwritten:", *paths)
    return 0
