from __future__ import annotations

import itertools

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy.stats")

from multitrainer_cli.demo.intervals import Results, interval
from multitrainer_cli.demo.picture import plot_results
from multitrainer_cli.demo.regimes import BASE, REGIMES

RATES = (0.01, 0.03, 0.1)


@pytest.fixture
def results():
    cells = itertools.product(range(3), RATES, enumerate(REGIMES))
    return Results(
        [
            {"regime": name, "learning_rate": rate, "seed": seed, "val_accuracy": 0.1 * place + rate + 0.01 * seed**2}
            for seed, rate, (place, name) in cells
        ],
        RATES,
    )


def test_the_lines_are_the_means_with_their_intervals_over_the_rates(results):
    left, _ = plot_results(results, "title").axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(REGIMES)
    for container, name in zip(left.containers, REGIMES):
        line, _, (bars,) = container.lines
        expected = [interval(results.at_rate(name, rate)) for rate in RATES]
        assert line.get_ydata() == pytest.approx([each.mean for each in expected])
        halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
        assert halves == pytest.approx([each.half for each in expected])
        assert line.get_xdata() == pytest.approx(RATES, rel=0.1)
    assert left.get_xscale() == "log"


def test_the_differences_are_drawn_for_every_other_regime(results):
    _, right = plot_results(results, "title").axes
    names = [label.get_text() for label in right.get_yticklabels()]
    drawn = [
        (names[round(container.lines[0].get_ydata()[0])], container.lines[0].get_xdata()[0])
        for container in right.containers
    ]
    expected = [(name, results.gain(name, tuned).mean) for name in REGIMES if name != BASE for tuned in (True, False)]
    assert [name for name, _ in drawn] == [name for name, _ in expected]
    assert [mean for _, mean in drawn] == pytest.approx([mean for _, mean in expected])
