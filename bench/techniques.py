"""`python -m bench.techniques [NAME...]`: what each technique of the kernels buys, measured one at a time.

A technique is taken away from a copy of the last commit by replacing a few lines of its source; the copy is
built and held against the commit as bench.compare does it. --list says what there is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Case
from bench.compare import build, compare
from bench.cpu import add_timing
from bench.report import geometric_mean

__all__ = ["TECHNIQUES", "Edit", "Technique"]


@dataclass(frozen=True)
class Edit:
    file: str
    text: str  # occurs once in the file
    instead: str

    def apply(self, tree: Path) -> None:
        """Raises ValueError if the text is not there once."""
        source = (tree / self.file).read_text(encoding="utf-8")
        if source.count(self.text) != 1:
            raise ValueError(f"{self.file}: {self.text!r} occurs {source.count(self.text)} times")
        (tree / self.file).write_text(source.replace(self.text, self.instead), encoding="utf-8")


@dataclass(frozen=True)
class Technique:
    what: str
    without: str  # what takes its place
    edits: tuple[Edit, ...]
    rows: tuple[str, ...]  # "MODE CELL T B H", and layers if there are several

    def take_away(self, tree: Path) -> None:
        for edit in self.edits:
            edit.apply(tree)

    def cases(self) -> list[Case]:
        found = []
        for row in self.rows:
            mode, cell, *sizes = row.split()
            steps, batch, hidden, *layers = map(int, sizes)
            stacked = mode == "stacked"
            found.append(Case(mode, cell, steps, batch, hidden, sum(layers) or 1 + stacked, stacked))
        return found


_FORWARD, _BACKWARD, _GRADIENTS = (f"csrc/cpu/{name}.h" for name in ("forward", "backward", "gradients"))
_PLAN = "csrc/cpu/plan.cpp"

TECHNIQUES = {
    "epilogue": Technique(
        "gates and states of a tile while its sums are at hand",
        "a second pass over the step's accumulators",
        (
            Edit(
                _FORWARD,
                "[&](Index b, const T* acc) { epilogue(s, b, local + b, first, n, acc); });\n          });",
                "[](Index, const T*) {});\n          });",
            ),
            Edit(
                _FORWARD,
                "    });\n  }\n\n  RNNFUSED_HD void epilogue(",
                """    });
    for (Index b = 0; in_place() && b < rows; ++b) {
      for_groups(blocks_, group_, false, [&](Index first, Index n) {
        epilogue(s, b, local + b, first, n, gates_of(stream_.row(s, b), local + b, first));
      });
    }
  }

  RNNFUSED_HD void epilogue(""",
            ),
        ),
        (
            "inference lstm 512 16 64",
            "inference lstm 128 8 256",
            "inference lstm 128 32 512",
            "inference rnn 128 32 256",
            "training lstm 128 1 256",
        ),
    ),
    "partition": Technique(
        "hidden units of one sequence shared by the threads, which meet after every step",
        "one thread for a sequence, or for a share of the batch",
        (Edit(_PLAN, "groups * members <= threads && members <= blocks", "members <= 1"),),
        (
            "inference lstm 128 1 64",
            "inference lstm 128 1 128",
            "inference lstm 128 1 256",
            "inference lstm 128 1 512",
            "inference lstm 128 8 256",
            "inference lstm 128 32 512",
            "training lstm 128 1 256",
        ),
    ),
    "streams": Technique(
        "directions, or shares of the batch, side by side without meeting",
        "one after another, their units shared by the threads",
        (
            Edit(
                _PLAN,
                "for (int groups = 1; groups <= threads; ++groups)",
                "for (int groups = 1; groups <= 1; ++groups)",
            ),
        ),
        (
            "inference lstm 512 16 64",
            "inference gru 128 8 256",
            "inference lstm 64 256 128",
            "training rnn 128 32 256",
            "stacked lstm 128 1 64",
            "stacked gru 128 1 128",
        ),
    ),
    "wavefront": Technique(
        "layers under way at once, each a chunk of steps behind the one before it",
        "one layer after another",
        (Edit(_PLAN, "wave <= std::min(in.layers, groups)", "wave <= 1"),),
        (
            "inference rnn 128 1 64 2",
            "inference lstm 128 1 64 2",
            "inference gru 128 1 64 4",
            "inference lstm 512 1 128 4",
        ),
    ),
    "alternate": Technique(
        "every other step walks the weights backwards",
        "always forwards",
        (
            Edit(_FORWARD, "for_recurrent_groups(m, s % 2 == 1,", "for_recurrent_groups(m, false,"),
            Edit(
                _BACKWARD,
                "for_output_groups(outputs_, s % 2 != 0, [&](Index first, Index n) {\n      add_recurrence",
                "for_output_groups(outputs_, false, [&](Index first, Index n) {\n      add_recurrence",
            ),
        ),
        (
            "inference lstm 128 1 256",
            "inference lstm 128 1 512",
            "inference gru 128 1 512",
            "inference lstm 64 1 1024",
            "training lstm 128 1 512",
        ),
    ),
    "wide": Technique(
        "a tile of up to eight vectors for one row or two",
        "the tile of four that suits many rows",
        (Edit(_FORWARD, "group_(manner.few_rows && ", "group_(false && "),),
        (
            "inference rnn 128 1 128",
            "inference lstm 128 1 128",
            "inference gru 128 1 128",
            "inference lstm 128 1 512",
        ),
    ),
    "even": Technique(
        "rows split evenly into tiles",
        "full tiles and a rest",
        (
            Edit(
                "csrc/cpu/tile.h",
                "const Index begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;",
                "const Index begin = t * most, rows = n - begin < most ? n - begin : most;",
            ),
        ),
        (
            "inference lstm 128 8 256",
            "inference gru 128 8 256",
            "inference lstm 512 16 64",
            "training lstm 128 8 256",
            "training lstm 128 32 512",
        ),
    ),
    "in_place": Technique(
        "sums added to the gates where these are kept",
        "through a tile's copy on the stack",
        (Edit(_FORWARD, "return G == A && !direct_", "return false && G == A && !direct_"),),
        (
            "inference rnn 512 16 64",
            "inference rnn 128 32 256",
            "inference lstm 128 32 256",
            "inference lstm 50 32 1024",
            "training lstm 128 32 256",
        ),
    ),
    "chunks": Technique(
        "the input projected a chunk of steps at a time, which is in cache when the steps come to it",
        "for all steps at once",
        (
            Edit(
                _FORWARD,
                "if (shape.rows() <= 4 * rows) return 4 * rows;",
                "if (rows > 0) return shape.rows();",
            ),
        ),
        (
            "inference lstm 512 16 64",
            "inference lstm 128 8 256",
            "inference gru 128 32 256",
            "inference lstm 128 32 512",
            "inference gru 100 32 1760",
        ),
    ),
    "large": Technique(
        "longer chunks where the weights do not fit in a last-level cache",
        "chunks of 96 rows",
        (Edit(_FORWARD, "weight_bytes > kLargeWeights ? 256 : 96", "weight_bytes < 0 ? 256 : 96"),),
        ("inference lstm 32 64 1024", "inference gru 100 32 1760", "training gru 100 32 1760"),
    ),
    "gradients": Technique(
        "gradients of weights and input for a chunk of steps, whose gate gradients are in cache",
        "for all steps at once",
        (Edit(_BACKWARD, "by_chunks(plan.groups", "by_chunks(false && plan.groups"),),
        (
            "training lstm 512 16 64",
            "training lstm 128 8 256",
            "training lstm 128 32 256",
            "training lstm 128 32 512",
            "training gru 128 32 512",
        ),
    ),
    "sweep": Technique(
        "gate gradients packed once for dW_ih and dW_hh",
        "once for each",
        (Edit(_GRADIENTS, "kSweepBytes = 256 << 10", "kSweepBytes = 0"),),
        (
            "training rnn 512 16 64",
            "training lstm 512 16 64",
            "training lstm 64 256 128",
            "training gru 128 1 128",
        ),
    ),
    "own": Technique(
        "right operands of dW packed by each thread for itself",
        "packed once by all of them",
        (Edit(_GRADIENTS, "kOwnRightBytes = 1 << 20", "kOwnRightBytes = 0"),),
        ("training rnn 128 8 256", "training lstm 512 16 64", "training lstm 128 32 256"),
    ),
    "fetch": Technique(
        "sums of dW fetched while their addends are computed",
        "when they are added",
        (Edit(_GRADIENTS, "__builtin_prefetch(out + r * target.columns + j * L, 1);", "(void)out;"),),
        ("training lstm 128 8 256", "training lstm 128 32 512", "training gru 128 32 512"),
    ),
    "pool": Technique(
        "memory of large results kept for the next ones",
        "given back to the system",
        (Edit("csrc/cpu/pool.h", "size_t(1) << 20", "size_t(1) << 60"),),
        (
            "training lstm 512 16 64",
            "training lstm 128 32 256",
            "training lstm 128 32 512",
            "training lstm 64 256 128",
        ),
    ),
    "scratch": Technique(
        "a call's scratch kept for the next one",
        "given back to the system",
        (
            Edit("csrc/cpu/dispatch.cpp", "kOwnScratch = pool::kLarge", "kOwnScratch = Index(1) << 60"),
            Edit(
                "csrc/cpu/dispatch.cpp",
                "scratch_bytes)));\n",
                "scratch_bytes)));\n  kept_scratch().clear();\n",
            ),
        ),
        (
            "inference gru 128 8 256",
            "training lstm 128 1 256",
            "training lstm 128 1 512",
            "training gru 128 8 256",
        ),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.techniques", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(TECHNIQUES)}; all by default"
    )
    parser.add_argument("--list", action="store_true", help="print what there is, and measure nothing")
    add_timing(parser)
    options = parser.parse_args()
    unknown = set(options.names) - set(TECHNIQUES)
    if unknown:
        parser.error(f"NAME: expected some of {', '.join(TECHNIQUES)}, got {', '.join(sorted(unknown))}")
    if options.list:
        for name, technique in TECHNIQUES.items():
            print(f"{name}: {technique.what}; without: {technique.without}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            whole = build("HEAD", Path(folder))
            for name in options.names or TECHNIQUES:
                technique = TECHNIQUES[name]
                print(f"\n**{name}**: {technique.what}. Without: {technique.without}.\n", flush=True)
                print(
                    "| row | without us/step | with us/step | without / with |\n|---|---|---|---|", flush=True
                )
                with tempfile.TemporaryDirectory() as other:
                    without = build("HEAD", Path(other), technique.take_away)
                    ratios = compare((without, whole), technique.cases(), options)
                print(f"\nGeometric mean {geometric_mean(ratios):.3f}.")
        except (subprocess.CalledProcessError, ValueError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
