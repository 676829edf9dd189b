"""Random numbers continue as if none had been drawn, or at least with the same ones in every run."""

import random

import mxnet as mx
import numpy as np
import pytest

from multitrainer.rate_search.random_states import RandomStates
from support import run_python


def draw():
    with_dropout = mx.nd.Dropout(mx.nd.ones((4, 50)), p=0.5, mode="always")
    drawn = [mx.nd.random.normal(shape=(300,)), mx.nd.shuffle(mx.nd.arange(30)), with_dropout]
    numbers = [random.random(), random.gauss(0, 1), *np.random.randn(3)]
    return [array.asnumpy().tobytes() for array in drawn], numbers


@pytest.mark.parametrize("drawn_before", [0, 3])
def test_the_same_numbers_come_again(drawn_before):
    for _ in range(drawn_before):
        draw()
    states = RandomStates([mx.cpu(0), mx.cpu(1)])
    first = [draw(), draw()]
    states.restore()
    assert [draw(), draw()] == first
    states.restore()
    assert [draw(), draw()] == first
    assert draw() != first[0]


def test_remembering_draws_nothing():
    mx.random.seed(3)
    expected = [draw()[0], draw()[0]]
    mx.random.seed(3)
    found = [draw()[0]]
    RandomStates([mx.cpu()])
    assert [*found, draw()[0]] == expected


def test_a_seed_in_between_is_undone():
    states = RandomStates([mx.cpu()])
    expected = draw()
    states.restore()
    mx.random.seed(0)
    np.random.seed(0)
    random.seed(0)
    states.restore()
    assert draw() == expected


def test_generators_that_cannot_be_read_are_seeded_from_themselves(monkeypatch):
    monkeypatch.setenv("MXNET_CPU_PARALLEL_RAND_COPY", "2")
    code = """
        import multitrainer, mxnet as mx
        from multitrainer._mxnet import cpu_generators
        from multitrainer.rate_search.random_states import RandomStates
        assert cpu_generators() is None
        found = []
        for draws in (1, 5):
            mx.random.seed(7)
            states = RandomStates([mx.cpu()])
            mx.nd.random.normal(shape=draws).wait_to_read()
            states.restore()
            found.append(mx.nd.random.normal(shape=5).asnumpy().tolist())
        mx.random.seed(8)
        RandomStates([mx.cpu()]).restore()
        print(found[0] == found[1], found[0] == mx.nd.random.normal(shape=5).asnumpy().tolist())
    """
    done = run_python(code)
    assert done.stdout == "True False\n", done.stderr
