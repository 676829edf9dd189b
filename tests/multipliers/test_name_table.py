"""Every optimizer in MXNet's registry: drop-in, m means m, frozen means frozen; and the table it falls back to."""

import inspect
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Trainer, nn
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer
from optimizer_zoo import STOCK_FAILS, Embedder, mark_fresh, network, skip_what_stock_cannot, variants
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


def test_the_list_of_what_stock_cannot_run_is_true():
    for (name, label), _ in STOCK_FAILS.items():
        params = {"momentum": 0.9} if "momentum" in label else {}
        net = mlp()
        trainer = Trainer(net.collect_params(), name, {"wd": 0.01 if "wd" in label else 0, **params})
        with pytest.raises((ValueError, AssertionError)):
            train(net, trainer, batches(2))


class TestDropIn:
    """Promise 1: what stock Trainer takes follows the same trajectory, bit for bit."""

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
        """Where stock honours a multiplier, ours does the same; where it ignores one, ours refuses."""
        skip_what_stock_cannot(name, label)

        def go(trainer_class):
            net = network(name)
            net[0].weight.lr_mult, net[0].weight.wd_mult = 0.5, 2
            mx.random.seed(11)
            return train(net, trainer_class(net.collect_params(), name, params), batches())

        if name in ("adadelta", "test"):
            with pytest.raises(ValueError, match="'net_dense0_weight' would have no effect"):
                go(MultiLRTrainer)
        else:
            assert same(go(Trainer), go(MultiLRTrainer))

    @pytest.mark.parametrize("name", ["sgd", "nag", "rmsprop", "adam"])
    def test_predictions_between_the_steps(self, name):
        """They put weights into another layout, and NAG with momentum and weight decay is not repeatable then."""

        def go(trainer_class):
            net, history = convolution(), []
            params = {"learning_rate": 0.01, "wd": 0.01, **({"momentum": 0.9} if name in ("sgd", "nag") else {})}
            trainer = trainer_class(net.collect_params(), name, params)
            for batch in batches(6):
                history += train(net, trainer, [batch])
                net(batch[0]).wait_to_read()
            return history

        assert same_as_stock(go(MultiLRTrainer), lambda: go(Trainer))

    @pytest.mark.parametrize("scheduler", ["factor", "cosine"])
    def test_lr_scheduler(self, scheduler):
        def go(trainer_class):
            schedule = {
                "factor": mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.1),
                "cosine": mx.lr_scheduler.CosineScheduler(4, base_lr=0.1, warmup_steps=1),
            }[scheduler]
            net = mlp()
            return train(net, trainer_class(net.collect_params(), "sgd", {"lr_scheduler": schedule}), batches())

        assert same(go(Trainer), go(MultiLRTrainer))


class Separate(nn.HybridBlock):
    """Two layers whose losses have nothing to do with each other: neither's gradients depend on the other."""

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
def test_m_means_m(name, label, params, multiplier):
    """Promise 2: the layer with m moves as under lr * m, the other as under lr."""
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


@pytest.mark.parametrize("name", ["adadelta", "test"])
def test_an_optimizer_that_ignores_multipliers_takes_0_and_1_and_refuses_the_rest(name):
    net = mlp()
    trainer = MultiLRTrainer([net, (net[0], 0), (net[2], 1)], name)
    with pytest.raises(ValueError, match="would have no effect"):
        trainer.set_lr_mult({net[2]: 0.5})
    assert net[2].weight.lr_mult == 1
    net[2].weight.lr_mult = 0.5
    with pytest.raises(ValueError, match=r"lr_mult 0\.5 of Parameter 'net_dense1_weight' would have no effect"):
        trainer.step(1)


class ByHelper(Optimizer):
    """Asks for the learning rate in a helper outside the class, and in no method of its own."""

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        apply_sgd(self, index, weight, grad)


def apply_sgd(optimizer, index, weight, grad):
    optimizer._update_count(index)
    weight[:] -= optimizer._get_lr(index) * optimizer.rescale_grad * (grad + optimizer._get_wd(index) * weight)


class Deaf(ByHelper):
    """Goes by one learning rate for all."""

    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= self.lr * self.rescale_grad * grad


def test_user_written_optimizer():
    def go(trainer_class, multiplier):
        net = mlp()
        net.collect_params(".*dense0.*").setattr("lr_mult", multiplier)
        return train(net, trainer_class(net.collect_params(), ByHelper(learning_rate=0.1)), batches())

    assert same(go(Trainer, 0.5), go(MultiLRTrainer, 0.5))
    assert weights(moved(*go(MultiLRTrainer, 0)[:2])).isdisjoint({"net_dense0_weight", "net_dense0_bias"})
    with pytest.raises(ValueError, match="Deaf never asks for it"):
        MultiLRTrainer([(mlp(), 0.5)], Deaf(learning_rate=0.1))


class Centralized(mx.optimizer.Adam):
    """Changes the gradient, then does what its base class does."""

    def update(self, index, weight, grad, state):
        super().update(index, weight, grad - grad.mean(), state)


class Explicit(mx.optimizer.RMSProp):
    """The same, with the base class by its name."""

    def update(self, index, weight, grad, state):
        mx.optimizer.RMSProp.update(self, index, weight, grad - grad.mean(), state)


@pytest.mark.parametrize("optimizer", [Centralized, Explicit])
def test_optimizer_that_leaves_the_update_to_its_base_class(optimizer):
    def go(trainer_class):
        net = mlp()
        net[0].weight.lr_mult = 0.5
        return train(net, trainer_class(net.collect_params(), optimizer(learning_rate=0.1)), batches())

    assert same(go(Trainer), go(MultiLRTrainer))


class TestFrozen:
    """Promise 3 for every optimizer: frozen is frozen, the rest moves as if there were nothing else to move."""

    @pytest.mark.parametrize("stores", [{}, {"update_on_kvstore": True}, {"update_on_kvstore": False}], ids=str)
    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_in_mid_training(self, name, label, params, stores):
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


SPARSE = [name for name, kind in sorted(Optimizer.opt_registry.items()) if kind.__module__.startswith("mxnet.")]


@pytest.mark.parametrize("stores", [{}, {"update_on_kvstore": True}, {"update_on_kvstore": False}], ids=str)
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients(name, stores):
    """Same trajectory as stock, or the same refusal; and a frozen embedding stays."""
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
    assert moved(frozen[0], frozen[-1]) <= {"embedder_dense0_weight"}  # it may come back to where it was


def test_row_sparse_weight_frozen_and_unfrozen():
    """Weights that live on the kvstore."""
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
@pytest.mark.parametrize("name", ["sgd", "nag", "lars", "adam", "lamb", "signum", "rmsprop", "ftml", "lbsgd"])
def test_half_precision_with_master_weights(name, momentum):
    """In fp16, gradients set by hand, for fp16 layers do not run on CPU: as stock, and frozen is frozen."""
    if momentum and "momentum" not in inspect.signature(Optimizer.opt_registry[name].__init__).parameters:
        pytest.skip(f"{name} has no momentum")
    options = {
        "learning_rate": 0.1,
        "multi_precision": True,
        "wd": 0.01,
        **({"momentum": momentum} if momentum else {}),
    }

    def go(trainer_class, freeze=False):
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
        stock = go(Trainer)
    except mx.MXNetError as error:
        pytest.skip(f"stock {name} cannot: {str(error).splitlines()[0][:80]}")
    assert same(stock, go(MultiLRTrainer))
    frozen = go(MultiLRTrainer, freeze=True)
    assert same(frozen[:2], stock[:2])
    assert moved(frozen[1], frozen[3]) == {"b"}
    assert (frozen[3]["b"] == stock[3]["b"]).all()


class TestTable:
    """What the optimizer falls back to where it has no Parameters: idx2name, lr_mult and wd_mult."""

    def test_filled_by_name_and_kept(self):
        net = mlp(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "adam")
        trainer.set_wd_mult({"net_dense0_bias": 0})
        optimizer = trainer.optimizer
        assert optimizer.idx2name == dict(enumerate(sorted(net.collect_params().keys())))
        assert optimizer.lr_mult == {
            "net_dense0_weight": 0.5,
            "net_dense0_bias": 0.5,
            "net_dense1_weight": 1,
            "net_dense1_bias": 1,
        }
        assert optimizer.wd_mult["net_dense0_bias"] == 0
        net[2 - 1].weight.lr_mult = 7
        train(net, trainer, batches(1))
        assert optimizer.lr_mult["net_dense1_weight"] == 7

    def test_pickled_optimizer_walks_down_the_rungs(self):
        """param_dict, then the index, then the name: `_get_lrs` in mxnet/optimizer/optimizer.py."""
        net = mlp(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd", {"learning_rate": 1.0, "wd": 1.0})
        index = [param.name for param in trainer._params].index("net_dense0_weight")
        assert trainer.optimizer._get_lr(index) == 0.5
        pickled = pickle.loads(pickle.dumps(trainer.optimizer))
        assert pickled.param_dict == {}
        assert pickled._get_lr(index) == 0.5
        pickled.lr_mult[index] = 0.25
        assert pickled._get_lr(index) == 0.25
        net[0].weight.lr_mult = 0.75
        assert trainer.optimizer._get_lr(index) == 0.75

    def test_lars_gets_it_by_index_for_it_reads_names_itself(self):
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "lars", {"learning_rate": 1.0})
        index = [param.name for param in trainer._params].index("net_dense0_weight")
        assert trainer.optimizer.idx2name == {}
        assert pickle.loads(pickle.dumps(trainer.optimizer))._get_lr(index) == 0.5

    def test_what_was_filled_in_is_no_wish_of_the_users(self):
        """An optimizer that was pickled, or that served another trainer, brings along what its user set since."""
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd")
        back = pickle.loads(pickle.dumps(trainer.optimizer))
        other = mlp(prefix="other_")
        MultiLRTrainer(other, back)
        assert {param.lr_mult for param in other.collect_params().values()} == {1.0}
        back = pickle.loads(pickle.dumps(trainer.optimizer))
        net[2].collect_params().setattr("grad_req", "null")
        back.set_lr_mult({"net_dense0_weight": 0.25})
        MultiLRTrainer(net, back)
        assert (net[0].weight.lr_mult, net[0].bias.lr_mult, net[2].weight.grad_req) == (0.25, 0.5, "null")

    def test_ready_optimizer_brings_wd_multipliers_along(self):
        net = mlp()
        optimizer = mx.optimizer.SGD(wd=0.1)
        optimizer.set_wd_mult({"net_dense0_weight": 0})
        MultiLRTrainer(net, optimizer)
        assert (net[0].weight.wd_mult, net[2].weight.wd_mult) == (0, 1)

    def test_numbers_are_plain_floats(self):
        """They are pickled to servers, which may not have what a richer type needs."""
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], np.float32(0.5))], "sgd")
        assert {type(value) for value in trainer.optimizer.lr_mult.values()} == {float}


def test_backward_of_the_test_network_is_what_the_promises_are_about():
    """Guard the guard: the loop of these tests must move every weight under stock Trainer."""
    net = mlp()
    before = snapshot(net)
    backward(net, *batches(1)[0])
    Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1}).step(4)
    assert weights(moved(before, snapshot(net))) == {name for name in before if "running" not in name}
