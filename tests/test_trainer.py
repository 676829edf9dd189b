"""MultiLRTrainer with MXNet's other tools: Estimator, AMP, clipping, accumulation, kvstores, subclasses, copies."""

import copy
import pickle
import subprocess
import sys
import textwrap
import warnings

import mxnet as mx
import pytest
from mxnet import gluon
from mxnet.gluon import Trainer, contrib, nn

from multitrainer import MultiLRTrainer
from support import CONTEXTS, PATIENCE, backward, batches, mlp, moved, same, snapshot, train, weights, with_gradients


def both(run):
    """Call ``run`` with stock Trainer and with ours."""
    return run(Trainer), run(MultiLRTrainer)


def test_is_a_trainer():
    net = mlp()
    trainer = MultiLRTrainer(net, "sgd")
    assert isinstance(trainer, Trainer)
    assert net[0].weight._trainer is trainer
    assert trainer.learning_rate == 0.01
    trainer.set_learning_rate(0.5)
    assert trainer.learning_rates == {"net": 0.5}


@pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
@pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lars", "ftrl"])
def test_built_before_deferred_initialization(optimizer, hybridize, ctx):
    if ctx and hybridize and "static_shape" in hybridize:
        hybridize = {"static_alloc": True}  # MXNet races: with both, two runs of stock Trainer differ now and then

    def run(trainer_class):
        mx.random.seed(3)
        net = nn.HybridSequential(prefix="late_")
        with net.name_scope():
            net.add(nn.Dense(4), nn.BatchNorm(), nn.Dense(2))
        net.initialize(mx.init.Xavier(), ctx=ctx)
        if hybridize is not None:
            net.hybridize(**hybridize)
        spec = net.collect_params()
        if trainer_class is MultiLRTrainer:
            spec = [net, (net[0], 0), (net[2], 0.5)]
        else:
            net[0].collect_params().setattr("grad_req", "null")
            net[2].collect_params().setattr("lr_mult", 0.5)
        return train(net, trainer_class(spec, optimizer, {"learning_rate": 0.1}), batches(), ctx)

    stock, ours = both(run)
    assert same(stock, ours)
    assert weights(moved(ours[0], ours[-1])).isdisjoint({"late_dense0_weight", "late_dense0_bias"})


@pytest.mark.parametrize("frozen", [False, True])
def test_estimator(frozen):
    net = mlp()
    net.hybridize()
    trainer = MultiLRTrainer([net, (net[0], 0 if frozen else 0.5)], "sgd", {"learning_rate": 0.1})
    estimator = contrib.estimator.Estimator(
        net, gluon.loss.L2Loss(), train_metrics=mx.metric.MSE(), trainer=trainer, context=[mx.cpu(0)]
    )
    x, y = (mx.nd.concat(*column, dim=0) for column in zip(*batches(4)))
    before = snapshot(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(gluon.data.DataLoader(gluon.data.ArrayDataset(x, y), batch_size=4), epochs=2)
    changed = weights(moved(before, snapshot(net)))
    assert trainer.optimizer.num_update == 8
    assert ("net_dense0_weight" in changed) is not frozen
    assert "net_dense1_weight" in changed


# amp.init patches the operators of the whole process, so this runs in its own. No operator is cast, because fp16 layers
# do not run on CPU; loss scaling, overflow checks and unscaling are the real ones.
AMP = """
import sys
sys.path.insert(0, {tests!r})
import multitrainer
import mxnet as mx
from mxnet import autograd, gluon
from mxnet.contrib import amp
from support import batches, mlp, moved, same, snapshot, weights

amp.init(target_precision_ops=[])

def run(trainer_class, spec=lambda net: net.collect_params(), poison=None):
    net = mlp()
    trainer = trainer_class(spec(net), 'sgd', {{'learning_rate': 0.1, 'momentum': 0.9}}, update_on_kvstore=False)
    amp.init_trainer(trainer)
    history = []
    for i, (x, y) in enumerate(batches(4)):
        with autograd.record():
            loss = gluon.loss.L2Loss()(net(x), y)
            if i == poison:
                loss = loss * float('inf')
            with amp.scale_loss(loss, trainer) as scaled:
                autograd.backward(scaled)
        trainer.step(len(x))
        history.append(snapshot(net))
    return history, trainer, net

stock, ours = run(gluon.Trainer)[0], run(multitrainer.MultiLRTrainer)[0]
assert same(stock, ours)
stock, ours = (run(kind, poison=2)[0] for kind in (gluon.Trainer, multitrainer.MultiLRTrainer))
assert same(stock, ours) and not weights(moved(ours[1], ours[2]))

history, trainer, net = run(multitrainer.MultiLRTrainer, lambda net: [net, (net[0], 0)])
assert 'net_dense0_weight' not in moved(history[0], history[-1])

trainer.set_lr_mult({{net: 0}})
before = snapshot(net)
amp.unscale(trainer)
trainer.step(4)
trainer.allreduce_grads()
trainer.update(4)
assert not moved(before, snapshot(net))
print('amp works')
"""


def test_amp_with_no_some_and_all_layers_frozen(request):
    code = textwrap.dedent(AMP.format(tests=str(request.path.parent)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.endswith("amp works\n"), done.stdout + done.stderr


@pytest.mark.parametrize("frozen", [False, True])
def test_allreduce_clip_update(frozen):
    def run(trainer_class):
        net = mlp(CONTEXTS)
        if frozen and trainer_class is Trainer:
            net[2].collect_params().setattr("grad_req", "null")
        trainer = trainer_class(net.collect_params(), "sgd", {"learning_rate": 0.5}, update_on_kvstore=False)
        if frozen and trainer_class is MultiLRTrainer:
            trainer.set_lr_mult({net[2]: 0})

        def step(size):
            trainer.allreduce_grads()
            for i, ctx in enumerate(CONTEXTS):
                grads = [p.list_grad()[i] for p in net.collect_params().values() if p.grad_req != "null"]
                gluon.utils.clip_global_norm(grads, 0.1)
                assert all(grad.context == ctx for grad in grads)
            trainer.update(size)

        return train(net, trainer, batches(), CONTEXTS, step)

    assert same(*both(run))


def test_ignore_stale_grad():
    def run(trainer_class):
        net = mlp()
        trainer = trainer_class(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        train(net, trainer, batches(1))
        with mx.autograd.record():
            loss = (net[2](mx.nd.ones((2, 4))) ** 2).sum()
        loss.backward()
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(2)
        before = snapshot(net)
        trainer.step(2, ignore_stale_grad=True)
        assert moved(before, snapshot(net)) == {"net_dense1_weight", "net_dense1_bias"}
        return [snapshot(net)]

    assert same(*both(run))


def test_gradient_accumulation():
    def run(trainer_class):
        net = mlp()
        net.collect_params(".*(weight|bias|gamma|beta)").setattr("grad_req", "add")
        trainer = trainer_class(net.collect_params(), "adam")
        history = []
        for one, two in zip(batches(4)[::2], batches(4)[1::2]):
            net.collect_params().zero_grad()
            for x, y in (one, two):
                backward(net, x, y)
            trainer.step(8)
            history.append(snapshot(net))
        return history

    assert same(*both(run))


def test_ready_made_optimizer():
    assert same(
        *both(
            lambda kind: train(
                net := mlp(), kind(net.collect_params(), mx.optimizer.NAG(momentum=0.9, learning_rate=0.1)), batches()
            )
        )
    )


def test_optimizer_params_with_a_ready_made_optimizer_are_refused_as_by_stock():
    net = mlp()
    with pytest.raises(AssertionError, match="optimizer_params must be None"):
        MultiLRTrainer(net, mx.optimizer.SGD(), {"learning_rate": 0.1})


def test_saving_and_loading_states_during_training_as_under_stock(tmp_path):
    def run(trainer_class):
        net = mlp()
        trainer = trainer_class(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        history = train(net, trainer, batches(2))
        trainer.save_states(str(tmp_path / "states"))
        history += train(net, trainer, batches(1))
        trainer.load_states(str(tmp_path / "states"))
        net[0].weight.lr_mult = 0.5  # takes effect although loading replaced the optimizer
        return history + train(net, trainer, batches(2))

    assert same(*both(run))


def test_set_data_resets_the_kvstore_as_under_stock():
    def run(trainer_class):
        net = mlp(CONTEXTS)
        trainer = trainer_class(net.collect_params(), "sgd", {"learning_rate": 0.1}, update_on_kvstore=True)
        history = train(net, trainer, batches(2), CONTEXTS)
        net[0].weight.set_data(mx.nd.ones((4, 3)))
        return history + train(net, trainer, batches(2), CONTEXTS)

    assert same(*both(run))


class OtherTrainer(Trainer):
    """A Trainer as another package may have it, with an argument and a reduction of gradients of its own."""

    def __init__(self, params, optimizer, optimizer_params=None, note=None, **kwargs):
        super().__init__(params, optimizer, optimizer_params, kvstore=None, **kwargs)
        self.note, self.reduced = note, 0

    def _allreduce_grads(self):
        self.reduced += 1
        super()._allreduce_grads()


def test_a_class_that_inherits_from_another_trainer_too():
    class Cooperative(MultiLRTrainer, OtherTrainer):
        pass

    net = mlp()
    trainer = Cooperative([net, (net[0], 0)], "sgd", {"learning_rate": 0.1}, note="hello")
    before = snapshot(net)
    train(net, trainer, batches(2))
    assert (trainer.note, trainer.reduced) == ("hello", 2)
    assert weights(moved(before, snapshot(net))).isdisjoint({"net_dense0_weight", "net_dense0_bias"})
    assert "net_dense1_weight" in moved(before, snapshot(net))


class TestReport:
    def test_table(self):
        net = mlp()
        net[2].bias.wd_mult = 0
        trainer = MultiLRTrainer([net, (net[0], 0), (net[2], 10)], "sgd", {"learning_rate": 0.1, "wd": 1e-3})
        assert trainer.summary().splitlines() == [
            "group        parameters  values  lr_mult  learning rate     wd  state",
            "net                   2       8        1            0.1  0.001  trained",
            "0                     2      16        0              0  0.001  frozen",
            "2 wd_mult=0           1       2       10              1      0  trained",
            "2 wd_mult=1           1       8       10              1  0.001  trained",
        ]
        assert trainer.learning_rates == {"net": 0.1, "0": 0.0, "2": 1.0}

    def test_parameters_outside_of_groups_have_rows_of_their_own(self):
        net = mlp()
        trainer = MultiLRTrainer(
            [*net[0].collect_params().values(), (net[2], 2), *net[1].collect_params().values()], "sgd"
        )
        assert [line.split()[0] for line in trainer.summary().splitlines()[1:]] == [
            "parameters",
            "net_dense1",
            "parameters#2",
        ]

    def test_shapes_that_are_unknown_at_first(self):
        net = nn.Dense(3, prefix="late_")
        net.initialize()
        trainer = MultiLRTrainer(net, "sgd")
        assert trainer.summary().splitlines()[1].split()[:3] == ["late", "2", "?"]
        net(mx.nd.ones((1, 2)))
        assert trainer.summary().splitlines()[1].split()[:3] == ["late", "2", "9"]

    def test_repr_is_one_line(self):
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0)], "adam", {"learning_rate": 0.002})
        assert repr(trainer) == "MultiLRTrainer(Adam, learning_rate=0.002, 2 groups, 6 parameters, 2 frozen)"

    def test_learning_rate_of_a_scheduler(self):
        net = mlp()
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=0.8)
        trainer = MultiLRTrainer([net, (net[0], 0.1)], "sgd", {"lr_scheduler": scheduler})
        train(net, trainer, batches(2))
        assert trainer.learning_rates == pytest.approx({"net": 0.2, "0": 0.02})  # of the third update
        assert "learning rate 0.2 = 0.2 * lr_mult 1" in trainer.explain("net_dense1_weight")
        assert trainer.learning_rate == pytest.approx(0.4)  # of the second, as under stock


WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


class TestCopies:
    """What can be copied and pickled under stock can be copied here, whether layers are frozen or not."""

    def trained(self, hybridize, spec=lambda net: net, trainer_class=MultiLRTrainer):
        net = mlp()
        if hybridize is not None:
            net.hybridize(**hybridize)
        trainer = trainer_class(spec(net), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        train(net, trainer, batches(2))
        return net, trainer

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True}], ids=str)
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("what", ["network", "Parameter", "trainer", "network and trainer"])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_as_under_stock(self, what, way, hybridize, frozen):
        def attempt(trainer_class, spec):
            net, trainer = self.trained(hybridize, spec, trainer_class)
            value = {"network": net, "Parameter": net[0].weight, "trainer": trainer}.get(what, (net, trainer))
            try:
                WAYS[way](value)
            except ValueError as error:
                return str(error)
            return "copied"

        ours = attempt(MultiLRTrainer, lambda net: [net, (net[0], 0)] if frozen else net)
        assert ours == attempt(Trainer, lambda net: net.collect_params())

    @pytest.mark.parametrize("hybridize", [None, {}], ids=str)
    def test_a_shallow_copy_of_a_network_with_frozen_layers_runs(self, hybridize):
        net, _ = self.trained(hybridize, lambda net: [net, (net[0], 0)])
        twin = copy.copy(net)
        twin.hybridize()
        x, _ = batches(1)[0]
        assert twin(x).asnumpy() == pytest.approx(net(x).asnumpy(), rel=1e-5)

    @pytest.mark.parametrize("way", ["deepcopy", "pickle"])
    def test_a_copied_trainer_trains_the_copied_network(self, way):
        net, trainer = self.trained(None, lambda net: [net, (net[0], 0.5)])
        twin, other = WAYS[way]((net, trainer))
        with_gradients(twin)
        for each in (net, twin):
            each[0].collect_params().setattr("lr_mult", 0.25)
        assert same(train(net, trainer, batches(2)), train(twin, other, batches(2)))
        assert twin[0].weight.lr_mult == 0.25

    def test_a_copied_trainer_freezes_the_copied_network(self):
        net, trainer = self.trained(None)
        twin, other = copy.deepcopy((net, trainer))
        with_gradients(twin)
        other.set_lr_mult({twin[:2]: 0})
        before = snapshot(twin)
        train(twin, other, batches(2))
        assert moved(before, snapshot(twin)) == {"net_dense1_weight", "net_dense1_bias"}
        assert net[0].weight.lr_mult == 1

    def test_a_pickled_network_loads_without_multitrainer(self, tmp_path):
        net, _ = self.trained(None, lambda net: [net, (net[0], 0)])
        for param in net.collect_params().values():
            param._trainer = None  # stock pickles the trainer along
        (tmp_path / "net").write_bytes(pickle.dumps(net))
        code = """if True:
            import pickle, sys, numpy
            numpy.bool = bool
            import mxnet as mx
            pickle.load(open(sys.argv[1], 'rb'))(mx.nd.ones((1, 3))).wait_to_read()
            assert 'multitrainer' not in sys.modules"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "net")], check=True, timeout=300)


def test_repr_of_a_trainer_whose_construction_failed():
    trainer = MultiLRTrainer.__new__(MultiLRTrainer)
    with pytest.raises(TypeError):
        trainer.__init__(3, "sgd")
    assert "MultiLRTrainer" in repr(trainer)


class TestNewLayers:
    """A layer that was assigned to the network later belongs to no trainer, which is an error."""

    def build(self, spec=lambda net: net):
        class Net(nn.HybridBlock):
            def __init__(self):
                super().__init__(prefix="net_")
                with self.name_scope():
                    self.body = nn.Dense(4, in_units=3)
                    self.output = nn.Dense(2, in_units=4)

            def hybrid_forward(self, F, x):  # noqa: N803
                return self.output(self.body(x))

        net = Net()
        net.initialize()
        return net, MultiLRTrainer(spec(net), "sgd", {"learning_rate": 0.1})

    def replace(self, net):
        with net.name_scope():
            net.output = nn.Dense(2, in_units=4)
        net.output.initialize()

    @pytest.mark.parametrize("backward_done", [False, True])
    @pytest.mark.parametrize("ignore_stale_grad", [False, True])
    @pytest.mark.parametrize("hybridize", [False, True])
    def test_is_an_error_before_anything_changes(self, hybridize, ignore_stale_grad, backward_done):
        net, trainer = self.build()
        if hybridize:
            net.hybridize()
        train(net, trainer, batches(1))
        self.replace(net)
        before = snapshot(net)
        if backward_done:
            backward(net, *batches(1)[0])
        for step in (trainer.step, trainer.update):
            with pytest.raises(ValueError, match=rf"{net.output.weight.name}.*belong to no trainer.*trainer\.add"):
                step(4, ignore_stale_grad=ignore_stale_grad)
        with pytest.raises(ValueError, match=r"trainer\.add"):
            trainer.allreduce_grads()
        assert not moved(before, snapshot(net))
        assert trainer.optimizer.num_update == 1

    @pytest.mark.parametrize("case", ["frozen by hand", "in another trainer"])
    def test_is_not_an_error_if_nothing_would_be_lost(self, case):
        net, trainer = self.build(lambda net: [net.body, net])
        self.replace(net)
        if case == "frozen by hand":
            net.output.collect_params().setattr("grad_req", "null")
        else:
            Trainer(net.output.collect_params(), "sgd")
        for _ in range(2):
            backward(net, *batches(1)[0])
            trainer.step(2)  # the old head, which left the network, is no stale gradient

    def test_two_trainers_on_two_parts(self):
        net = mlp()
        one, two = MultiLRTrainer([net[0], net[1]], "sgd"), MultiLRTrainer(net[2], "sgd")
        backward(net, *batches(1)[0])
        one.step(4)
        two.step(4)
