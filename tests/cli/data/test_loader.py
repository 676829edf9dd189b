from __future__ import annotations

import random

import mxnet as mx
import numpy as np
import pytest

from multitrainer_cli.data.loader import Loader, RankSampler
from multitrainer_cli.ranks.exchange import Ranks


def ranks_of(size):
    """Return the views that several ranks have of the same run, without processes."""
    views = []
    for rank in range(size):
        views.append(Ranks())
        views[-1].rank, views[-1].size = rank, size
    return views


def test_in_order_every_position_belongs_to_one_rank():
    parts = [list(RankSampler(11, ranks)) for ranks in ranks_of(3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]


@pytest.mark.parametrize("length", [9, 10, 11])
def test_shuffled_all_ranks_have_the_same_number_of_different_positions(length):
    samplers = [RankSampler(length, ranks, random.Random(5).shuffle) for ranks in ranks_of(3)]
    whole = RankSampler(length, Ranks(), random.Random(5).shuffle)
    for _ in range(2):
        parts, order = [list(sampler) for sampler in samplers], list(whole)
        assert sorted(order) == list(range(length))
        assert [position for turn in zip(*parts) for position in turn] == order[:9]
        assert [len(part) for part in parts] == [3, 3, 3]


def test_every_epoch_has_an_order_of_its_own():
    sampler = RankSampler(20, Ranks(), random.Random(0).shuffle)
    assert list(sampler) != list(sampler)


@pytest.mark.parametrize("shuffle", [None, lambda order: None])
def test_the_length_is_the_number_of_positions(shuffle):
    for length in range(7):
        for ranks in ranks_of(3):
            sampler = RankSampler(length, ranks, shuffle)
            assert len(sampler) == len(list(sampler))


def loader(seed=3):
    sampler = RankSampler(10, Ranks(), random.Random(seed).shuffle)
    batches = mx.gluon.data.BatchSampler(sampler, 4, "rollover")
    return Loader(mx.gluon.data.ArrayDataset(np.arange(10)), batches)


def epochs_of(batches, count):
    return [[batch.asnumpy().tolist() for batch in batches] for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_loader_that_skips_epochs_goes_on_like_one_that_has_loaded_them(skipped):
    resumed = loader()
    resumed.skip(skipped)
    whole = epochs_of(loader(), 5)
    assert epochs_of(resumed, 5 - skipped) == whole[skipped:]
    assert whole[0] != whole[1]
