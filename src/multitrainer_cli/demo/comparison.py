"""The run of the command without ``--data``: train on MNIST, then on a few of scikit-learn's digits in five ways."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mxnet as mx

from multitrainer.images import ImageTransform

from ..arguments import defaults
from ..errors import INTERRUPTED, UserError, require
from ..interrupts import Interrupts
from ..runs import artifacts, run_folder
from ..runs.checkpoints import Checkpoints
from ..runs.earlier_run import check_network, resume_error
from ..runs.record import NetworkRecord
from ..training.optimizer import OptimizerChoice, default_rate
from .datasets import CLASSES, SIZE
from .fine_tuning import SHOTS, SOURCE_EPOCHS, UNSEEN, Run, Settings, fine_tune, make_trainer, train_source
from .intervals import Results, conclude, interval
from .picture import plot_results
from .processes import TrainingProcesses, count_cores
from .regimes import BASE, MODEL, REGIMES, build_network

DRAWS = 12
LEARNING_RATE = 0.03  # the middle one
FACTORS = (1 / 3, 1, 10 / 3)  # 0.01, 0.03, 0.1
PICTURE = "comparison.png"


def run(
    args: argparse.Namespace,
    contexts: list[mx.Context],
    optimizer: OptimizerChoice,
    checkpoints: Checkpoints,
) -> int:
    """Compare the regimes, and return the exit status."""
    began = time.perf_counter()
    settings = Settings(
        checkpoints.out / run_folder.SOURCE,
        args.epochs or defaults.DEMO_EPOCHS,
        _batch_size(args, contexts),
        optimizer,
        contexts,
    )
    rates = learning_rates(optimizer)
    runs = [Run(name, rate, args.seed + draw) for draw in range(DRAWS) for rate in rates for name in REGIMES]
    for name in REGIMES:  # what is wrong with the options is found before anything is trained
        make_trainer(settings, Run(name, rates[0], 0), *build_network(CLASSES, contexts))
    earlier = checkpoints.find_earlier(None, lambda _: _required_files(checkpoints.out))
    check_network(checkpoints.out, earlier, _describe_network())
    _check_rows(checkpoints.out, earlier.rows, runs)
    checkpoints.announce_resume()
    checkpoints.write_record(_describe_network())
    interrupted = False
    with Interrupts() as interrupts:
        try:
            with TrainingProcesses(_count_processes(contexts)) as processes:
                _train_source(settings, processes)
                checkpoints.record_source()
                interrupts.check()
                _train_runs(settings, runs[len(earlier.rows) :], processes, interrupts, checkpoints)
        except KeyboardInterrupt:
            interrupted = True
    _report(checkpoints, rates, time.perf_counter() - began)
    if interrupted:
        print(f"multitrainer: interrupted; what was measured is in {checkpoints.out}", file=sys.stderr)
    return INTERRUPTED if interrupted else 0


def _describe_network() -> NetworkRecord:
    """Return the record of the networks that tell digits apart; their input goes from -1 to 1."""
    transform = ImageTransform(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3)
    return NetworkRecord(MODEL, [str(label) for label in range(CLASSES)], transform.as_dict())


def learning_rates(optimizer: OptimizerChoice) -> list[float]:
    """Return the learning rates to compare at: 0.01, 0.03 and 0.1, or a third, 1 and 3.3 times --lr."""
    default = LEARNING_RATE if optimizer.name == "sgd" else default_rate(optimizer.name)
    middle = optimizer.settings.get("learning_rate", default)
    return [float(f"{middle * factor:.4g}") for factor in FACTORS]


def _batch_size(args: argparse.Namespace, contexts: list[mx.Context]) -> int:
    size, images = args.batch_size or defaults.DEMO_BATCH_SIZE, SHOTS * CLASSES
    if not len(contexts) <= size <= images:
        raise UserError(
            f"--batch-size {size}: without --data, expected at least one image for each device and at most the "
            f"{images} images to train on"
        )
    return int(size)


def _count_processes(contexts: list[mx.Context]) -> int:
    return count_cores() if all(context.device_type == "cpu" for context in contexts) else 1


def _required_files(out: Path) -> list[str]:
    """Return the files that a comparison with rows of metrics needs; the best network, if it is gone, is made again."""
    return [run_folder.SOURCE, *[run_folder.BEST] * (out / run_folder.BEST).exists()]


def _check_rows(out: Path, rows: list[dict[str, Any]], runs: list[Run]) -> None:
    """Refuse rows of metrics that are not those of the first runs, in their order."""
    for place, (row, run) in enumerate(itertools.zip_longest(rows, runs[: len(rows)]), 1):
        found = [row.get(field) for field in Run._fields]
        if run is None or found != list(run):
            expected = "no more rows" if run is None else f"the run {', '.join(map(str, run))}"
            where = f"{run_folder.METRICS}, line {place}"
            raise resume_error(out, f"is damaged ({where}: expected {expected}, got {', '.join(map(str, found))})")


def _train_source(settings: Settings, processes: TrainingProcesses) -> None:
    """Train on MNIST unless an earlier run has."""
    if settings.source.exists():
        print(f"MNIST: weights of an earlier run, {settings.source}", flush=True)
        return
    (accuracy,) = processes.map(train_source, [settings])
    print(
        f"MNIST: {SOURCE_EPOCHS} epochs, {accuracy:.1%} of unseen images right; weights kept in {settings.source}",
        flush=True,
    )


def _train_runs(
    settings: Settings,
    runs: list[Run],
    processes: TrainingProcesses,
    interrupts: Interrupts,
    checkpoints: Checkpoints,
) -> None:
    """Fine-tune in every way that is left, and write a row of metrics for each; then keep the best network."""
    print(
        f"scikit-learn's digits: {SHOTS} images of each to train on, {UNSEEN} to measure on; {len(REGIMES)} ways at "
        f"{len(FACTORS)} learning rates, {DRAWS} draws of the images: {len(runs)} runs",
        flush=True,
    )
    bar = require("tqdm").tqdm(total=len(runs), unit=" runs", leave=False, disable=None, dynamic_ncols=True)
    with bar, contextlib.closing(processes.map(functools.partial(fine_tune, settings), runs)) as rows:
        for row in rows:
            checkpoints.begin_run()
            checkpoints.metrics.add(row)
            bar.update()
            interrupts.check()
    best = checkpoints.out / run_folder.BEST
    if not best.exists():
        list(processes.map(functools.partial(fine_tune, settings, kept_in=best), [_best_run(checkpoints)]))


def _best_run(checkpoints: Checkpoints) -> Run:
    """Return the run on the first draw of the regime that is best with its rate tuned."""
    rows = checkpoints.metrics.rows
    results = Results(rows, sorted({row["learning_rate"] for row in rows}))
    name = max(REGIMES, key=lambda regime: statistics.fmean(results.tuned(regime)))
    return Run(name, results.best_rate(name), results.seeds[0])


def _report(checkpoints: Checkpoints, rates: list[float], seconds: float) -> None:
    """Print the table, and draw it, if two draws or more have ended."""
    out, rows = checkpoints.out, checkpoints.metrics.rows
    results = Results(rows, rates)
    if len(results.seeds) < 2:
        return
    unseen, draws = UNSEEN * CLASSES, len(results.seeds)
    print(f"\naccuracy on {unseen} unseen images in per cent: mean and 95 % interval, {draws} draws")
    header = "".join(f"{f'rate {rate:g}':>14}" for rate in rates)
    print(f"{'':<20}{header}{'rate tuned':>14}{'seconds an epoch':>18}")
    for name in REGIMES:
        cells = [results.at_rate(name, rate) for rate in rates] + [results.tuned(name)]
        accuracies = "".join(f"{interval(values)!s:>14}" for values in cells)
        of_regime = [row for row in rows if row["regime"] == name]
        pace = statistics.median(row["seconds_per_epoch"] or 0 for row in of_regime)
        print(f"{name:<20}{accuracies}{pace:>18.2f}")
    title = f"MNIST to scikit-learn's digits, {SHOTS} images of each"
    artifacts.save_figure(plot_results(results, title), out / PICTURE)
    print(f"\npoints above {BASE}, draw by draw")
    for name in REGIMES:
        if name != BASE:
            gains = [*(results.gain_at(name, rate) for rate in rates), results.gain(name, tuned=True)]
            print(f"{name:<20}" + "".join(f"{gain.signed():>14}" for gain in gains))
    print("\nrate tuned: each draw at the rate that is best on the other draws")
    print(f"{seconds:.0f} s in all; each process used one core and at most {max(row['megabytes'] for row in rows)} MB")
    print(
        f"files in {out}: {PICTURE}, metrics.jsonl, best.params, {run_folder.SOURCE}\n\n{conclude(results)}", flush=True
    )
