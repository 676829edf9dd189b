"""The states of MXNet's generators are found where they are, and NumPy's Mersenne Twister explains them."""

import threading

import mxnet as mx
import numpy as np
import pytest

from multitrainer import _mxnet
from support import run_python

SEED_FACTOR = 127  # kRandMagic in src/resource.cc


def test_the_states_are_those_of_the_seed():
    mx.random.seed(5)
    (engine,), array = _mxnet.cpu_generators()
    mx.nd.waitall()
    for state, seed in ((engine, 0), (array[0], 0), (array[1], 1), (array[1023], 1023)):
        expected = np.random.RandomState(SEED_FACTOR * 5 + seed).get_state()
        assert (state[:624] == expected[1]).all()
        assert state[624] == expected[2]


def test_finding_them_draws_nothing():
    mx.random.seed(5)
    expected = mx.nd.random.uniform(shape=100).asnumpy()
    mx.random.seed(5)
    _mxnet.cpu_generators()
    assert (mx.nd.random.uniform(shape=100).asnumpy() == expected).all()


def test_every_thread_has_its_own():
    found = []
    thread = threading.Thread(target=lambda: found.append(_mxnet.cpu_generators()[0].ctypes.data))
    thread.start()
    thread.join()
    assert found[0] != _mxnet.cpu_generators()[0].ctypes.data


@pytest.mark.parametrize("unknown", ["version", "copies", "machine"])
def test_where_the_layout_is_not_known_nothing_is_read(unknown, monkeypatch):
    if unknown == "version":
        monkeypatch.setattr(mx, "__version__", "1.9.2")
    elif unknown == "copies":
        monkeypatch.setenv("MXNET_CPU_PARALLEL_RAND_COPY", "2")
    else:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert _mxnet.cpu_generators() is None


def test_they_are_found_before_anything_was_drawn():
    code = """
        from multitrainer import _mxnet
        print([states.shape for states in _mxnet.cpu_generators()])
    """
    done = run_python(code)
    assert done.stdout == "[(1, 625), (1024, 625)]\n", done.stderr
