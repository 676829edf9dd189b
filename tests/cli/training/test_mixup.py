from __future__ import annotations

import itertools

import mxnet as mx
import numpy as np
import pytest

from multitrainer_cli.training.mixup import Mixup, mix, partners


def take(count, shares):
    return list(itertools.islice(shares, count))


def test_shares_follow_the_beta_distribution():
    for alpha in (0.2, 1.0, 5.0):
        shares = np.array(take(20_000, Mixup(alpha, epochs=1).shares(0, 1)))
        assert ((shares >= 0) & (shares <= 1)).all()
        assert shares.mean() == pytest.approx(0.5, abs=0.01)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_shares_depend_on_seed_and_epoch_alone():
    mixup = Mixup(0.4, epochs=9)
    first = take(5, mixup.shares(3, 2))
    np.random.rand(10)
    assert first == take(5, mixup.shares(3, 2))
    assert first != take(5, mixup.shares(3, 3))
    assert first != take(5, mixup.shares(4, 2))


def test_the_epochs_after_the_last_one_that_mixes_have_a_share_of_1():
    assert 1.0 not in take(5, Mixup(0.4, epochs=2).shares(0, 2))
    assert take(5, Mixup(0.4, epochs=2).shares(0, 3)) == [1.0] * 5


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [0]), (2, [1, 0]), (4, [2, 3, 0, 1]), (5, [2, 3, 4, 0, 1])], ids=str
)
def test_every_row_has_a_partner_half_a_batch_further_on(rows, expected):
    assert partners(mx.nd.arange(rows)).asnumpy().tolist() == expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_pair_the_images_that_one_rank_pairs(ranks):
    batch = mx.nd.arange(4 * ranks)
    paired = partners(batch).asnumpy()
    for rank in range(ranks):
        np.testing.assert_array_equal(partners(batch[rank::ranks]).asnumpy(), paired[rank::ranks])


def test_a_mixed_batch_is_the_sum_of_its_rows_and_their_partners():
    batch = np.random.RandomState(0).normal(size=(4, 3, 2)).astype("float32")
    expected = 0.3 * batch + 0.7 * np.roll(batch, 2, axis=0)
    np.testing.assert_allclose(mix(mx.nd.array(batch), 0.3).asnumpy(), expected, rtol=1e-6)


def test_with_a_share_of_1_the_batch_stays_as_it_is():
    batch = mx.nd.arange(4)
    assert mix(batch, 1.0) is batch
