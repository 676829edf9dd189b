"""``multitrainer evaluate``: measure the network of a finished run on images."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from .data import batches
from .data.image_check import check_readable
from .data.image_folder import ImageFolder
from .data.layout import check_outside
from .errors import UserError, require
from .evaluation import results
from .evaluation.measurement import Measurement, measure
from .evaluation.recorded_accuracy import RecordedAccuracy, describe_interruption, read_accuracy
from .evaluation.recorded_run import read_recorded_run
from .evaluation.selection import Selection, select_images
from .inference.classifier import Classifier, load_classifier
from .interrupts import Interrupts
from .output import escape
from .runs import artifacts, run_folder
from .training.devices import describe_threads


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    for package in ("matplotlib", "sklearn", "tqdm"):
        require(package)
    classifier = load_classifier(args.run, args.weights, args.ctx)
    run = read_recorded_run(args.run)
    root = args.data or run.find_folder()
    selection = select_images(root, args.split, classifier.classes, run.images)
    recorded = read_accuracy(args.run, args.weights) if selection.validates else None
    subject = _describe_subject(args.run, args.weights, root, selection)
    out = results.choose_folder(args.run, args.out, subject)
    check_outside(out, root, args.run)
    check_readable([path for path, _ in selection.images.items], root)
    artifacts.make_folder(out)
    measured = _measure(classifier, selection.images, args.batch_size or run.batch_size, args.workers)
    notes = [*selection.notes, *describe_interruption(args.run, args.weights)]
    text = results.as_json(subject, measured, recorded, notes)
    title = f"{escape(root.resolve().name)}: accuracy {measured.accuracy:.2%} on {measured.images} images"
    results.write_files(out, text, measured, title)
    if args.json is not None and str(args.json) != "-":
        artifacts.save_text(args.json, text)
    remarks = [*notes, *[_compare(recorded, measured, args)] * selection.validates]
    if str(args.json) == "-":
        print(text, end="")
        print("".join(f"multitrainer: {escape(remark)}\n" for remark in remarks), end="", file=sys.stderr)
    else:
        head = f"{run.model} of {args.run}, {args.weights} weights, on {selection.description}"
        head += f"; computed on {', '.join(map(str, classifier.contexts))}{describe_threads(classifier.contexts)}"
        tail = f"{out}: {results.JSON}, {results.PICTURE}"
        for line in (escape(head), *results.as_text(measured), "", *map(escape, remarks), escape(tail)):
            print(line)
    return 0


def _compare(recorded: RecordedAccuracy | None, measured: Measurement, args: argparse.Namespace) -> str:
    """Say whether the validation images give the accuracy that the run has recorded."""
    if recorded is None:
        return f"warning: {args.run / run_folder.METRICS} is gone or damaged, so there is no accuracy to compare with"
    return recorded.compare(measured.accuracy)


def _describe_subject(run: Path, weights: str, root: Path, selection: Selection) -> dict[str, Any]:
    """Return what tells this evaluation from others of the run."""
    file = run / f"{weights}.params"
    return {
        "run": str(run.resolve()),
        "weights": {"file": file.name, "crc32": artifacts.checksum(file)},
        "data": str(root.resolve()),
        "part": selection.part,
        "images": len(selection.images.items),
        "crc32": selection.checksum(root),
    }


def _measure(classifier: Classifier, images: ImageFolder, batch_size: int, workers: int) -> Measurement:
    images.preprocess = classifier.transform
    loader = batches.make_loader_in_order(images, batch_size, workers)
    bar = require("tqdm").tqdm(loader, desc="measuring", unit=" batches", leave=False, disable=None, dynamic_ncols=True)
    try:
        with Interrupts() as interrupts, bar:
            return measure(classifier, bar, interrupts)
    except multiprocessing.TimeoutError as error:
        raise UserError(
            f"no worker answered within {batches.TIMEOUT} s; use fewer --workers, or give them more shared memory"
        ) from error
