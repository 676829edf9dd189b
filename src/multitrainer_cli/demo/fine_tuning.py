"""What the processes of the comparison do: train the source, and fine-tune from it in one way."""

from __future__ import annotations

import resource
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import mxnet as mx
from mxnet import gluon

from multitrainer import MultiLRTrainer

from ..data.loader import Loader
from ..errors import UserError
from ..interrupts import Interrupts
from ..ranks.exchange import Ranks
from ..runs import artifacts
from ..training import features, network
from ..training.loop import DivergedError, fit, seed_everything
from ..training.optimizer import OptimizerChoice
from .datasets import CLASSES, load_digits, load_mnist
from .regimes import REGIMES, build_network

SHOTS, UNSEEN = 5, 40  # images a class to train on and to measure on
SOURCE_SHOTS, SOURCE_UNSEEN = 400, 34
SOURCE_EPOCHS, SOURCE_BATCH_SIZE = 5, 32
SOURCE_RATE = 0.01  # it falls along a cosine, so that the weights depend little on the last batches


class Settings(NamedTuple):
    """What all runs of a comparison have in common."""

    source: Path
    epochs: int
    batch_size: int
    optimizer: OptimizerChoice
    contexts: list[mx.Context]


class Run(NamedTuple):
    """One fine-tuning; the seed decides which images are drawn, their order, and the first values of the head."""

    regime: str
    learning_rate: float
    seed: int


def train_source(settings: Settings) -> float:
    """Train on MNIST, write the weights to the file of the settings, and return the accuracy on unseen images."""
    seed_everything(0)
    train, unseen = load_mnist().draw(SOURCE_SHOTS, SOURCE_UNSEEN, 0)
    net, _ = build_network(CLASSES, settings.contexts)
    updates = SOURCE_EPOCHS * len(train.labels) // SOURCE_BATCH_SIZE
    scheduler = mx.lr_scheduler.CosineScheduler(updates, base_lr=SOURCE_RATE)
    trainer = MultiLRTrainer(net, "sgd", {"lr_scheduler": scheduler, "momentum": 0.9, "wd": 1e-4})
    net.hybridize(static_alloc=True, static_shape=True)
    loaders = train.loader(SOURCE_BATCH_SIZE, Ranks(), shuffle=True), unseen.loader(100, Ranks())
    *_, row = fit(net, trainer, *loaders, settings.contexts, SOURCE_EPOCHS, Interrupts(), measure_every=SOURCE_EPOCHS)
    artifacts.save_parameters(net, settings.source)
    return float(row["val_accuracy"])


def fine_tune(settings: Settings, run: Run, kept_in: Path | None = None) -> dict[str, Any]:
    """Fine-tune on scikit-learn's digits, and return the row of metrics of the run.

    Parameters
    ----------
    settings : Settings
        What all runs have in common.
    run : Run
        What this one is.
    kept_in : Path, optional
        The file that the weights are written to.
    """
    train, unseen = load_digits().draw(SHOTS, UNSEEN, run.seed)
    seed_everything(run.seed)
    net, head = build_network(CLASSES, settings.contexts)
    if REGIMES[run.regime].from_source:
        _load_source(net, head, settings.source)
    trainer = make_trainer(settings, run, net, head)
    net.hybridize(static_alloc=True, static_shape=True)
    loaders = train.loader(settings.batch_size, Ranks(), shuffle=True), unseen.loader(100, Ranks())
    task = features.TrainingTask(net, *loaders)
    if features.trains_head_only(net, head, trainer):
        in_order = train.loader(settings.batch_size, Ranks())
        cache = features.FeatureCache(settings.contexts, Interrupts())
        task = features.cache_features(net, head, in_order, *loaders, cache)
    row = {**run._asdict(), **_train(task, trainer, settings, run.seed), "megabytes": _peak_memory()}
    if kept_in is not None:
        artifacts.save_parameters(net, kept_in)
    return row


def make_trainer(settings: Settings, run: Run, net: gluon.HybridBlock, head: str) -> MultiLRTrainer:
    """Make the trainer of a run, given its network and the path of the last layer."""
    name, options = settings.optimizer
    try:
        return MultiLRTrainer(
            REGIMES[run.regime].groups(net, head), name, {**options, "learning_rate": run.learning_rate}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"--optimizer {name}: {error}") from error


def _load_source(net: gluon.HybridBlock, head: str, source: Path) -> None:
    try:
        network.load_backbone(net, head, source)
    except UserError as error:
        raise UserError(f"{source} was not written by this command; delete it and run again ({error})") from error


def _peak_memory() -> int:
    """Return the most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # Linux counts in KB


def _train(task: features.TrainingTask, trainer: MultiLRTrainer, settings: Settings, seed: int) -> dict[str, Any]:
    """Train all epochs; training that diverges has learned nothing, and counts as accuracy 0."""
    train: Loader = task.train
    on = (train, task.val, settings.contexts, settings.epochs, Interrupts())
    try:
        rows = list(fit(task.block, trainer, *on, measure_every=settings.epochs, seed=seed))
    except DivergedError:
        return {"train_loss": None, "val_accuracy": 0.0, "seconds_per_epoch": None}
    return {
        "train_loss": rows[-1]["train_loss"],
        "val_accuracy": rows[-1]["val_accuracy"],
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in rows), 4),
    }
