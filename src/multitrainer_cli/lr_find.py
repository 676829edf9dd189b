"""``multitrainer lr-find``: suggest a learning rate for ``multitrainer finetune`` with the same options."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
from typing import Any, Iterator

import mxnet as mx

from multitrainer import LearningRateSearch, find_learning_rate
from multitrainer.rate_search.search import FEWEST_UPDATES

from .arguments import defaults
from .arguments.lr_find import OWN_OPTIONS, UPDATES
from .data import batches
from .data.loader import Loader
from .data.split import Split, open_folder
from .errors import UserError, require
from .interrupts import Interrupts
from .ranks.exchange import Ranks
from .runs import artifacts
from .runs.earlier_run import EarlierRun
from .runs.picture import check_picture
from .training import loss_options, network
from .training.devices import describe_threads, parse_contexts
from .training.image_run import Model, build_model, describe_updates, no_worker_answered
from .training.loop import compute_gradients, seed_everything
from .training.losses import Batch, Objective
from .training.optimizer import parse_optimizer


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    _refuse_ranks(args.kvstore)
    for package in ("tqdm", "matplotlib.pyplot"):
        require(package)
    contexts = parse_contexts(args.ctx)
    optimizer = parse_optimizer(args.optimizer, None, args.wd)
    _check_rates(args)
    check_picture("--out", args.out, args.data)
    loss_options.check_options(args)
    seed_everything(args.seed)
    split = open_folder(args.data, args.seed, val_split=args.val_split)
    for note in split.notes:
        print(note)
    ranks = Ranks(args.kvstore or "device")
    model = build_model(args, split, contexts, optimizer, ranks, EarlierRun([], None))
    # An epoch of the run ends with an update, so an update has no more batches than an epoch.
    model.trainer.accumulate = min(model.length.accumulate, model.length.batches_in(1))
    _check_batches(args, model)
    split.check_readable()
    name, devices = args.model or defaults.MODEL, ", ".join(map(str, contexts)) + describe_threads(contexts)
    print(f"{name} on {devices}, {len(split.train)} images, {len(split.classes)} classes", flush=True)
    if model.length.accumulate > 1:
        print(describe_updates(model.length, ranks), flush=True)
    found = _search(args, split, model)
    figure = require("matplotlib.figure").Figure(figsize=(7, 4.5), layout="constrained")
    found.plot(figure.subplots())
    artifacts.save_figure(figure, args.out)
    print(f"loss at {len(found.rates)} rates from {found.rates[0]:.2g} to {found.rates[-1]:.2g}: {args.out}")
    print(f"suggested learning rate: {_suggestion(found):.2g}\n{_finetune_command(args, found.suggestion)}")
    return 0


def _refuse_ranks(kvstore: str | None) -> None:
    """Refuse to search in one of several processes, where each would search for itself."""
    workers = os.environ.get("DMLC_NUM_WORKER", "1") if os.environ.get("DMLC_ROLE") == "worker" else "1"
    if (kvstore or "").startswith(("dist", "horovod")) or (workers, os.environ.get("HOROVOD_SIZE", "1")) != ("1", "1"):
        raise UserError(
            "lr-find runs in one process: leave out --kvstore and the launcher, and keep the --batch-size of all ranks "
            "together, with --accumulate if it does not fit. The rate is right for ranks that share this batch"
        )


def _check_rates(args: argparse.Namespace) -> None:
    if args.lowest >= args.highest:
        raise UserError(f"--lowest {args.lowest:g}: expected a rate below --highest {args.highest:g}")


def _check_batches(args: argparse.Namespace, model: Model) -> None:
    fewest = FEWEST_UPDATES * model.trainer.accumulate
    if args.batches is not None and args.batches < fewest:
        raise UserError(f"--batches {args.batches}: expected at least {fewest}, for {FEWEST_UPDATES} updates")


class _Epochs:
    """The batches of a run, epoch after epoch: each iteration is the next epoch."""

    def __init__(self, objective: Objective, loader: Loader, seed: int) -> None:
        self._objective, self._loader, self._seed = objective, loader, seed
        self._epochs_begun = 0

    def __iter__(self) -> Iterator[Batch]:
        self._epochs_begun += 1
        return self._objective.batches(self._loader, self._seed, self._epochs_begun)


def _search(args: argparse.Namespace, split: Split, model: Model) -> LearningRateSearch:
    """Train with rising rates on the batches of the run; what cannot be searched is a UserError."""
    size = network.transform(args.model or defaults.MODEL, args.input_size).size
    options: dict[str, Any] = {"augment": not args.no_augment}
    loader, _ = batches.make_loaders(split, size, model.length.batch_size, args.workers or 0, args.seed, **options)
    count = args.batches or UPDATES * model.trainer.accumulate
    model.net.hybridize(static_alloc=True)
    progress = {"desc": "learning rates", "unit": " batches", "leave": False, "disable": None, "dynamic_ncols": True}
    with Interrupts() as interrupts, require("tqdm").tqdm(total=count, **progress) as bar:

        def train_step(batch: Batch) -> list[mx.nd.NDArray]:
            interrupts.check()
            _, losses = compute_gradients(model.net, model.objective, batch.images, batch.targets, model.contexts)
            model.trainer.step(len(batch.images))
            bar.update()
            return losses

        try:
            epochs = _Epochs(model.objective.mixing_in_all_epochs(), loader, args.seed)
            return find_learning_rate(model.trainer, train_step, epochs, args.lowest, args.highest, count)
        except multiprocessing.TimeoutError as error:
            raise no_worker_answered() from error
        except mx.MXNetError as error:
            raise network.explain_failure(error, args.model or defaults.MODEL) from error
        except ValueError as error:
            raise UserError(_name_options(str(error))) from error


def _suggestion(found: LearningRateSearch) -> float:
    try:
        return found.suggestion
    except ValueError as error:
        raise UserError(f"no learning rate can be suggested: {_name_options(str(error))}") from error


def _name_options(message: str) -> str:
    """Write the arguments that a message of the library names as the options of the command."""
    for name in ("lowest", "highest"):
        message = message.replace(f"{name}=", f"--{name}")
    return message


def _finetune_command(args: argparse.Namespace, rate: float) -> str:
    """Return the command that trains with a rate and the options of the search."""
    words = ["multitrainer", "finetune"]
    for name, value in vars(args).items():
        if name in (*OWN_OPTIONS, "command") or value is None or (name, value) == ("seed", 0):
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", *[str(each)] * (each is not True)]
    return " ".join(map(shlex.quote, [*words, "--lr", f"{rate:.2g}"]))
