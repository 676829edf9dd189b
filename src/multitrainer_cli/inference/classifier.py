"""The network of a finished run on the devices of --ctx: scores for a batch, and classes in order of probability."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from multitrainer import load_run
from multitrainer.images import ImageTransform

from ..errors import UserError, require
from ..training.devices import parse_contexts
from ..training.loop import split_batch


class Classifier(NamedTuple):
    """A network, the names of its outputs, the transform of its images, and the devices that share a batch."""

    net: gluon.HybridBlock
    classes: list[str]
    transform: ImageTransform
    contexts: list[mx.Context]

    def score(self, batch: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the scores before the softmax, on the CPU; one row for each input of the network.

        Raises
        ------
        UserError
            If a score is not a finite number.
        """
        parts = [self.net(part) for part in split_batch(batch, self.contexts)]
        scores = mx.nd.concat(*(part.as_in_context(mx.cpu()) for part in parts), dim=0)
        if not np.isfinite(scores.asnumpy()).all():
            raise UserError("the network gives scores that are not finite numbers; its weights are of no use")
        return scores

    def rank(self, inputs: Sequence[mx.nd.NDArray], count: int) -> list[list[tuple[str, float]]]:
        """Return, for each input, the classes with the highest scores and their probabilities, the best first."""
        scores = self.score(mx.nd.stack(*inputs))
        # By score: a probability of 1 leaves the others equal at 0. A stable sort puts equal ones in their own order.
        order = np.argsort(-scores.asnumpy(), axis=1, kind="stable")[:, :count]
        probabilities = np.take_along_axis(scores.softmax().asnumpy(), order, axis=1)
        return [
            [(self.classes[place], float(value)) for place, value in zip(places, values)]
            for places, values in zip(order, probabilities)
        ]


def load_classifier(run: Path, weights: str, ctx: str | None) -> Classifier:
    """Load the network of a run.

    Parameters
    ----------
    run : Path
        The folder of the run.
    weights : str
        ``"best"`` or ``"last"``.
    ctx : str or None
        The value of --ctx.

    Raises
    ------
    UserError
        If the run cannot be loaded, or a package that this needs is missing.
    """
    for package in ("gluoncv", "PIL.Image"):
        require(package)
    contexts = parse_contexts(ctx)
    try:
        return Classifier(*load_run(run, weights, contexts), contexts)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
