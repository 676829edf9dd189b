"""Who updates is read from a stock Trainer as it decides itself."""

import mxnet as mx
import pytest
from mxnet.gluon import Trainer

from multitrainer import _mxnet
from support import CONTEXTS, batches, mlp, same, train


def make_trainer(**kwargs):
    return Trainer(mlp(CONTEXTS).collect_params(), "sgd", **kwargs)


@pytest.mark.parametrize(
    ("kvstore", "update_on_kvstore", "workers_should", "servers"),
    [
        ("device", None, False, False),
        ("local", True, False, False),
        (None, None, False, False),
        ("dist_sync", None, True, False),
        ("dist_sync", True, False, True),
        ("dist_sync", False, False, False),
        ("dist_async", None, False, True),
    ],
)
def test_who_updates_before_the_kvstore_is_set_up(kvstore, update_on_kvstore, workers_should, servers, monkeypatch):
    monkeypatch.delenv("MXNET_UPDATE_ON_KVSTORE", raising=False)
    trainer = make_trainer(kvstore=kvstore, update_on_kvstore=update_on_kvstore)
    assert _mxnet.workers_should_update(trainer) is workers_should
    assert bool(_mxnet.servers_update(trainer)) is servers


@pytest.mark.parametrize(
    ("kvstore", "update_on_kvstore", "reason"),
    [
        ("device", None, None),
        ("dist_sync", None, None),
        ("dist_sync", False, None),
        (None, False, None),
        ("local", True, "update_on_kvstore is True"),
        ("dist_async", None, "kvstore 'dist_async' updates on the parameter servers"),
    ],
)
def test_why_workers_cannot_update(kvstore, update_on_kvstore, reason):
    trainer = make_trainer(kvstore=kvstore, update_on_kvstore=update_on_kvstore)
    assert _mxnet.why_not_workers(trainer) == reason
    _mxnet.let_workers_update(trainer)
    if reason is None and kvstore != "dist_sync":
        train(mlp(CONTEXTS), None, [], CONTEXTS)
        trainer._init_kvstore()
        assert not trainer._update_on_kvstore


@pytest.mark.parametrize(("value", "servers"), [("0", False), ("1", True)])
def test_the_environment_decides_if_the_user_does_not(value, servers, monkeypatch):
    monkeypatch.setenv("MXNET_UPDATE_ON_KVSTORE", value)
    trainer = make_trainer(kvstore="dist_sync")
    assert not _mxnet.workers_should_update(trainer)
    assert _mxnet.servers_update(trainer) is servers


def test_servers_update_sparse_weights():
    param = mx.gluon.Parameter("w", shape=(2, 2), stype="row_sparse")
    param.initialize()
    trainer = Trainer([param], "sgd", kvstore="dist_sync")
    assert not _mxnet.workers_should_update(trainer)
    assert _mxnet.servers_update(trainer)


def test_workers_update_once_they_are_chosen():
    trainer = make_trainer(kvstore="local")
    _mxnet.let_workers_update(trainer)
    trainer._init_kvstore()
    assert trainer._update_on_kvstore is False


def test_a_kvstore_in_this_process_gets_no_optimizer_sent():
    net = mlp(CONTEXTS)
    trainer = Trainer(net.collect_params(), "sgd", update_on_kvstore=True)
    train(net, trainer, batches(1), CONTEXTS)
    assert not _mxnet.has_sent_optimizer(trainer)
    assert not _mxnet.servers_update(trainer)


@pytest.mark.parametrize("kvstore", ["device", "local"])
def test_the_weights_that_a_kvstore_keeps_are_replaced(kvstore):
    def run(changes):
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = Trainer(net.collect_params(), "sgd", {"momentum": 0.9}, kvstore=kvstore, update_on_kvstore=True)
        history = train(net, trainer, batches(2), CONTEXTS)
        weights = [param.data(CONTEXTS[0]).copy() for param in trainer._params]
        if changes:
            updater = trainer._kvstore._updater
            states = updater.get_states()
            for param in trainer._params:
                for array in param.list_data():
                    array[:] = 5
            _mxnet.set_stored_weights(trainer, trainer._params)
            pulled = weights[0].zeros_like()
            trainer._kvstore.pull(0, pulled)
            assert (pulled.asnumpy() == 5).all()
            assert trainer._kvstore._updater is updater
            for param, weight in zip(trainer._params, weights):
                for array in param.list_data():
                    weight.copyto(array)
            _mxnet.set_stored_weights(trainer, trainer._params)
            assert updater.get_states() == states
        return history + train(net, trainer, batches(2, seed=7), CONTEXTS)

    assert same(run(True), run(False))


def test_weights_that_are_not_named_stay_in_the_kvstore():
    net = mlp(CONTEXTS, batchnorm=False)
    trainer = Trainer(net.collect_params(), "sgd", update_on_kvstore=True)
    train(net, trainer, batches(1), CONTEXTS)
    expected = trainer._params[1].data(CONTEXTS[0]).asnumpy()
    for param in trainer._params:
        param.data(CONTEXTS[0])[:] = 5
    _mxnet.set_stored_weights(trainer, trainer._params[:1])
    pulled = mx.nd.zeros(expected.shape)
    trainer._kvstore.pull(1, pulled)
    assert (pulled.asnumpy() == expected).all()


def test_whether_gradients_are_compressed():
    assert not _mxnet.compresses_gradients(make_trainer())
    trainer = make_trainer(compression_params={"type": "2bit", "threshold": 0.5})
    assert _mxnet.compresses_gradients(trainer)
    trainer._init_kvstore()
    assert _mxnet.compresses_gradients(trainer)
    alone = Trainer(mlp().collect_params(), "sgd", compression_params={"type": "2bit", "threshold": 0.5})
    alone._init_kvstore()
    assert not _mxnet.compresses_gradients(alone)  # there is no kvstore


@pytest.mark.parametrize(("given", "contexts", "updates"), [(None, 2, True), (False, 2, False), (None, 1, False)])
def test_who_updates_once_the_kvstore_is_set_up(given, contexts, updates):
    net = mlp(CONTEXTS[:contexts])
    trainer = Trainer(net.collect_params(), "sgd", update_on_kvstore=given)
    assert _mxnet.chosen_update_on_kvstore(trainer) is given
    assert not _mxnet.store_updates(trainer)
    train(net, trainer, batches(1), CONTEXTS[:contexts])
    assert _mxnet.store_updates(trainer) is updates


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_sparse_weights(stype):
    param = mx.gluon.Parameter("w", shape=(2, 2), stype=stype)
    param.initialize()
    assert _mxnet.has_sparse_weights(Trainer([param], "sgd")) is (stype == "row_sparse")


@pytest.mark.parametrize("set_up", [False, True])
@pytest.mark.parametrize(
    ("options", "fits", "fits_several_machines"),
    [({}, True, True), ({"grad_stype": "row_sparse"}, True, False), ({"stype": "row_sparse"}, False, False)],
)
def test_a_kvstore_for_dense_parameters_takes_others(options, fits, fits_several_machines, set_up):
    param = mx.gluon.Parameter("w", shape=(2, 2), **options)
    trainer = make_trainer(kvstore="local")
    if set_up:
        trainer._init_kvstore()
    assert _mxnet.kvstore_fits(trainer, param) is (fits or not set_up)
    trainer._distributed = True
    assert _mxnet.kvstore_fits(trainer, param) is (fits_several_machines or not set_up)
    trainer._contains_sparse_weight = True
    assert _mxnet.kvstore_fits(trainer, param)
