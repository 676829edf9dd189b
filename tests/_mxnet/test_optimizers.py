"""Optimizers and Updaters: weight decays, states, and which attributes are state."""

import mxnet as mx
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer, _mxnet
from support import CONTEXTS, batches, mlp, train


def test_weight_decay_is_multiplied():
    optimizer = mx.optimizer.create("sgd", wd=0.1, param_idx2name={0: "a_weight", 1: "b_weight"})
    optimizer.set_wd_mult({"b_weight": 3})
    assert _mxnet.weight_decays(optimizer, [1, 0]) == [0.1 * 3, 0.1]


def test_the_state_of_an_optimizer_is_what_its_arguments_set():
    assert set(vars(Optimizer())) - _mxnet.NOT_STATE == {
        "lr",
        "wd",
        "clip_gradient",
        "begin_num_update",
        "multi_precision",
    }
    assert set(vars(mx.optimizer.SGD())) - set(vars(Optimizer())) - _mxnet.NOT_STATE == {"momentum", "lazy_update"}


def test_a_kvstore_has_the_updater_that_updates():
    net = mlp(CONTEXTS, batchnorm=False)
    trainer = MultiLRTrainer(net, "sgd", {"momentum": 0.9}, update_on_kvstore=True)
    train(net, trainer, batches(1), CONTEXTS)
    assert set(_mxnet.updater_of(trainer._kvstore).states) == {0, 1, 2, 3}


def test_new_states_replace_all_but_the_kept_ones():
    updater = mx.optimizer.get_updater(mx.optimizer.SGD(momentum=0.9))
    for index in range(3):
        updater(index, mx.nd.ones(2), mx.nd.ones(2))
    kept, new = updater.states[0], mx.nd.zeros(2)
    _mxnet.set_states(updater, {0}, {2: new, 3: new}, in_place=False)
    assert updater.states == {0: kept, 2: new, 3: new}
    assert updater.states_synced == {0: True, 2: False, 3: False}
    _mxnet.set_states(updater, (), {1: new}, in_place=True)
    assert (updater.states, updater.states_synced) == ({1: new}, {1: True})
