"""The promises Drop-in, m means m and Frozen means frozen, for every optimizer of MXNet and of this package."""

import inspect

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Trainer, nn
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer
from optimizer_zoo import REGISTERED, STOCK_FAILS, Embedder, mark_fresh, network, skip_what_stock_cannot, variants
from support import (
    CONTEXTS,
    backward,
    batches,
    convolution,
    mlp,
    moved,
    same,
    same_as_stock,
    snapshot,
    train,
    weights,
)


def run(trainer_class, name, params, ctx=None, hybridize=None, **kwargs):
    net = network(name, ctx)
    if hybridize is not None:
        net.hybridize(**hybridize)
    mx.random.seed(11)  # SGLD draws its noise from it
    return train(net, trainer_class(net.collect_params(), name, params, **kwargs), batches(), ctx)


def test_stock_cannot_run_what_is_listed_as_failing():
    for (name, label), _ in STOCK_FAILS.items():
        params = {"momentum": 0.9} if "momentum" in label else {}
        net = mlp()
        trainer = Trainer(net.collect_params(), name, {"wd": 0.01 if "wd" in label else 0, **params})
        with pytest.raises((ValueError, AssertionError)):
            train(net, trainer, batches(2))


class TestDropIn:
    """Without frozen layers, weights follow the trajectory of stock Trainer bit for bit."""

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_one_context(self, name, label, params, hybridize):
        skip_what_stock_cannot(name, label)
        stock = run(Trainer, name, params, hybridize=hybridize)
        assert moved(stock[0], stock[-1])
        assert all(np.isfinite(array).all() for array in stock[-1].values())
        assert same(stock, run(MultiLRTrainer, name, params, hybridize=hybridize))

    @pytest.mark.parametrize("update_on_kvstore", [True, False])
    @pytest.mark.parametrize("kvstore", ["local", "device"])
    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_two_contexts(self, name, label, params, kvstore, update_on_kvstore):
        skip_what_stock_cannot(name, label)
        stores = {"kvstore": kvstore, "update_on_kvstore": update_on_kvstore}
        stock = run(Trainer, name, params, CONTEXTS, **stores)
        assert same(stock, run(MultiLRTrainer, name, params, CONTEXTS, **stores))

    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_multipliers_on_the_parameters(self, name, label, params):
        """If stock applies a multiplier, ours does the same; if stock ignores it, ours raises an error."""
        skip_what_stock_cannot(name, label)

        def run_with(trainer_class):
            net = network(name)
            net[0].weight.lr_mult, net[0].weight.wd_mult = 0.5, 2
            mx.random.seed(11)
            return train(net, trainer_class(net.collect_params(), name, params), batches())

        if name in ("adadelta", "test"):
            with pytest.raises(ValueError, match="'net_dense0_weight' would have no effect"):
                run_with(MultiLRTrainer)
        else:
            assert same(run_with(Trainer), run_with(MultiLRTrainer))

    @pytest.mark.parametrize("name", ["sgd", "nag", "rmsprop", "adam", "adamw"])
    def test_predictions_between_the_steps(self, name):
        """They change the layout of weights, and then NAG with momentum and weight decay is not repeatable."""

        def run_with(trainer_class):
            net, history = convolution(), []
            params = {"learning_rate": 0.01, "wd": 0.01, **({"momentum": 0.9} if name in ("sgd", "nag") else {})}
            trainer = trainer_class(net.collect_params(), name, params)
            for batch in batches(6):
                history += train(net, trainer, [batch])
                net(batch[0]).wait_to_read()
            return history

        assert same_as_stock(run_with(MultiLRTrainer), lambda: run_with(Trainer))

    @pytest.mark.parametrize("scheduler", ["factor", "cosine"])
    def test_lr_scheduler(self, scheduler):
        def run_with(trainer_class):
            schedule = {
                "factor": mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.1),
                "cosine": mx.lr_scheduler.CosineScheduler(4, base_lr=0.1, warmup_steps=1),
            }[scheduler]
            net = mlp()
            return train(net, trainer_class(net.collect_params(), "sgd", {"lr_scheduler": schedule}), batches())

        assert same(run_with(Trainer), run_with(MultiLRTrainer))


class Separate(nn.HybridBlock):
    """Two layers with separate losses: the gradients of one do not depend on the other."""

    def __init__(self, dims=2):
        super().__init__(prefix="separate_")
        mx.random.seed(3)
        with self.name_scope():
            self.one = nn.Dense(2, in_units=3, use_bias=dims < 2)
            self.two = nn.Dense(2, in_units=3, use_bias=dims < 2)

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.one(x) + self.two(x)

    def backward(self, x, y):
        with mx.autograd.record():
            loss = sum(((layer(x) - y) ** 2).sum() for layer in (self.one, self.two))
        loss.backward()


def train_separately(trainer_class, spec, name, params, rounds=4, between=None, **kwargs):
    net = Separate()
    net.initialize()
    mx.random.seed(11)
    trainer = trainer_class(spec(net), name, params, **kwargs)
    history = []
    for i, (x, y) in enumerate(batches(rounds)):
        net.backward(x, y)
        trainer.step(len(x))
        history.append(snapshot(net))
        if between is not None:
            between(i, trainer, net)
    return history, trainer


def everything(net):
    return net.collect_params()


@pytest.mark.parametrize("multiplier", [0.1, 3])
@pytest.mark.parametrize(("name", "label", "params"), variants())
def test_a_multiplier_m_acts_as_m_times_the_learning_rate(name, label, params, multiplier):
    """The layer with multiplier m moves as under lr * m, the other one as under lr."""
    skip_what_stock_cannot(name, label)

    def spec(net):
        return [net, (net.one, multiplier)]

    if name in ("adadelta", "test"):
        with pytest.raises(ValueError, match=rf"lr_mult {multiplier}.*would have no effect"):
            train_separately(MultiLRTrainer, spec, name, params)
        return
    ours, _ = train_separately(MultiLRTrainer, spec, name, params)
    scaled, _ = train_separately(
        Trainer, everything, name, {**params, "learning_rate": params["learning_rate"] * multiplier}
    )
    plain, _ = train_separately(Trainer, everything, name, params)
    for step in range(len(ours)):
        assert (ours[step]["separate_dense0_weight"] == scaled[step]["separate_dense0_weight"]).all()
        assert (ours[step]["separate_dense1_weight"] == plain[step]["separate_dense1_weight"]).all()


class TestFrozen:
    """Frozen Parameters stay, and the others move as if the optimizer had no others."""

    @pytest.mark.parametrize("stores", [{}, {"update_on_kvstore": True}, {"update_on_kvstore": False}], ids=str)
    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_during_training(self, name, label, params, stores):
        skip_what_stock_cannot(name, label)
        ctx = CONTEXTS if stores else None
        net = network(name, ctx)
        trainer = MultiLRTrainer(net, name, params, **stores)
        train(net, trainer, batches(2), ctx)
        trainer.set_lr_mult({net[0]: 0})
        before = snapshot(net)
        history = train(net, trainer, batches(3), ctx)
        changed = weights(moved(before, history[-1]))
        assert changed
        assert not any(key.startswith("net_dense0") for key in changed)
        trainer.set_lr_mult({net[0]: 1})
        train(net, trainer, batches(2), ctx)
        assert any(key.startswith("net_dense0") for key in moved(before, snapshot(net)))

    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_from_the_start_makes_no_state(self, name, label, params):
        skip_what_stock_cannot(name, label)
        frozen, trainer = train_separately(MultiLRTrainer, lambda net: [net, (net.one, 0)], name, params)
        assert moved(frozen[0], frozen[-1]) == {"separate_dense1_weight"}
        states = trainer._updaters[0].states
        assert [trainer._params[index].name for index in states] == ["separate_dense1_weight"]

        def stock_without(net):
            net.one.weight.grad_req = "null"
            return net.collect_params()

        assert same(frozen, train_separately(Trainer, stock_without, name, params)[0])


def train_sparse(trainer_class, spec, name, ctx=None, **kwargs):
    net = Embedder()
    net.initialize(ctx=ctx)
    mx.random.seed(11)
    trainer = trainer_class(spec(net), name, {"learning_rate": 0.05}, **kwargs)
    history = [snapshot(net)]
    for rows in ([[0, 1], [2, 2]], [[1, 3], [0, 0]], [[4, 1], [2, 0]]):
        parts = mx.gluon.utils.split_and_load(mx.nd.array(rows), ctx or [mx.cpu(0)])
        with mx.autograd.record():
            losses = [(net(part) ** 2).sum() for part in parts]
        mx.autograd.backward(losses)
        trainer.step(2)
        history.append(snapshot(net))
    return history


@pytest.mark.parametrize("stores", [{}, {"update_on_kvstore": True}, {"update_on_kvstore": False}], ids=str)
@pytest.mark.parametrize("name", REGISTERED)
def test_sparse_gradients(name, stores):
    """The trajectory of stock or its error; and a frozen embedding stays."""
    ctx = CONTEXTS if stores else None
    try:
        stock = train_sparse(Trainer, everything, name, ctx, **stores)
    except (mx.MXNetError, ValueError, TypeError) as error:
        with pytest.raises(type(error)):
            train_sparse(MultiLRTrainer, everything, name, ctx, **stores)
    else:
        assert same(stock, train_sparse(MultiLRTrainer, everything, name, ctx, **stores))
    frozen = train_sparse(MultiLRTrainer, lambda net: [net, (net.embedding, 0)], name, ctx, **stores)
    assert moved(frozen[0], frozen[1]) == {"embedder_dense0_weight"}
    assert moved(frozen[0], frozen[-1]) <= {"embedder_dense0_weight"}  # it may return to its first value


def test_row_sparse_weight_frozen_and_unfrozen():
    """The kvstore holds these weights."""
    params = mx.gluon.ParameterDict()
    sparse = params.get("sparse", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
    dense = params.get("dense", shape=(4, 2))
    params.initialize(mx.init.One(), ctx=CONTEXTS)
    trainer = MultiLRTrainer([params, (sparse, 0)], "sgd", {"learning_rate": 0.1})
    rows = mx.nd.arange(4)

    def step():
        pulled = sparse.list_row_sparse_data(rows)
        with mx.autograd.record():
            losses = [(w * 2).sum() + (d * 2).sum() for w, d in zip(pulled, dense.list_data())]
        mx.autograd.backward(losses)
        trainer.step(1)
        return sparse.row_sparse_data(rows).asnumpy()[0, 0], dense.data(CONTEXTS[0]).asnumpy()[0, 0]

    assert step() == pytest.approx((1, 0.6))
    trainer.set_lr_mult({sparse: 0.5})
    assert step() == pytest.approx((0.8, 0.2))
    trainer.set_lr_mult({sparse: 0})
    assert step() == pytest.approx((0.8, -0.2))


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("name", ["sgd", "nag", "lars", "adam", "adamw", "lamb", "signum", "rmsprop", "ftml", "lbsgd"])
def test_half_precision_with_master_weights(name, momentum):
    """The trajectory of stock, and frozen weights stay. Gradients are set by hand: fp16 layers do not run on CPU."""
    if momentum and "momentum" not in inspect.signature(Optimizer.opt_registry[name].__init__).parameters:
        pytest.skip(f"{name} has no momentum")
    options = {
        "learning_rate": 0.1,
        "multi_precision": True,
        "wd": 0.01,
        **({"momentum": momentum} if momentum else {}),
    }

    def run_with(trainer_class, freeze=False):
        mx.random.seed(2)
        params = mx.gluon.ParameterDict()
        for key in ("a", "b"):
            params.get(key, shape=(3, 2), dtype="float16", init=mx.init.Uniform())
        params.initialize()
        trainer = trainer_class(params, name, options)
        history = []
        for step in range(4):
            if freeze and step == 2:
                trainer.set_lr_mult({"a": 0})
            for param in params.values():
                if param.grad_req != "null":
                    param.grad()[:] = mx.nd.full((3, 2), 0.1 * (step + 1), dtype="float16")
            mark_fresh(params)
            trainer.step(1)
            history.append(snapshot(params))
        return history

    try:
        stock = run_with(Trainer)
    except mx.MXNetError as error:
        pytest.skip(f"stock {name} cannot: {str(error).splitlines()[0][:80]}")
    assert same(stock, run_with(MultiLRTrainer))
    frozen = run_with(MultiLRTrainer, freeze=True)
    assert same(frozen[:2], stock[:2])
    assert moved(frozen[1], frozen[3]) == {"b"}
    assert (frozen[3]["b"] == stock[3]["b"]).all()


def test_stock_moves_every_weight_of_the_test_network():
    """The loop of these tests moves every weight under stock Trainer."""
    net = mlp()
    before = snapshot(net)
    backward(net, *batches(1)[0])
    Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1}).step(4)
    assert weights(moved(before, snapshot(net))) == {name for name in before if "running" not in name}
