from __future__ import annotations

import itertools

from multitrainer.cli.ranks.exchange import Ranks
from multitrainer.cli.ranks.sampling import ShareSampler


def rank(number, size):
    ranks = Ranks()
    ranks.rank, ranks.size = number, size
    return ranks


def samplers(length, size, even):
    """Return a sampler for each rank; every epoch begins the order one item later."""
    found = []
    for number in range(size):
        ranks, epochs = rank(number, size), itertools.count()

        def draw_order(epochs=epochs):
            first = next(epochs)
            return [(first + i) % length for i in range(length)]

        found.append(ShareSampler(length, draw_order, ranks.even_share if even else ranks.share))
    return found


def test_the_shares_of_all_ranks_are_the_whole_order():
    first, second, third = samplers(7, 3, even=False)
    assert [list(first), list(second), list(third)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(first), len(second), len(third)] == [3, 2, 2]


def test_even_shares_leave_out_what_is_left_over():
    parts = samplers(7, 3, even=True)
    assert [list(part) for part in parts] == [[0, 3], [1, 4], [2, 5]]
    assert [len(part) for part in parts] == [2, 2, 2]


def test_every_epoch_has_an_order_of_its_own():
    (alone,) = samplers(3, 1, even=True)
    assert [list(alone) for _ in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
