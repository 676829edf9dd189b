"""The picture of a confusion matrix, whatever the classes are called and however many there are."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from multitrainer_cli.evaluation.confusion_figure import plot_confusion
from multitrainer_cli.evaluation.measurement import Measurement


def draw(classes, confusion):
    figure = plot_confusion(Measurement(classes, np.array(confusion)), "a $title")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
    axes = figure.axes[0]
    return axes, [label.get_text() for label in axes.get_yticklabels()]


def test_cells_show_the_images_and_colours_their_share():
    axes, labels = draw(["cat", "dog", "owl"], [[3, 1, 0], [0, 8, 0], [0, 0, 0]])
    assert labels == ["cat", "dog", "owl"]
    assert [(*text.get_position(), text.get_text()) for text in axes.texts] == [(0, 0, "3"), (1, 0, "1"), (1, 1, "8")]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])


def test_names_are_shown_as_they_are():
    _, labels = draw(["$x$", "a\tb", "y" * 100], np.eye(3, dtype=int))
    assert labels == ["$x$", "a\\tb", "y" * 23 + "…"]


@pytest.mark.parametrize("count", [20, 21, 300])
def test_many_classes_have_fewer_labels_and_no_numbers(count):
    axes, labels = draw([str(number) for number in range(count)], np.eye(count, dtype=int))
    assert len(labels) <= 40
    assert len(axes.texts) == (count if count <= 20 else 0)
