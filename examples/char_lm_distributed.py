#!/usr/bin/env python3
"""Train the character language model of char_lm.py in several processes, on one machine or many.

    torchrun --nproc-per-node 2 examples/char_lm_distributed.py --output demo-output

Every process reads its columns of each window; the losses are those of one process that reads them all.
``--sharding fsdp`` also shares out the model. A checkpoint (torch.distributed.checkpoint) is saved after
every epoch and when a signal stops the run; ``--resume`` continues it, with however many processes.
``docs/distributed.md`` tells the whole story.
"""

import argparse
import sys
from collections.abc import Sequence

from _shared import ExampleError
from _shared.program import INTERRUPTED, imports, run_program

with imports("char_lm_distributed.py"):
    import torch
    import torch.distributed as dist
    from _char_lm.checkpoint import begin
    from _char_lm.group import (
        GroupInterrupt,
        GroupRun,
        is_first,
        newest_checkpoint,
        process_group,
        save_checkpoint,
    )
    from _char_lm.model import RNNFUSED
    from _char_lm.options import Recipe, parse_distributed
    from _char_lm.report import epoch_line, introduction, summary
    from _char_lm.training import train
    from _shared.options import given_recipe

    import rnnfused


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one process's share and return its exit code: 0, 2 after an error, 130 after a signal."""
    return run_program("char_lm_distributed.py", lambda: _join(parse_distributed(arguments)))


def _join(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    with process_group():
        return _train(options)


def _train(options: argparse.Namespace) -> int:
    found = newest_checkpoint(options.output)
    if found and not options.resume:
        raise ExampleError(
            f"{options.output} holds a checkpoint: --resume continues it, or choose another --output"
        )
    folder, saved = found or (None, None)
    checkpoint, corpus = begin(saved, given_recipe(options, Recipe), options.epochs)
    run = GroupRun(checkpoint.recipe, corpus, options.sharding)
    if folder is not None:
        run.load(folder, checkpoint.runs[RNNFUSED]["history"])
    options.output.mkdir(parents=True, exist_ok=True)
    _say(rnnfused.show_config(), introduction(checkpoint.recipe, corpus))
    _say(f"processes: {dist.get_world_size()}, {options.sharding}; steps before: {len(run.history.losses)}")

    def save(whole_epoch: bool) -> None:
        if whole_epoch:
            _say(epoch_line(run, checkpoint.epochs))
        save_checkpoint(options.output, checkpoint, run)

    with GroupInterrupt() as interrupt:
        train(run, checkpoint.epochs, interrupt, save)
        if run.epochs_done < checkpoint.epochs:
            _say(f"interrupted; --resume --output {options.output} continues from here")
            return INTERRUPTED
    _say("", summary([run]))
    return 0


def _say(*lines: str) -> None:
    if is_first():
        print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
