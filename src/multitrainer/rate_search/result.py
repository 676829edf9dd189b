"""`LearningRateSearch`: the losses at rising learning rates, and the rate to train with."""

from __future__ import annotations

from typing import Any

import numpy as np

SMOOTHING_WIDTH = 4  # standard deviation in updates; chosen with the seeds from 100 on of benchmarks/learning_rate.py
FRACTION = 0.1  # of the rate with the smallest loss, as fastai's rule `minimum`
NOISE_RATIO = 2  # pure noise falls by less in 999 of 1,000 searches


class LearningRateSearch:
    """The losses that `find_learning_rate` found at rising learning rates.

    Parameters
    ----------
    rates : array of float
        The base learning rates, rising.
    losses : array of float
        For each rate the loss of the training step that was made with it. The last one may be what ended the search:
        four times the best loss, or not finite.

    Attributes
    ----------
    rates, losses : numpy.ndarray
        As given.
    smoothed : numpy.ndarray
        The finite losses, each averaged with its neighbours.

    Examples
    --------
    >>> import numpy as np
    >>> from multitrainer import LearningRateSearch
    >>> rates = np.geomspace(1e-4, 1, 41)
    >>> found = LearningRateSearch(rates, (np.log10(rates) + 1) ** 2)
    >>> found
    LearningRateSearch(41 rates from 0.0001 to 1, suggestion 0.01)
    """

    def __init__(self, rates: Any, losses: Any) -> None:
        self.rates, self.losses = np.asarray(rates, float), np.asarray(losses, float)
        self.smoothed = _smooth(self.losses[np.isfinite(self.losses)])

    def __repr__(self) -> str:
        problem = self._problem()
        outcome = "no suggestion" if problem else f"suggestion {self.suggestion:.2g}"
        return f"{type(self).__name__}({len(self.rates)} rates from {self.rates[0]:g} to {self.rates[-1]:g}, {outcome})"

    @property
    def suggestion(self) -> float:
        """The base learning rate to train with: a tenth of the one with the smallest smoothed loss.

        Raises
        ------
        ValueError
            If the losses show none: they never fall by more than their noise, or still fall at the highest rate.
        """
        problem = self._problem()
        if problem:
            raise ValueError(problem)
        return float(self.rates[self.smoothed.argmin()] * FRACTION)

    def plot(self, ax: Any = None) -> Any:
        """Plot the losses over the learning rates, and the suggestion if there is one.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            The axes to draw on; by default those of a new figure of matplotlib.pyplot.

        Returns
        -------
        matplotlib.axes.Axes
            With the losses as points, the smoothed losses as a line, and a vertical line at the suggestion.

        Raises
        ------
        ImportError
            If matplotlib is not installed, naming the extra that installs it.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'multitrainer[plot]'") from error
        ax = pyplot.subplots(layout="constrained")[1] if ax is None else ax
        ax.plot(self.rates, self.losses, ".", color="0.6", label="loss")
        ax.plot(self.rates[: len(self.smoothed)], self.smoothed, label="smoothed")
        if not self._problem():
            ax.axvline(self.suggestion, color="C1", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        ax.legend()
        return ax

    def _problem(self) -> str:
        """Explain why the losses show no learning rate; empty if they do."""
        if not len(self.smoothed):
            return f"no loss is finite, beginning at the learning rate {self.rates[0]:g}: choose a lower one"
        best = int(self.smoothed.argmin())
        noise = np.std(self.losses[: best + 1] - self.smoothed[: best + 1])
        if not self.smoothed[0] - self.smoothed[best] > max(NOISE_RATIO * noise, 1e-6 * abs(self.smoothed[0])):
            return (
                f"the loss never falls by more than its noise, from {self.smoothed[0]:.3g} at the learning rate "
                f"{self.rates[0]:g} to {self.smoothed[best]:.3g} at {self.rates[best]:g}: look at the plot, and search "
                "with larger batches, other rates (lowest=, highest=), or before the network is trained"
            )
        if best == len(self.losses) - 1:
            return f"the loss still falls at the highest learning rate, {self.rates[best]:g}: choose a higher one"
        return ""


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Return the averages of losses under a Gaussian window."""
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / SMOOTHING_WIDTH) ** 2)
    smoothed: np.ndarray = weights @ losses / weights.sum(axis=1)
    return smoothed
