"""`LearningRateSearch`: the losses at rising learning rates, and the rate to train with."""

from __future__ import annotations

import math
import numbers
from typing import Any, Mapping

import numpy as np

from ..trainer import MultiLRTrainer

# Standard deviation in decades: four of 100 updates from 1e-6 to 10. Chosen with the seeds from 100 on of
# benchmarks/learning_rate.py.
SMOOTHING_WIDTH = 4 * 7 / 99
FRACTION = 0.1  # of the rate with the smallest loss, as fastai's rule `minimum`
SIGNIFICANCE = 4  # standard deviations; pure noise falls by less in 998 of 1,000 searches, in 990 with 25 updates


class LearningRateSearch:
    """The losses that `find_learning_rate` found at rising learning rates.

    Parameters
    ----------
    rates : array of float
        The base learning rates, rising.
    losses : array of float
        For each rate the loss of the training step that was made with it. The last one may be what ended the search:
        four times the best loss, or not finite.
    ratios : dict of str to float, optional
        For each group with an optimizer of its own, by the name of the group: its rate over that of the trainer's
        optimizer.

    Attributes
    ----------
    rates, losses, ratios
        As given; the first two are arrays.
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

    def __init__(self, rates: Any, losses: Any, ratios: Mapping[str, float] | None = None) -> None:
        self.rates, self.losses, self.ratios = np.asarray(rates, float), np.asarray(losses, float), dict(ratios or {})
        finite = np.isfinite(self.losses)
        self._averaging = _averaging(self.rates[finite])
        self.smoothed = self._averaging @ self.losses[finite]

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

    def set_learning_rates(self, trainer: MultiLRTrainer, rate: float | None = None) -> None:
        """Set the learning rates of all optimizers of a trainer, in the proportion that was searched.

        The trainer's own optimizer gets the suggestion. Each group with an optimizer of its own gets it times its
        ratio: the base rates of the optimizers, when the search began, divided by that of the trainer's own.

        Parameters
        ----------
        trainer : MultiLRTrainer
            The one that was searched, or one with the same groups.
        rate : float, optional
            A base learning rate to use instead of the suggestion.

        Raises
        ------
        TypeError, ValueError
            Before anything has changed: if an argument has another type or value; if there is no suggestion and no
            `rate`; if an optimizer has an lr_scheduler, which alone sets its rate, naming the ``base_lr`` with which to
            build it again; or if other groups have optimizers than in the search.
        RuntimeError
            If parameter servers update and have the optimizer already; see `MultiLRTrainer.set_learning_rate`.
        """
        if not isinstance(trainer, MultiLRTrainer):
            raise TypeError(f"trainer must be a MultiLRTrainer, got {type(trainer).__name__}")
        rate = self.suggestion if rate is None else _checked_rate(rate)
        if set(trainer.optimizers) != set(self.ratios):
            raise ValueError(
                f"the search was made with {_optimizers_of(self.ratios)}, and this trainer has "
                f"{_optimizers_of(trainer.optimizers)}: search again with this trainer"
            )
        rates = {name: rate * ratio for name, ratio in self.ratios.items()}
        if any(optimizer.lr_scheduler for optimizer in (trainer.optimizer, *trainer.optimizers.values())):
            bases = [f"{rate:.6g} for the trainer", *(f"{rates[name]:.6g} for group {name!r}" for name in rates)]
            raise ValueError(
                "the learning rate cannot be set, because an lr_scheduler computes it from its base_lr: build the "
                f"lr_scheduler and the trainer again, with this base_lr and learning_rate: {', '.join(bases)}"
            )
        trainer.set_learning_rate(rate)
        for name, optimizer in trainer.optimizers.items():
            optimizer.set_learning_rate(rates[name])

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
        fall = self.smoothed[0] - self.smoothed[best]
        if not fall > max(SIGNIFICANCE * self._noise_of_fall(best), 1e-6 * abs(self.smoothed[0])):
            return (
                f"the loss never falls by more than its noise, from {self.smoothed[0]:.3g} at the learning rate "
                f"{self.rates[0]:g} to {self.smoothed[best]:.3g} at {self.rates[best]:g}: look at the plot, and search "
                "with larger batches, other rates (lowest=, highest=), or before the network is trained"
            )
        if best == len(self.losses) - 1:
            return (
                f"the loss still falls at the highest learning rate, {self.rates[best]:g}: search up to a higher rate "
                "(highest=)"
            )
        return ""

    def _noise_of_fall(self, place: int) -> float:
        """Estimate the standard deviation of a fall from the first average to another, if losses are only noisy."""
        residuals = self.losses[: place + 1] - self.smoothed[: place + 1]
        # What averaging leaves of noise with a variance of 1, summed over these places.
        left = ((np.eye(len(self.smoothed)) - self._averaging)[: place + 1] ** 2).sum()
        noise = math.sqrt((residuals**2).sum() / left) if left else 0.0
        return float(noise * np.linalg.norm(self._averaging[0] - self._averaging[place]))


def _averaging(rates: np.ndarray) -> np.ndarray:
    """Return the matrix that averages losses under a Gaussian window over the logarithms of their rates."""
    places = np.log10(rates)
    weights = np.exp(-0.5 * ((places[:, None] - places) / SMOOTHING_WIDTH) ** 2)
    averaging: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return averaging


def _checked_rate(rate: Any) -> float:
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise TypeError(f"rate must be a number, got {rate!r}")
    number = float(rate)
    if not 0 < number < math.inf:
        raise ValueError(f"rate must be a finite number above 0, got {rate!r}")
    return number


def _optimizers_of(groups: Mapping[str, Any]) -> str:
    return f"own optimizers for the groups {', '.join(map(repr, groups))}" if groups else "one optimizer"
