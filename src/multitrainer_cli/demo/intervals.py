"""What the runs of a comparison show: means, intervals, and differences between regimes on the same draws."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple, Sequence

from ..errors import require
from .regimes import BASE, REGIMES


class Interval(NamedTuple):
    """A mean, and half the width of its 95 % interval by Student's t."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half:.1f}"

    def signed(self) -> str:
        """Return the text of a difference."""
        return f"{self.mean:+.1f} ± {self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Return the interval of the mean of two values or more."""
    count = len(values)
    quantile = float(require("scipy.stats").t.ppf(0.975, count - 1))
    return Interval(statistics.fmean(values), quantile * statistics.stdev(values) / count**0.5)


class Results:
    """The accuracies of all regimes at all learning rates on the same draws, in per cent.

    Parameters
    ----------
    rows : sequence of dict
        Rows of metrics. A draw counts if every regime has been trained on it at every rate.
    rates : sequence of float
        The learning rates.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], rates: Sequence[float]) -> None:
        found = {(row["regime"], row["learning_rate"], row["seed"]): 100 * row["val_accuracy"] for row in rows}
        cells = [(name, rate) for name in REGIMES for rate in rates]
        seeds = sorted({row["seed"] for row in rows})
        self.rates = tuple(rates)
        self.seeds = [seed for seed in seeds if all((*cell, seed) in found for cell in cells)]
        self._accuracies = {cell: [found[(*cell, seed)] for seed in self.seeds] for cell in cells}

    def at_rate(self, regime: str, rate: float) -> list[float]:
        """Return the accuracy on each draw at one learning rate."""
        return self._accuracies[regime, rate]

    def best_rate(self, regime: str, without: int | None = None) -> float:
        """Return the rate with the best mean over all draws, or all but one; of several, the lowest.

        Parameters
        ----------
        regime : str
            The name of the regime.
        without : int, optional
            The position of the draw to leave out.
        """

        def total(rate: float) -> float:
            values = self.at_rate(regime, rate)
            return sum(value for place, value in enumerate(values) if place != without)

        return max(sorted(self.rates), key=total)

    def tuned(self, regime: str) -> list[float]:
        """Return the accuracy on each draw at the rate that is best on the other draws.

        The best rate of all draws would favour the regime that chance favours most.
        """
        places = range(len(self.seeds))
        return [self.at_rate(regime, self.best_rate(regime, without=place))[place] for place in places]

    def over_rates(self, regime: str) -> list[float]:
        """Return the accuracy on each draw, averaged over the rates."""
        return [statistics.fmean(values) for values in zip(*(self.at_rate(regime, rate) for rate in self.rates))]

    def gain(self, regime: str, tuned: bool) -> Interval:
        """Return the difference to `BASE`, draw by draw: with tuned rates, or averaged over the rates."""
        measure = self.tuned if tuned else self.over_rates
        return _difference(measure(regime), measure(BASE))

    def gain_at(self, regime: str, rate: float) -> Interval:
        """Return the difference to `BASE` at one learning rate, draw by draw."""
        return _difference(self.at_rate(regime, rate), self.at_rate(BASE, rate))


def _difference(ones: list[float], others: list[float]) -> Interval:
    return interval([one - other for one, other in zip(ones, others)])


def conclude(results: Results) -> str:
    """Say what the intervals show, whatever that is."""
    others = [name for name in REGIMES if name != BASE]
    tuned = _compare({name: results.gain(name, tuned=True) for name in others})
    single = ", ".join(_count_rates(name, [results.gain_at(name, rate) for rate in results.rates]) for name in others)
    return (
        f"Beside {BASE}, on the same {len(results.seeds)} draws: with the learning rate tuned, {tuned}; "
        f"of the {len(results.rates)} rates, {single}."
    )


def _count_rates(name: str, gains: Sequence[Interval]) -> str:
    """Say at how many rates a regime gains and loses."""
    better, worse = (sum(sign * gain.mean > gain.half for gain in gains) for sign in (1, -1))
    return f"{name} gains at {better or 'none'} and loses at {worse or 'none'}"


def _compare(gains: dict[str, Interval]) -> str:
    """Say of each case whether it gains, loses, or shows no difference, the largest gain first."""
    phrases = []
    for name, gain in sorted(gains.items(), key=lambda item: -item[1].mean):
        mean, half = gain
        if abs(mean) <= half:
            phrases.append(f"{name} shows no difference ({gain.signed()})")
        else:
            phrases.append(f"{name} {'gains' if mean > 0 else 'loses'} {abs(mean):.1f} ± {half:.1f} points")
    return ", ".join(phrases)
