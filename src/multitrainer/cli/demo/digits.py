"""The embedded default: what parameter groups are good for, shown on scikit-learn's handwritten digits.

A small network learns 0 to 4, then 5 to 9 from ten images each, in four ways.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import gluon

from ... import MultiLRTrainer, ParamGroup
from ..data.loader import Loader, RankSampler, batch_size_of_rank
from ..errors import INTERRUPTED, UserError, require
from ..ranks.ranks import Ranks
from ..runs import artifacts, figures, run_folder
from ..runs.resume import Checkpoints
from ..training import features, network
from ..training.interrupts import Interrupts
from ..training.loop import fit, seed_everything

MODEL = "cifar_resnet20_v1"
SIZE = 32
CLASSES = 5
SHOTS = 10
SEEDS = 3
UNSEEN = 80  # a class, to measure on
EPOCHS = 20
SOURCE = "digits-source.params"
MEASURE_EVERY = 5
BATCH_SIZE = 10
LEARNING_RATE = 0.05  # of the source, and of what is fine-tuned from it unless --lr says otherwise
SOURCE_EPOCHS = 5
SOURCE_BATCH_SIZE = 32
SOURCE_SHOTS, SOURCE_UNSEEN = 140, 34  # of the 174 scans or more that there are of each digit


class Regime(NamedTuple):
    """A way to train: from which weights, and the multiplier of everything but the head."""

    name: str
    from_source: bool
    backbone: float


REGIMES = (
    Regime("from scratch", False, 1.0),
    Regime("one learning rate", True, 1.0),
    Regime("backbone at 0.1", True, 0.1),
    Regime("backbone frozen", True, 0.0),
)


class Digits(NamedTuple):
    """Images as the network takes them, and labels from 0 to 4."""

    images: np.ndarray
    labels: np.ndarray

    def draw(self, shots: int, unseen: int, seed: int) -> tuple[Digits, Digits]:
        """Return `shots` images of every class to train on, and `unseen` others to measure on."""
        generator = np.random.RandomState(seed)
        orders = [generator.permutation(np.flatnonzero(self.labels == label)) for label in range(CLASSES)]
        few = np.concatenate([order[:shots] for order in orders])
        others = np.concatenate([order[shots : shots + unseen] for order in orders])
        return Digits(self.images[few], self.labels[few]), Digits(self.images[others], self.labels[others])

    def loader(self, batch_size: int, ranks: Ranks, shuffle: bool = False) -> Loader:
        """Return batches of this rank's share; when shuffled, all of one size."""
        order = RankSampler(len(self.labels), ranks, np.random.shuffle if shuffle else None)
        batches = gluon.data.BatchSampler(order, batch_size, "rollover" if shuffle else "keep")
        return Loader(gluon.data.ArrayDataset(self.images, self.labels), batches)


class Job(NamedTuple):
    """What was asked for on the command line, and with whom it is done."""

    args: argparse.Namespace
    contexts: list[mx.Context]
    optimizer: str
    settings: dict[str, float]
    ranks: Ranks
    checkpoints: Checkpoints
    interrupts: Interrupts


def load(first: int) -> Digits:
    """Return the scans of five digits, beginning with `first`, scaled from 8 x 8 to the network's size."""
    scans = require("sklearn.datasets").load_digits()
    chosen = (scans.target >= first) & (scans.target < first + CLASSES)
    small = mx.nd.array(scans.images[chosen][:, None] / 8 - 1)
    large = mx.nd.contrib.BilinearResize2D(small, height=SIZE, width=SIZE)
    images = mx.nd.broadcast_axes(large, axis=1, size=3).asnumpy()
    return Digits(images, scans.target[chosen].astype(np.int32) - first)


def run(
    args: argparse.Namespace,
    contexts: list[mx.Context],
    optimizer: str,
    settings: dict[str, float],
    ranks: Ranks,
    checkpoints: Checkpoints,
) -> int:
    """Compare the regimes and return the exit status."""
    began = time.perf_counter()
    if optimizer == "sgd":
        settings = {"learning_rate": LEARNING_RATE, **settings}
    epochs, metrics = args.epochs or EPOCHS, checkpoints.metrics
    before = checkpoints.find(None, lambda rows: _files_after(rows, epochs)).rows
    checkpoints.announce()
    checkpoints.record()
    interrupted = False
    with Interrupts() as interrupts:
        job = Job(args, contexts, optimizer, settings, ranks, checkpoints, interrupts)
        try:
            source = _source(job)
            for row, net, trainer in _compare(job, source, before):
                if not ranks.first:
                    continue
                number = len(metrics.rows) + 1
                if row["val_accuracy"] is not None:
                    checkpoints.save(net, trainer, number)
                metrics.add(row)
                if row["val_accuracy"] is not None:
                    checkpoints.remove_before(number)
        except KeyboardInterrupt:
            interrupted = True
    if not ranks.first:
        return INTERRUPTED if interrupted else 0
    return _report(checkpoints.out, metrics.rows, epochs, time.perf_counter() - began, interrupted)


def _files_after(rows: list[dict[str, Any]], epochs: int) -> list[str]:
    """Return the files that a run has written with these rows of metrics, beside its checkpoint."""
    ended = any(row["epoch"] == epochs for row in rows)
    return [SOURCE, *[run_folder.BEST, run_folder.LAST] * ended]


def _compare(
    job: Job, source: Path, before: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], gluon.Block, MultiLRTrainer]]:
    """Train under every regime, draw after draw; give the metrics epoch by epoch, with what they are of."""
    args = job.args
    digits = load(CLASSES)
    epochs, batch_size = args.epochs or EPOCHS, batch_size_of_rank(args.batch_size or BATCH_SIZE, job.ranks)
    best = max((row["val_accuracy"] for row in before if row["epoch"] == epochs), default=-1.0)
    print(f"5 to 9: {SHOTS} images of each to train on, {UNSEEN} to measure on, {SEEDS} draws")
    for number, regime in itertools.product(range(SEEDS), REGIMES):
        seed = args.seed + number
        done = sum((row["regime"], row["seed"]) == (regime.name, seed) for row in before)
        if done == epochs:
            continue
        train, unseen = digits.draw(SHOTS, UNSEEN, seed)
        seed_everything(seed)
        net, head, trainer = _prepare(job, regime, source)
        batches = train.loader(batch_size, job.ranks, shuffle=True), unseen.loader(100, job.ranks)
        if done:
            job.checkpoints.restore(net, trainer, job.contexts, len(before))
            batches[0].skip(done)
        trained = features.TrainingTask(net, *batches)
        if features.trains_head_only(net, head, trainer):
            every = train.loader(batch_size, Ranks())
            cache = features.FeatureCache(job.contexts, job.interrupts)
            trained = features.cache_features(net, head, every, *batches, cache)
        if number == 0:
            print(f"\n{regime.name}\n{trainer.summary()}", flush=True)
        title = f"{regime.name}, draw {number + 1}/{SEEDS}: "
        options = {"measure_every": MEASURE_EVERY, "ranks": job.ranks, "seed": seed, "epochs_done": done}
        on = (trained.train, trained.val, job.contexts, epochs, job.interrupts)
        for row in fit(trained.block, trainer, *on, title, **options):
            job.checkpoints.begin()
            if job.ranks.first and row["epoch"] == epochs:
                artifacts.save_parameters(net, job.checkpoints.out / run_folder.LAST)
                if row["val_accuracy"] > best:
                    best = row["val_accuracy"]
                    artifacts.save_parameters(net, job.checkpoints.out / run_folder.BEST)
            yield {"regime": regime.name, "seed": seed, **row}, net, trainer


def _source(job: Job) -> Path:
    """Train on 0 to 4, once: the weights are kept and used again."""
    path: Path = job.checkpoints.out / SOURCE
    ranks = job.ranks
    if ranks.sum(np.array([float(ranks.first and path.exists())]))[0]:
        print(f"0 to 4: weights of an earlier run, {path}")
        return path
    seed_everything(0)
    train, unseen = load(0).draw(SOURCE_SHOTS, SOURCE_UNSEEN, 0)
    net, _ = network.build(MODEL, CLASSES)
    network.initialize(net, job.contexts, MODEL, CLASSES)
    ranks.broadcast(net.collect_params().values())
    trainer = ranks.trainer([ParamGroup(net)], "sgd", {"learning_rate": LEARNING_RATE, "momentum": 0.9, "wd": 1e-4})
    net.hybridize(static_alloc=True, static_shape=True)
    batches = train.loader(batch_size_of_rank(SOURCE_BATCH_SIZE, ranks), ranks, shuffle=True), unseen.loader(100, ranks)
    fitted = fit(net, trainer, *batches, job.contexts, SOURCE_EPOCHS, job.interrupts, "0 to 4, ", SOURCE_EPOCHS, ranks)
    *_, row = fitted
    if ranks.first:
        artifacts.save_parameters(net, path)
    print(f"0 to 4: {SOURCE_EPOCHS} epochs, {row['val_accuracy']:.1%} of unseen images right; weights kept in {path}")
    return path


def _prepare(job: Job, regime: Regime, source: Path) -> tuple[gluon.HybridBlock, str, MultiLRTrainer]:
    """Make the network as the regime starts it, the path of its last layer, and its trainer."""
    net, head = network.build(MODEL, CLASSES)
    network.initialize(net, job.contexts, MODEL, CLASSES)
    if job.ranks.first and regime.from_source:
        try:
            network.load_backbone(net, head, source)
        except UserError as error:
            raise UserError(f"{source} is no file of this command; delete it and run again ({error})") from error
    job.ranks.broadcast(net.collect_params().values())
    groups = [ParamGroup(net, regime.backbone, name="backbone"), ParamGroup(network.find(net, head), 1, name=head)]
    try:
        trainer = job.ranks.trainer(groups, job.optimizer, job.settings)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    net.hybridize(static_alloc=True, static_shape=True)
    return net, head, trainer


def _report(out: Path, rows: list[dict[str, Any]], epochs: int, seconds: float, interrupted: bool) -> int:
    """Print the comparison of the runs that came to their end, and draw it."""
    final = {regime.name: [r for r in rows if (r["regime"], r["epoch"]) == (regime.name, epochs)] for regime in REGIMES}
    names = [name for name, ends in final.items() if ends]
    if names:
        print(f"\n{'regime':<20}{'accuracy':>10}{'spread':>9}{'seconds an epoch':>18}   each draw")
        for name in names:
            values = [100 * row["val_accuracy"] for row in final[name]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            pace = statistics.median(row["seconds"] for row in rows if row["regime"] == name)
            each = ", ".join(f"{value:.1f}" for value in values)
            print(f"{name:<20}{statistics.mean(values):>8.1f} %{spread:>9.1f}{pace:>18.2f}   {each}")
        title = f"Digits 5 to 9, {SHOTS} images of each, after learning 0 to 4"
        ended = {(row["regime"], row["seed"]) for ends in final.values() for row in ends}
        complete = [row for row in rows if (row["regime"], row["seed"]) in ended and row["val_accuracy"] is not None]
        artifacts.save_figure(figures.comparison(complete, names, title), out / "comparison.png")
        print(
            f"\naccuracy on {UNSEEN * CLASSES} unseen images after {epochs} epochs: mean and standard deviation "
            "over the draws.\nA difference within the spread says nothing; another --lr can change the order."
        )
        print(f"{out}: metrics.jsonl, comparison.png, best.params, last.params; {seconds:.0f} s in all", flush=True)
    if interrupted:
        print(f"multitrainer: interrupted; what was measured is in {out}", file=sys.stderr)
        return INTERRUPTED
    return 0
