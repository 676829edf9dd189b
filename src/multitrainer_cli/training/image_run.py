"""A run on a folder of images: build the network and its trainer, train, keep the files of the run up to date."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mxnet as mx
from mxnet import gluon

from multitrainer import MultiLRTrainer, WeightAverage

from ..arguments import defaults
from ..data import batches
from ..data.loader import Loader
from ..data.recorded_split import describe_shared_images
from ..data.split import Split, open_folder
from ..errors import INTERRUPTED, UserError
from ..interrupts import Interrupts
from ..output import escape
from ..ranks.exchange import Ranks
from ..runs import run_folder
from ..runs.checkpoints import Checkpoints
from ..runs.earlier_run import EarlierRun, check_network
from ..runs.record import NetworkRecord
from ..runs.tensorboard import TensorBoardFile
from . import features, loss_options, network, param_groups, schedule, zoo
from .average import make_average
from .devices import describe_threads
from .early_stop import explain_stop
from .epoch_files import EpochFiles
from .group_table import describe_groups
from .loop import fit, seed_everything
from .losses import Objective
from .optimizer import OptimizerChoice


class Model(NamedTuple):
    """A network with the trainer that the options ask for, on some devices."""

    net: gluon.HybridBlock
    head: str
    trainer: MultiLRTrainer
    average: WeightAverage | None
    contexts: list[mx.Context]
    length: schedule.TrainingLength
    objective: Objective


def run(
    args: argparse.Namespace,
    contexts: list[mx.Context],
    optimizer: OptimizerChoice,
    ranks: Ranks,
    checkpoints: Checkpoints,
) -> int:
    """Train on the images of --data, and return the exit status."""
    seed_everything(args.seed)
    tensorboard = _check_tensorboard(checkpoints.out, ranks) if args.tensorboard else None
    earlier = checkpoints.find_earlier(args.data, lambda rows: _required_files(args, len(rows)))
    if _has_more_epochs(earlier, args, checkpoints):
        return 0
    split = open_folder(args.data, args.seed, earlier.images, checkpoints.out, args.val_split)
    ranks.check_same("images", split.listing())
    described = _describe_network(args, split)
    check_network(checkpoints.out, earlier, described)
    checkpoints.announce_resume()
    for note in split.notes:
        print(note)
    model = build_model(args, split, contexts, optimizer, ranks, earlier)
    split.check_readable()  # takes long: not before the options are known to be right
    loaders = batches.make_loaders(
        split,
        described.input["size"],
        model.length.batch_size,
        args.workers or 0,
        args.seed,
        ranks,
        augment=not args.no_augment,
    )
    _print_plan(args, split, model, ranks)
    if earlier.rows:
        checkpoints.restore(model.net, model.trainer, contexts, len(earlier.rows), model.average)
        loaders[0].skip(len(earlier.rows))
    images = earlier.images or (split.record() if ranks.is_first else None)
    checkpoints.write_record(described, images)
    for note in describe_shared_images(images):
        print(note)
    files = EpochFiles(model.net, model.trainer, checkpoints, model.average, tensorboard)
    interrupted = _train(args, split, model, loaders, ranks, files, earlier.rows)
    outcome = ""
    if ranks.is_first:
        outcome = files.write_interrupted() if interrupted else ""
        files.finish(_title(args))
    if interrupted:
        print(f"multitrainer: interrupted{outcome}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _describe_network(args: argparse.Namespace, split: Split) -> NetworkRecord:
    name = args.model or defaults.MODEL
    transform = network.transform(name, args.input_size)
    return NetworkRecord(name.lower(), split.classes, transform.as_dict())


def _has_more_epochs(earlier: EarlierRun, args: argparse.Namespace, checkpoints: Checkpoints) -> bool:
    """Say so if the run has more epochs than are asked for, or all of them."""
    epochs, done = args.epochs or defaults.EPOCHS, len(earlier.rows)
    if done > epochs:
        default = "" if args.epochs else ", the default"
        print(
            f"the run in {checkpoints.out} has {done} epochs, more than --epochs {epochs}{default}; it stays as it is"
        )
    elif done == epochs:
        print(f"the run in {checkpoints.out} has all its {epochs} epochs; give more --epochs to train it longer")
    return done > epochs


def _required_files(args: argparse.Namespace, rows: int) -> list[str]:
    """Return the files that a run with so many rows of metrics has written beside its checkpoint."""
    average = run_folder.average_file(Path(), rows)
    return [run_folder.BEST, run_folder.LAST, *[str(average)] * (args.ema is not None)]


def _check_tensorboard(out: Path, ranks: Ranks) -> TensorBoardFile:
    file = TensorBoardFile(out)
    ranks.run_on_first(file.check)
    return file


def build_model(
    args: argparse.Namespace,
    split: Split,
    contexts: list[mx.Context],
    optimizer: OptimizerChoice,
    ranks: Ranks,
    earlier: EarlierRun,
) -> Model:
    """Build the network with the weights that the run starts from, and the trainer of its groups."""
    name, classes = args.model or defaults.MODEL, len(split.classes)
    net, head = network.build(name, classes)
    batch_size = _batch_size(args.batch_size or defaults.BATCH_SIZE, len(split.train), contexts, ranks)
    epochs = args.epochs or defaults.EPOCHS
    length = schedule.TrainingLength(len(split.train) // ranks.size, batch_size, epochs, args.accumulate or 1)
    objective = loss_options.make_objective(args, split, length)
    optimizer = schedule.add_scheduler(optimizer, args, length)
    network.initialize(net, contexts, name, classes, args.input_size)
    if network.has_weights(args) and not earlier.rows:  # a checkpoint holds all weights
        ranks.run_on_first(lambda: _load_weights(net, head, name, args))
    ranks.broadcast_parameters(net.collect_params().values())
    trainer = param_groups.make_trainer(net, head, args, length, optimizer, ranks, args.clip_grad)
    return Model(net, head, trainer, make_average(trainer, args.ema), contexts, length, objective)


def _load_weights(net: gluon.HybridBlock, head: str, model: str, args: argparse.Namespace) -> None:
    """Load the weights that --pretrained or --params asks for into all but the head."""
    network.load_backbone(net, head, zoo.download_weights(model) if args.pretrained else args.params)


def _batch_size(wanted: int, images: int, contexts: list[mx.Context], ranks: Ranks) -> int:
    """Return the size of this rank's batches: its share of `wanted`, if there are that many images."""
    usable = min(ranks.batch_share(wanted), images // ranks.size)
    if usable < len(contexts):
        raise UserError(
            f"a batch of {usable} images cannot be divided among {len(contexts)} devices; raise --batch-size"
        )
    if usable * ranks.size < wanted:
        print(f"batches of {usable * ranks.size}, not {wanted}: there are no more images to train on")
    return usable


def _print_plan(args: argparse.Namespace, split: Split, model: Model, ranks: Ranks) -> None:
    name, origin = args.model or defaults.MODEL, "from scratch"
    if network.has_weights(args):
        origin = f"from {args.params or 'the published weights'} with a new {model.head}"
    of_ranks = f" of {ranks.size} ranks" if ranks.size > 1 else ""
    print(f"{name} {origin}, on {', '.join(map(str, model.contexts))}{of_ranks}{describe_threads(model.contexts)}")
    print(f"{len(split.train)} images to train on, {len(split.val)} to measure on, {len(split.classes)} classes")
    if model.length.accumulate > 1:
        print(describe_updates(model.length, ranks))
    groups = describe_groups(model.trainer, model.length, args.warmup or 0)
    print(f"{groups}{loss_options.describe(args, split)}", end="", flush=True)


def describe_updates(length: schedule.TrainingLength, ranks: Ranks) -> str:
    """Say which batches make an update; for a run with --accumulate."""
    batches = length.batches_in(1)
    fewer = f"; an epoch has only {batches}" if batches < length.accumulate else ""
    images = length.batch_size * ranks.size
    return f"one update for every {length.accumulate} batches of {images} images, and at the end of an epoch{fewer}"


def _title(args: argparse.Namespace) -> str:
    origin = "fine-tuned" if network.has_weights(args) else "from scratch"
    return f"{args.model or defaults.MODEL} on {escape(args.data.resolve().name)}, {origin}"


def _train(
    args: argparse.Namespace,
    split: Split,
    model: Model,
    loaders: tuple[Loader, Loader],
    ranks: Ranks,
    files: EpochFiles,
    earlier: list[dict[str, Any]],
) -> bool:
    """Train all epochs that are left, and return whether Ctrl-C has interrupted them."""
    rows, epochs = list(earlier), model.length.epochs
    if _stops(args, rows, epochs):
        return False
    with Interrupts() as interrupts:
        try:
            folder = files.out if ranks.is_first else None
            task = _make_task(args, split, model, loaders, interrupts, folder)
            if task.note:
                print(task.note, flush=True)
            on = (task.train, task.val, model.contexts, epochs, interrupts)
            options = {"ranks": ranks, "seed": args.seed, "epochs_done": len(earlier)}
            options.update(objective=model.objective, average=model.average)
            for row in fit(task.block, model.trainer, *on, **options):
                rows.append(row)
                if ranks.is_first:
                    files.write_epoch(row)
                    print(_describe_epoch(row, epochs), flush=True)
                if _stops(args, rows, epochs):
                    break
        except multiprocessing.TimeoutError as error:
            raise no_worker_answered() from error
        except mx.MXNetError as error:
            raise network.explain_failure(error, args.model or defaults.MODEL) from error
        except KeyboardInterrupt:
            return True
    return False


def no_worker_answered() -> UserError:
    """Return the error that the processes that read images are too slow, or have ended."""
    return UserError(
        f"no worker answered within {batches.TIMEOUT} s; use fewer --workers, or give them more shared memory"
    )


def _stops(args: argparse.Namespace, rows: list[dict[str, Any]], epochs: int) -> bool:
    """Return whether --early-stop ends the run before its last epoch, and say so."""
    reason = explain_stop(rows, args.early_stop) if len(rows) < epochs else ""
    if reason:
        print(reason, flush=True)
    return bool(reason)


def _make_task(
    args: argparse.Namespace,
    split: Split,
    model: Model,
    loaders: tuple[Loader, Loader],
    interrupts: Interrupts,
    folder: Path | None,
) -> features.TrainingTask:
    """Return the task to train the network, or its head on cached features if nothing else is trained."""
    note = ""
    if args.no_augment and features.trains_head_only(model.net, model.head, model.trainer):
        if model.objective.mixup is None:
            in_order = batches.make_loader_in_order(split.train, model.length.batch_size, args.workers or 0)
            cache = features.FeatureCache(model.contexts, interrupts, args.feature_memory, folder)
            return features.cache_features(model.net, model.head, in_order, *loaders, cache)
        note = features.not_cached("--mixup mixes images, and the features of a sum are not the sum of the features")
    model.net.hybridize(static_alloc=True)
    return features.TrainingTask(model.net, *loaders, note)


def _describe_epoch(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  training {row['train_accuracy']:.1%}, loss {row['train_loss']:.4g}  "
        f"validation {row['val_accuracy']:.1%}, loss {row['val_loss']:.4g}  {row['images_per_second']:.0f} images/s"
    )
