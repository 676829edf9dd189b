"""The suggestion follows its rule, or says why there is none."""

import sys

import matplotlib
import matplotlib.pyplot
import mxnet as mx
import numpy as np
import pytest

from multitrainer import LearningRateSearch, MultiLRTrainer, ParamGroup
from search_support import dropout_mlp

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
    with pytest.raises(ValueError, match=r"still falls at the highest learning rate, 10: search up to .*highest="):
        LearningRateSearch(RATES, np.linspace(2, 1, 101)).suggestion  # noqa: B018


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("best", [1e-3, 0.1, 1.0])
def test_fewer_rates_give_the_same_suggestion(step, best):
    """The losses are averaged over as many decades, however many rates these have."""
    every, some = LearningRateSearch(RATES, valley(best)), LearningRateSearch(RATES[::step], valley(best)[::step])
    assert some.smoothed[2:-2] == pytest.approx(every.smoothed[::step][2:-2], abs=0.01)
    between = 0.07  # decades from one rate to the next
    assert abs(np.log10(some.suggestion / every.suggestion)) < (step / 2 + 1) * between


def test_the_average_is_that_of_a_gaussian_over_logarithms():
    rates, losses = np.array([1e-3, 1e-2, 3e-2, 1.0]), np.array([4.0, 3.0, 1.0, 2.0])
    expected = []
    for place in np.log10(rates):
        weights = np.exp(-(((np.log10(rates) - place) / (28 / 99)) ** 2) / 2)
        expected.append((weights * losses).sum() / weights.sum())
    assert LearningRateSearch(rates, losses).smoothed == pytest.approx(expected)


@pytest.mark.parametrize("number", [25, 50, 100, 400])
def test_noise_alone_is_no_fall_at_any_number_of_rates(number):
    rates, generator = np.geomspace(1e-6, 10, number), np.random.RandomState(0)
    searches = [LearningRateSearch(rates, 1 + generator.normal(0, 0.2, number)) for _ in range(100)]
    assert sum("no suggestion" in repr(found) for found in searches) >= 98


def test_no_finite_loss():
    with pytest.raises(ValueError, match="no loss is finite"):
        LearningRateSearch([0.1], [np.nan]).suggestion  # noqa: B018


def test_the_average_of_a_constant_and_of_a_line_is_itself():
    assert LearningRateSearch(RATES, np.full(101, 3.0)).smoothed == pytest.approx(np.full(101, 3.0))
    assert LearningRateSearch(RATES, np.arange(101.0)).smoothed[20:-20] == pytest.approx(np.arange(101.0)[20:-20])


class TestSetLearningRates:
    FOUND = LearningRateSearch(RATES, valley(1.0), {"head": 0.02})

    @staticmethod
    def build(scheduler=None, own_scheduler=None):
        net = dropout_mlp()
        own = {"learning_rate": 0.002} if own_scheduler is None else {"lr_scheduler": own_scheduler}
        head = ParamGroup(net[2], name="head", optimizer="adam", optimizer_params=own)
        settings = {"learning_rate": 0.1} if scheduler is None else {"lr_scheduler": scheduler}
        return MultiLRTrainer([net, head], "sgd", settings)

    def test_of_all_optimizers_in_proportion(self):
        trainer, suggestion = self.build(), self.FOUND.suggestion
        self.FOUND.set_learning_rates(trainer)
        assert trainer.learning_rates == pytest.approx({"net": suggestion, "head": suggestion * 0.02}, rel=1e-12)

    def test_another_rate(self):
        trainer = self.build()
        self.FOUND.set_learning_rates(trainer, 0.5)
        assert trainer.learning_rates == pytest.approx({"net": 0.5, "head": 0.01}, rel=1e-12)

    @pytest.mark.parametrize(
        ("scheduled", "match"),
        [
            ((True, False), r"with this base_lr and learning_rate: 0\.5 for the trainer, 0\.01 for group 'head'$"),
            ((False, True), r"with this base_lr and learning_rate: 0\.5 for the trainer, 0\.01 for group 'head'$"),
            ((True, True), r"with this base_lr and learning_rate: 0\.5 for the trainer, 0\.01 for group 'head'$"),
        ],
    )
    def test_lr_schedulers(self, scheduled, match):
        trainer = self.build(*(mx.lr_scheduler.CosineScheduler(9, base_lr=0.3) if each else None for each in scheduled))
        before = trainer.learning_rates
        with pytest.raises(ValueError, match=match):
            self.FOUND.set_learning_rates(trainer, 0.5)
        assert trainer.learning_rates == before

    def test_other_groups(self):
        trainer = self.build()
        with pytest.raises(ValueError, match=r"made with one optimizer, and this trainer has .* groups 'head': search"):
            LearningRateSearch(RATES, valley(1.0)).set_learning_rates(trainer)
        assert trainer.learning_rates == {"net": 0.1, "head": 0.002}

    def test_a_stock_trainer(self):
        trainer = mx.gluon.Trainer(dropout_mlp().collect_params(), "sgd")
        with pytest.raises(TypeError, match=r"trainer must be a MultiLRTrainer, got Trainer"):
            self.FOUND.set_learning_rates(trainer)

    def test_without_a_suggestion(self):
        trainer, found = self.build(), LearningRateSearch(RATES, np.ones(101), {"head": 0.02})
        with pytest.raises(ValueError, match="never falls"):
            found.set_learning_rates(trainer)
        assert trainer.learning_rates == {"net": 0.1, "head": 0.002}
        found.set_learning_rates(trainer, 0.05)
        assert trainer.learning_rate == 0.05

    @pytest.mark.parametrize(
        ("error", "rate"),
        [(ValueError, 0), (ValueError, np.inf), (ValueError, np.nan), (TypeError, "1"), (TypeError, True)],
    )
    def test_no_rate(self, error, rate):
        with pytest.raises(error, match="rate must be a"):
            self.FOUND.set_learning_rates(self.build(), rate)


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
