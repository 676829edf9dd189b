"""`ServerRanks` before it connects; two of them on real servers are in tests/distributed/test_finetune.py."""

from __future__ import annotations

import signal

import mxnet as mx
import numpy as np
import pytest

from multitrainer import ParamGroup
from multitrainer.cli.errors import UserError
from multitrainer.cli.ranks import parameter_servers
from multitrainer.cli.ranks.parameter_servers import DMLC_VARIABLES, ServerRanks
from support import batches, mlp, moved, train


@pytest.mark.parametrize("unset", [*DMLC_VARIABLES, "DMLC_ROLE"])
def test_a_variable_that_is_not_set_is_named(monkeypatch, unset):
    for name in (*DMLC_VARIABLES, "DMLC_ROLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(unset)
    with pytest.raises(UserError, match=rf"--kvstore dist_sync: {unset} not set; start a scheduler, servers and worke"):
        ServerRanks("dist_sync")


@pytest.fixture
def ranks(monkeypatch, capsys):
    """`ServerRanks` on a local store, which sums as a server with a single worker does."""
    for name in (*DMLC_VARIABLES, "DMLC_ROLE"):
        monkeypatch.setenv(name, "1")
    return ServerRanks("local")


def test_sums_of_arrays_of_any_length_do_not_mix(ranks):
    for length in (1, 3, 1, 3, 2):
        numbers = np.random.RandomState(length).rand(length).astype("float32")
        np.testing.assert_array_equal(ranks.sum(numbers), numbers)


def test_gradients_are_summed_over_all_ranks(ranks):
    assert ranks.step_batch_size(8) == 8
    ranks.size = 3
    assert ranks.step_batch_size(8) == 24


def test_every_trainer_has_keys_of_its_own(ranks):
    """A server keeps the first weights that it was given under a key, which a second network must not get."""
    nets = [mlp(), mlp()]
    for shift, net in enumerate(nets):
        for param in net.collect_params().values():
            param.set_data(param.data() + shift)
        expected = mlp()
        for name, param in expected.collect_params().items():
            param.set_data(net.collect_params()[name].data())
        settings = {"learning_rate": 0.1}
        ours = train(net, ranks.make_trainer([ParamGroup(net)], "sgd", settings), batches(2))
        stock = train(expected, mx.gluon.Trainer(expected.collect_params(), "sgd", settings, kvstore=None), batches(2))
        for one, other in zip(ours, stock):
            assert not moved(one, other)


def test_two_key_ranges_of_one_store_do_not_meet():
    store = mx.kv.create("local")
    first, second = (parameter_servers._KeyRange(store, begin) for begin in (1000, 2000))
    values = {}
    for name, keys, value in (("first", first, 1.0), ("second", second, 2.0)):
        out = mx.nd.zeros(3)
        keys.broadcast(5, mx.nd.full(3, value), out)
        values[name] = out.asnumpy().tolist()
        assert (keys.type, keys.rank, keys.num_workers) == ("local", 0, 1)
        assert not keys.is_capable("optimizer")
    assert values == {"first": [1] * 3, "second": [2] * 3}
    out = mx.nd.zeros(3)
    first.pushpull(5, [mx.nd.full(3, 4.0), mx.nd.full(3, 3.0)], out)
    assert out.asnumpy().tolist() == [7] * 3
    store.pull(2005, out)
    assert out.asnumpy().tolist() == [2] * 3


def test_ctrl_c_has_its_handler_again_after_the_wait():
    before = signal.getsignal(signal.SIGINT)
    with parameter_servers._ctrl_c_ends_process():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
