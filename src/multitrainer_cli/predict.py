"""``multitrainer predict``: the classes of images, as the network of a finished run predicts them."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import Iterable, Sequence

import mxnet as mx

from .errors import UserError
from .inference.classifier import Classifier, load_classifier
from .inference.image_paths import Skipped, find_images
from .interrupts import Interrupts
from .output import escape

_Ranking = Sequence["tuple[str, float]"]  # classes with their probabilities, the best first


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    skipped = Skipped()
    paths = find_images(args.images, args.null, skipped)
    classifier = load_classifier(args.run, args.weights, args.ctx)
    form = _as_json if args.json else _as_text
    count = 0
    while True:
        batch = list(itertools.islice(paths, args.batch_size))
        if not batch:
            break
        count += len(batch)
        # Only here: while it waits for standard input, Ctrl-C ends the command at once.
        with Interrupts() as interrupts:
            readable, inputs = _read(batch, classifier, skipped, interrupts)
            for path, ranking in zip(readable, classifier.rank(inputs, args.top) if inputs else []):
                print(form(path, ranking))
            sys.stdout.flush()
            interrupts.check()
    left_out = skipped.describe_left_out()
    if not count:
        raise UserError(f"there are no images to predict{left_out and f'; left out were files: {left_out}'}")
    if left_out:
        print(f"multitrainer: files left out: {left_out}", file=sys.stderr)
    return 1 if skipped.failures else 0


def _read(
    paths: Iterable[str], classifier: Classifier, skipped: Skipped, interrupts: Interrupts
) -> tuple[list[str], list[mx.nd.NDArray]]:
    """Return the paths of the images that can be read, and the inputs of the network for them."""
    readable, inputs = [], []
    for path in paths:
        interrupts.check()
        try:
            inputs.append(classifier.transform(path))
            readable.append(path)
        except (OSError, ValueError) as error:
            skipped.report(path, error)
    return readable, inputs


def _as_text(path: str, ranking: _Ranking) -> str:
    return "\t".join([escape(path), *(f"{escape(name)}\t{probability:.4f}" for name, probability in ranking)])


def _as_json(path: str, ranking: _Ranking) -> str:
    classes = [{"class": name, "probability": round(probability, 6)} for name, probability in ranking]
    return json.dumps({"image": path, "classes": classes}, allow_nan=False)
