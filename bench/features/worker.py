"""A process that runs probes of one file: `python -m bench.features.worker COLUMN MODULE NAME:VARIANT...`.

Prints a line of JSON for every one: {"status": "yes", "no" or a few words, "error": the exception's first
line}. What probes print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

import torch

from bench.features.layers import Layers
from bench.features.probes import NotApplicable, Probe, call, load_module


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def outcome(found: Probe, layers: Layers, variant: str) -> dict[str, str]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    try:
        call(found, layers, variant)
    except NotApplicable as error:
        return {"status": str(error), "error": ""}
    except Exception as error:
        if found.refusal and layers.fused and found.refusal in str(error):
            return {"status": "refused, by design", "error": ""}
        return {"status": "no", "error": first_line(error)}
    return {"status": "yes", "error": ""}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    column, module, *wanted = sys.argv[1:]
    probes = {found.name: found for found in load_module(module)}
    layers = Layers(column)

    answers.write("ready\n")
    answers.flush()
    for item in wanted:
        name, variant = item.split(":")
        answers.write(json.dumps(outcome(probes[name], layers, variant)) + "\n")
        answers.flush()
    answers.close()
    os._exit(0)  # what a probe left running must not keep the table waiting


if __name__ == "__main__":
    main()
