"""The suggestion follows its rule, or says why there is none."""

import sys

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest

from multitrainer import LearningRateSearch

matplotlib.use("Agg")
RATES = np.geomspace(1e-6, 10, 101)


def valley(best, depth=1.0):
    """Return losses that are flat, fall to a smallest value at the rate ``best``, and rise."""
    return 2 - depth * np.exp(-(np.log10(RATES / best) ** 2))


@pytest.mark.parametrize("best", [1e-3, 0.1, 1.0])
def test_a_tenth_of_the_rate_with_the_smallest_loss(best):
    assert LearningRateSearch(RATES, valley(best)).suggestion == pytest.approx(
        best / 10, rel=0.1
    )  # rates are 17 % apart


@pytest.mark.parametrize("seed", range(10))
def test_noise_moves_it_little(seed):
    noise = np.random.RandomState(seed).normal(0, 0.1, len(RATES))
    assert 0.03 < LearningRateSearch(RATES, valley(1.0) + noise).suggestion < 0.3


def test_one_outlier_is_not_the_minimum():
    losses = valley(1.0)
    losses[20] = 0.9
    assert LearningRateSearch(RATES, losses).suggestion == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("end", [np.nan, np.inf, -np.inf])
def test_a_last_loss_that_is_not_finite_is_left_out(end):
    found = LearningRateSearch(RATES[:80], [*np.linspace(2, 1, 79), end])
    assert len(found.smoothed) == 79
    assert found.suggestion == pytest.approx(RATES[78] / 10)


@pytest.mark.parametrize("losses", [np.ones(101), np.linspace(1, 4, 101), np.linspace(1, 4, 101)[:20]])
def test_a_loss_that_never_falls(losses):
    found = LearningRateSearch(RATES[: len(losses)], losses)
    with pytest.raises(ValueError, match="never falls by more than its noise, from 1"):
        found.suggestion  # noqa: B018
    assert "no suggestion" in repr(found)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_fall(seed):
    losses = 1 + np.random.RandomState(seed).normal(0, 0.2, len(RATES))
    with pytest.raises(ValueError, match="never falls"):
        LearningRateSearch(RATES, losses).suggestion  # noqa: B018


def test_a_loss_that_still_falls_at_the_highest_rate():
    with pytest.raises(ValueError, match="still falls at the highest learning rate, 10"):
        LearningRateSearch(RATES, np.linspace(2, 1, 101)).suggestion  # noqa: B018


def test_no_finite_loss():
    with pytest.raises(ValueError, match="no loss is finite"):
        LearningRateSearch([0.1], [np.nan]).suggestion  # noqa: B018


def test_the_average_of_a_constant_and_of_a_line_is_itself():
    assert LearningRateSearch(RATES, np.full(101, 3.0)).smoothed == pytest.approx(np.full(101, 3.0))
    assert LearningRateSearch(RATES, np.arange(101.0)).smoothed[20:-20] == pytest.approx(np.arange(101.0)[20:-20])


class TestPlot:
    def test_it_draws_losses_average_and_suggestion(self):
        found = LearningRateSearch(RATES, valley(1.0))
        ax = matplotlib.pyplot.figure().add_subplot()
        assert found.plot(ax) is ax
        points, line, suggestion = ax.get_lines()
        assert list(points.get_ydata()) == list(found.losses)
        assert list(line.get_ydata()) == list(found.smoothed)
        assert suggestion.get_xdata()[0] == found.suggestion
        assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "learning rate", "loss")

    def test_without_a_suggestion_it_draws_the_losses(self):
        assert len(LearningRateSearch(RATES, np.ones(101)).plot().get_lines()) == 2

    def test_without_matplotlib_it_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"multitrainer\[plot\]"):
            LearningRateSearch(RATES, valley(1.0)).plot()
