"""The figures of the comparison against closed formulas and SciPy's tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import stats

from multitrainer_cli.demo.intervals import Results, conclude, interval
from multitrainer_cli.demo.regimes import BASE, REGIMES

RATES = (0.01, 0.03, 0.1)


def rows_for(accuracy, seeds=4):
    """Return rows of metrics whose accuracy is a function of regime, rate and seed."""
    cells = itertools.product(range(seeds), RATES, REGIMES)
    return [
        {"regime": name, "learning_rate": rate, "seed": seed, "val_accuracy": accuracy(name, rate, seed)}
        for seed, rate, name in cells
    ]


def random_results(seed, seeds=6):
    generator = np.random.RandomState(seed)
    return Results(rows_for(lambda *_: generator.rand(), seeds), RATES)


def test_an_interval_is_students():
    values = [61.0, 72.5, 80.0, 55.5]
    mean, half = interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(tuple(expected))
    assert str(interval([1.0, 3.0])) == f"2.0 ± {12.7062:.1f}"


def test_a_gain_is_measured_draw_by_draw():
    results = random_results(0)
    for name, tuned in itertools.product(REGIMES, (True, False)):
        if name == BASE:
            continue
        measure = results.tuned if tuned else results.over_rates
        mean, half = results.gain(name, tuned)
        expected = stats.ttest_rel(measure(name), measure(BASE)).confidence_interval(0.95)
        assert (mean - half, mean + half) == pytest.approx(tuple(expected))


def test_a_rate_is_tuned_on_the_other_draws():
    # On draws 0 and 1 the middle rate is best by far, on draw 2 the first.
    table = {0.01: [0.1, 0.1, 0.9], 0.03: [0.8, 0.8, 0.2], 0.1: [0.0, 0.0, 0.0]}
    results = Results(rows_for(lambda _, rate, seed: table[rate][seed], 3), RATES)
    assert results.best_rate(BASE) == 0.03
    assert [results.best_rate(BASE, without=place) for place in range(3)] == [0.01, 0.01, 0.03]
    assert results.tuned(BASE) == pytest.approx([10, 10, 20])
    assert results.over_rates(BASE) == pytest.approx([30, 30, 110 / 3])


def test_of_equal_rates_the_lowest_is_best():
    assert Results(rows_for(lambda *_: 0.5), RATES).best_rate(BASE) == 0.01


def test_a_draw_counts_when_all_its_runs_have_ended():
    rows = rows_for(lambda *_: 0.5, 3)
    assert Results(rows, RATES).seeds == [0, 1, 2]
    assert Results(rows[:-1], RATES).seeds == [0, 1]
    assert Results(rows[: len(rows) // 3 - 1], RATES).seeds == []


class TestConclusion:
    def test_says_what_the_intervals_say(self):
        def accuracy(name, rate, seed):
            noise = 0.01 * (seed % 2)
            shift = {"from scratch": -0.3, "backbone at 0.1": 0.2, "layer-wise decay": 0.0, "backbone frozen": -0.1}
            wide = 0.1 * (1 if seed % 2 else -1) if name == "layer-wise decay" else 0.0
            return 0.5 + noise + shift.get(name, 0.0) + wide

        text = conclude(Results(rows_for(accuracy), RATES))
        assert text.startswith("Beside one learning rate, on the same 4 draws: with the learning rate tuned, ")
        tuned, single = text.split("; of the 3 rates, ")
        assert "backbone at 0.1 gains 20.0 ± 0.0 points" in tuned
        assert "backbone frozen loses 10.0 ± 0.0 points" in tuned
        assert "from scratch loses 30.0 ± 0.0 points" in tuned
        assert "layer-wise decay shows no difference (" in tuned
        assert tuned.index("backbone at 0.1") < tuned.index("layer-wise") < tuned.index("from scratch")
        assert "backbone at 0.1 gains at 3 and loses at none" in single
        assert "backbone frozen gains at none and loses at 3" in single

    @pytest.mark.parametrize("seed", range(20))
    def test_a_difference_is_claimed_only_if_its_interval_leaves_0_out(self, seed):
        results = random_results(seed)
        tuned = conclude(results).split("; of the 3 rates")[0]
        single = conclude(results).split("; of the 3 rates, ")[1]
        for name in set(REGIMES) - {BASE}:
            pairs = [(results.at_rate(name, rate), results.at_rate(BASE, rate)) for rate in RATES]
            better, worse = (
                sum(stats.ttest_rel(*pair, alternative=side).pvalue < 0.025 for pair in pairs)
                for side in ("greater", "less")
            )
            assert f"{name} gains at {better or 'none'} and loses at {worse or 'none'}" in single
            p_value = stats.ttest_rel(results.tuned(name), results.tuned(BASE)).pvalue
            assert (f"{name} shows no difference" in tuned) == (p_value >= 0.05)
