"""The run of the command without ``--data``: train a network on 0 to 4, then on a few images of 5 to 9 in four ways."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Tuple

import mxnet as mx
from mxnet import gluon

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.images import ImageTransform

from ..arguments import defaults
from ..errors import INTERRUPTED, UserError
from ..interrupts import Interrupts
from ..ranks.exchange import Ranks
from ..runs import artifacts, figures, run_folder
from ..runs.checkpoints import Checkpoints
from ..runs.record import NetworkRecord
from ..training import features, network
from ..training.loop import fit, seed_everything
from ..training.optimizer import OptimizerChoice
from .digits import CLASSES, SIZE, LabelledImages, load
from .regimes import MODEL, REGIMES, Regime, build_network

SHOTS, UNSEEN, DRAWS = 10, 80, 3  # images a class to train on and to measure on, and how often they are drawn
MEASURE_EVERY = 5  # epochs
LEARNING_RATE = 0.05  # on the source, and on the target unless --lr is given
SOURCE_FILE = "digits-source.params"
SOURCE_EPOCHS, SOURCE_BATCH_SIZE = 5, 32
SOURCE_SHOTS, SOURCE_UNSEEN = 140, 34  # of the 174 scans or more of each digit


_Epoch = Tuple[Dict[str, Any], gluon.Block, MultiLRTrainer]  # the metrics of an epoch, and what they measure


class _Demo(NamedTuple):
    """What the command line asks for, and where and with whom it is done."""

    args: argparse.Namespace
    contexts: list[mx.Context]
    optimizer: OptimizerChoice
    ranks: Ranks
    checkpoints: Checkpoints
    interrupts: Interrupts

    @property
    def epochs(self) -> int:
        """Epochs of each regime."""
        return int(self.args.epochs or defaults.DEMO_EPOCHS)

    @property
    def batch_size(self) -> int:
        """Images in a batch of this rank."""
        return self.ranks.batch_share(self.args.batch_size or defaults.DEMO_BATCH_SIZE)


def run(
    args: argparse.Namespace,
    contexts: list[mx.Context],
    optimizer: OptimizerChoice,
    ranks: Ranks,
    checkpoints: Checkpoints,
) -> int:
    """Compare the regimes, and return the exit status."""
    began = time.perf_counter()
    if optimizer.name == "sgd":
        optimizer = optimizer._replace(settings={"learning_rate": LEARNING_RATE, **optimizer.settings})
    epochs = args.epochs or defaults.DEMO_EPOCHS
    earlier = checkpoints.find_earlier(None, lambda rows: _required_files(rows, epochs)).rows
    checkpoints.announce_resume()
    checkpoints.write_record(_describe_network())
    interrupted = False
    with Interrupts() as interrupts:
        demo = _Demo(args, contexts, optimizer, ranks, checkpoints, interrupts)
        try:
            for row, net, trainer in _train_all(demo, _train_source(demo), earlier):
                _save_epoch(demo, row, net, trainer)
        except KeyboardInterrupt:
            interrupted = True
    if ranks.is_first:
        _report(checkpoints.out, checkpoints.metrics.rows, epochs, time.perf_counter() - began)
        if interrupted:
            print(f"multitrainer: interrupted; what was measured is in {checkpoints.out}", file=sys.stderr)
    return INTERRUPTED if interrupted else 0


def _describe_network() -> NetworkRecord:
    """Return the record of the networks that tell 5 to 9 apart; their input goes from -1 to 1."""
    transform = ImageTransform(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3)
    return NetworkRecord(MODEL, [str(CLASSES + label) for label in range(CLASSES)], transform.as_dict())


def _required_files(rows: list[dict[str, Any]], epochs: int) -> list[str]:
    """Return the files that a run with these rows of metrics has written beside its checkpoint."""
    ended = any(row["epoch"] == epochs for row in rows)
    return [SOURCE_FILE, *[run_folder.BEST, run_folder.LAST] * ended]


def _train_source(demo: _Demo) -> Path:
    """Train on 0 to 4 unless an earlier run has, and return the file of the weights."""
    path: Path = demo.checkpoints.out / SOURCE_FILE
    ranks = demo.ranks
    if ranks.any(ranks.is_first and path.exists()):
        print(f"0 to 4: weights of an earlier run, {path}")
        return path
    seed_everything(0)
    train, unseen = load(0).draw(SOURCE_SHOTS, SOURCE_UNSEEN, 0)
    net, _ = build_network(CLASSES, demo.contexts)
    ranks.broadcast_parameters(net.collect_params().values())
    settings = {"learning_rate": LEARNING_RATE, "momentum": 0.9, "wd": 1e-4}
    trainer = ranks.make_trainer([ParamGroup(net)], "sgd", settings)
    net.hybridize(static_alloc=True, static_shape=True)
    batches = train.loader(ranks.batch_share(SOURCE_BATCH_SIZE), ranks, shuffle=True), unseen.loader(100, ranks)
    options: dict[str, Any] = {"title": "0 to 4, ", "measure_every": SOURCE_EPOCHS, "ranks": ranks}
    *_, row = fit(net, trainer, *batches, demo.contexts, SOURCE_EPOCHS, demo.interrupts, **options)
    if ranks.is_first:
        artifacts.save_parameters(net, path)
    print(f"0 to 4: {SOURCE_EPOCHS} epochs, {row['val_accuracy']:.1%} of unseen images right; weights kept in {path}")
    return path


def _train_all(demo: _Demo, source: Path, earlier: list[dict[str, Any]]) -> Iterator[_Epoch]:
    """Train under every regime, draw after draw, and leave out the epochs that have `earlier` rows of metrics."""
    digits = load(CLASSES)
    print(f"5 to 9: {SHOTS} images of each to train on, {UNSEEN} to measure on, {DRAWS} draws")
    for draw, regime in itertools.product(range(DRAWS), REGIMES):
        yield from _train_regime(demo, regime, draw, digits, source, earlier)


def _train_regime(
    demo: _Demo, regime: Regime, draw: int, digits: LabelledImages, source: Path, earlier: list[dict[str, Any]]
) -> Iterator[_Epoch]:
    ranks, seed = demo.ranks, demo.args.seed + draw
    done = sum((row["regime"], row["seed"]) == (regime.name, seed) for row in earlier)
    if done == demo.epochs:
        return
    train, unseen = digits.draw(SHOTS, UNSEEN, seed)
    seed_everything(seed)
    net, head, trainer = _prepare(demo, regime, source)
    batches = train.loader(demo.batch_size, ranks, shuffle=True), unseen.loader(100, ranks)
    if done:
        demo.checkpoints.restore(net, trainer, demo.contexts, len(earlier))
        batches[0].skip(done)
    task = features.TrainingTask(net, *batches)
    if features.trains_head_only(net, head, trainer):
        in_order = train.loader(demo.batch_size, Ranks())
        cache = features.FeatureCache(demo.contexts, demo.interrupts)
        task = features.cache_features(net, head, in_order, *batches, cache)
    if draw == 0:
        print(f"\n{regime.name}\n{trainer.summary()}", flush=True)
    options: dict[str, Any] = {
        "title": f"{regime.name}, draw {draw + 1}/{DRAWS}: ",
        "measure_every": MEASURE_EVERY,
        "ranks": ranks,
        "seed": seed,
        "epochs_done": done,
    }
    on = (task.train, task.val, demo.contexts, demo.epochs, demo.interrupts)
    for row in fit(task.block, trainer, *on, **options):
        yield {"regime": regime.name, "seed": seed, **row}, net, trainer


def _prepare(demo: _Demo, regime: Regime, source: Path) -> tuple[gluon.HybridBlock, str, MultiLRTrainer]:
    """Make the network with the weights that the regime starts from, the path of its last layer, and its trainer."""
    net, head = build_network(CLASSES, demo.contexts)
    if demo.ranks.is_first and regime.from_source:
        try:
            network.load_backbone(net, head, source)
        except UserError as error:
            raise UserError(f"{source} was not written by this command; delete it and run again ({error})") from error
    demo.ranks.broadcast_parameters(net.collect_params().values())
    try:
        trainer = demo.ranks.make_trainer(regime.groups(net, head), *demo.optimizer)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    net.hybridize(static_alloc=True, static_shape=True)
    return net, head, trainer


def _save_epoch(demo: _Demo, row: dict[str, Any], net: gluon.Block, trainer: MultiLRTrainer) -> None:
    """On rank 0, write the files of an epoch that has ended."""
    checkpoints = demo.checkpoints
    if not demo.ranks.is_first:
        return
    checkpoints.begin_run()
    if row["epoch"] == demo.epochs:
        ended = [other["val_accuracy"] for other in checkpoints.metrics.rows if other["epoch"] == demo.epochs]
        artifacts.save_parameters(net, checkpoints.out / run_folder.LAST)
        if row["val_accuracy"] > max(ended, default=-1.0):
            artifacts.save_parameters(net, checkpoints.out / run_folder.BEST)
    number = len(checkpoints.metrics.rows) + 1
    measured = row["val_accuracy"] is not None
    if measured:
        checkpoints.save(net, trainer, number)
    checkpoints.metrics.add(row)
    if measured:
        checkpoints.remove_before(number)


def _report(out: Path, rows: list[dict[str, Any]], epochs: int, seconds: float) -> None:
    """Print and draw the comparison of the regimes that have ended on at least one draw."""
    final = {regime.name: [r for r in rows if (r["regime"], r["epoch"]) == (regime.name, epochs)] for regime in REGIMES}
    names = [name for name, ends in final.items() if ends]
    if not names:
        return
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
    artifacts.save_figure(figures.plot_comparison(complete, names, title), out / "comparison.png")
    print(
        f"\naccuracy on {UNSEEN * CLASSES} unseen images after {epochs} epochs: mean and standard deviation "
        "over the draws.\nA difference within the spread says nothing; another --lr can change the order."
    )
    print(f"{out}: metrics.jsonl, comparison.png, best.params, last.params; {seconds:.0f} s in all", flush=True)
