"""``multitrainer finetune``: fine-tune an image classifier of GluonCV, with a learning rate for each part of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import defaults
from .arguments.loss import OPTIONS as LOSS_OPTIONS
from .arguments.param_groups import OPTIONS as GROUP_OPTIONS
from .arguments.updates import OPTIONS as UPDATE_OPTIONS
from .data.layout import check_place, class_roots, naming_data
from .demo import comparison
from .errors import UserError
from .ranks.exchange import Ranks
from .ranks.launch import run_distributed
from .runs import run_folder
from .runs.checkpoints import Checkpoints
from .runs.claim import claim_folder
from .training import image_run, loss_options, schedule
from .training.devices import count_threads, parse_contexts
from .training.optimizer import parse_optimizer
from .training.recorded_options import recorded_options

ONLY_WITH_DATA = (
    "val_split",
    "model",
    "input_size",
    "pretrained",
    "params",
    *GROUP_OPTIONS,
    "lr_schedule",
    "warmup",
    *UPDATE_OPTIONS,
    "early_stop",
    "tensorboard",
    *LOSS_OPTIONS,
    "no_augment",
    "workers",
)
# Options that may differ between the ranks of a run, or between a run and its resumption.
MAY_DIFFER_BY_RANK = ("data", "params", "out", "ctx", "workers", "feature_memory", "command")
MAY_DIFFER_ON_RESUME = (*MAY_DIFFER_BY_RANK, "kvstore", "resume", "overwrite", "early_stop", "tensorboard")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.data is None and (args.kvstore or "").startswith(("dist", "horovod")):
        raise UserError("without --data, the command runs on one machine; leave --kvstore out, or add --data DIR")
    return run_distributed(args.kvstore, lambda ranks: _run_on_rank(args, ranks))


def _run_on_rank(args: argparse.Namespace, ranks: Ranks) -> int:
    contexts = parse_contexts(args.ctx, ranks.local_rank)
    optimizer = parse_optimizer(args.optimizer, args.lr, args.wd)
    options = recorded_options(args, optimizer)
    ranks.check_same("options", [item for item in options.items() if item[0] not in MAY_DIFFER_BY_RANK])
    options = {name: value for name, value in options.items() if name not in MAY_DIFFER_ON_RESUME}
    if args.data is None:
        _refuse_options_of_images(args)
    else:
        if not (schedule.depends_on_epochs(args) or loss_options.depends_on_epochs(args)):
            del options["epochs"]  # a resumed run may have more
        ranks.run_on_first(lambda: _check_paths(args, args.out or defaults.RUN_FOLDER))
        ranks.run_on_first(lambda: loss_options.check_options(args))
    default = defaults.DEMO_FOLDER if args.data is None else defaults.RUN_FOLDER
    threads = 1 if args.data is None else count_threads(contexts)  # a run on digits has processes of one thread
    with claim_folder(args.out, default, args.resume, args.overwrite, ranks) as out:
        checkpoints = Checkpoints(out, options, args.resume, args.overwrite, ranks, args.params, threads)
        if args.data is None:
            return comparison.run(args, contexts, optimizer, checkpoints)
        if args.out is None:
            ranks.run_on_first(lambda: _check_paths(args, out))  # the number of the default folder is known now
        return image_run.run(args, contexts, optimizer, ranks, checkpoints)


def _refuse_options_of_images(args: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name in ONLY_WITH_DATA if getattr(args, name) is not None]
    if given:
        raise UserError(
            f"{', '.join(given)} can only be used with --data DIR; without it, the command trains on digits"
        )


def _check_paths(args: argparse.Namespace, out: Path) -> None:
    """Refuse to write where the run reads from, before it makes a folder there."""
    with naming_data(args.data):
        for root in class_roots(args.data):
            check_place(out, root)
    replaced = map(Path.resolve, run_folder.files_of_run(out) if args.overwrite and args.out else [])
    if args.params and args.params.resolve() in replaced:
        raise UserError(
            f"--params {args.params} belongs to the run that --overwrite would remove; choose another --out"
        )
