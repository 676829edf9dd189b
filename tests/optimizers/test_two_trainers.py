"""A trainer whose groups have optimizers of their own equals stock Trainers on the parts, bit for bit."""

import copy
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer, ParamGroup, freeze
from optimizer_zoo import Embedder
from support import CONTEXTS, Overflow, backward, batches, bits, mlp, moved, same, same_as_stock, snapshot, train

SGD = ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3})
ADAM = ("adam", {"learning_rate": 0.01, "wd": 1e-3})
PAIRS = [
    (SGD, ADAM),
    (ADAM, SGD),
    (("nag", {"learning_rate": 0.05, "momentum": 0.9}), ("adadelta", {"wd": 1e-3})),
    (("adadelta", {}), ("rmsprop", {"learning_rate": 0.01, "centered": True})),
    (("lars", {"learning_rate": 0.1, "momentum": 0.9}), ("lamb", {"learning_rate": 0.01})),
    (("ftrl", {}), ("ftml", {})),
    (("adagrad", {}), ("nadam", {})),
    (("signum", {}), ("sgd", {"learning_rate": 0.1, "clip_gradient": 0.01, "rescale_grad": 0.3})),
]
IDS = [f"{one[0]}-{two[0]}" for one, two in PAIRS]


class StockTrainers:
    """Stock trainers of the parts of a network, stepped together."""

    def __init__(self, *parts, **options):
        self.trainers = [gluon.Trainer(params, *optimizer, **options) for params, optimizer in parts]

    def step(self, *args, **kwargs):
        for trainer in self.trainers:
            trainer.step(*args, **kwargs)


def halves(net):
    """Return the Parameters before the last layer and those of the last layer, in the order of stock Trainer."""
    params = [param for _, param in sorted(net.collect_params().items())]
    last = set(net[-1].collect_params().values())
    return [param for param in params if param not in last], [param for param in params if param in last]


def build(net, one, two, **options):
    head = ParamGroup(halves(net)[1], name="head", optimizer=two[0], optimizer_params=two[1])
    return MultiLRTrainer([net, head], *one, **options)


def stock(net, one, two, **options):
    first, last = halves(net)
    return StockTrainers((first, one), (last, two), **options)


@pytest.fixture(params=["1", "0"], ids=["fast", "stock's loop"], autouse=True)
def fast(request, monkeypatch):
    monkeypatch.setenv("MULTITRAINER_FAST", request.param)


@pytest.mark.parametrize("mode", ["plain", "hybridized", "static", "two contexts", "two contexts, kvstore local"])
@pytest.mark.parametrize(("one", "two"), PAIRS, ids=IDS)
def test_every_pair_of_optimizers(one, two, mode):
    """On two contexts, Nadam differs under stock if a kvstore updates: it counts in an attribute, for each context."""
    ctx = CONTEXTS if "two" in mode else None
    options = {"kvstore": "local" if "local" in mode else "device", "update_on_kvstore": False}

    def trained(kind):
        net = mlp(ctx, batchnorm=ctx is None)
        if mode in ("hybridized", "static"):
            net.hybridize(static_alloc=mode == "static", static_shape=mode == "static")
        return train(net, kind(net, copy.deepcopy(one), copy.deepcopy(two), **options), batches(4), ctx)

    assert same_as_stock(trained(build), lambda: trained(stock))


@pytest.mark.parametrize("update_on_kvstore", [None, False])
def test_stock_on_two_contexts_whoever_updates(update_on_kvstore):
    ours, theirs = mlp(CONTEXTS), mlp(CONTEXTS)
    history = train(ours, build(ours, SGD, ADAM, update_on_kvstore=update_on_kvstore), batches(4), CONTEXTS)
    assert same(history, train(theirs, stock(theirs, SGD, ADAM), batches(4), CONTEXTS))


def test_ready_made_optimizers_and_settings_alone():
    net = mlp()
    own = mx.optimizer.Adam(learning_rate=0.01)
    groups = [ParamGroup(net[0], optimizer=own), ParamGroup(net[2], optimizer_params={"momentum": 0.5, "wd": 0})]
    trainer = MultiLRTrainer([net, *groups], *SGD)
    assert trainer.optimizers["0"] is own
    theirs = mlp()
    layers = [list(theirs[i].collect_params().values()) for i in range(3)]
    expected = StockTrainers(
        (layers[1], SGD),
        (layers[0], ("adam", {"learning_rate": 0.01})),
        (layers[2], ("sgd", {"learning_rate": 0.1, "momentum": 0.5, "wd": 0})),
    )
    assert same(train(net, trainer, batches()), train(theirs, expected, batches()))


def schedulers():
    return (
        mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.1),
        mx.lr_scheduler.MultiFactorScheduler([1, 3, 4], 0.3, base_lr=0.05),
    )


def scheduled():
    one, two = schedulers()
    return ("sgd", {"lr_scheduler": one, "momentum": 0.9}), ("nag", {"lr_scheduler": two, "momentum": 0.9})


def test_each_optimizer_has_its_own_lr_scheduler():
    ours, theirs = mlp(), mlp()
    history = train(ours, build(ours, *scheduled()), batches(6))
    assert same(history, train(theirs, stock(theirs, *scheduled()), batches(6)))


def test_a_group_takes_over_a_copy_of_the_trainers_lr_scheduler():
    def make():
        return {"lr_scheduler": schedulers()[0], "momentum": 0.9}

    ours, theirs = mlp(), mlp()
    trainer = build(ours, ("sgd", make()), (None, {"momentum": 0.5}))
    expected = stock(theirs, ("sgd", make()), ("sgd", {**make(), "momentum": 0.5}))
    assert same(train(ours, trainer, batches(6)), train(theirs, expected, batches(6)))


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("frozen", ["head", "body"])
def test_freezing_one_part_and_unfreezing_it_in_the_middle(frozen, hybridize):
    """While a part is frozen, stock does not step its trainer."""
    ours, theirs = mlp(batchnorm=False), mlp(batchnorm=False)
    for net in (ours, theirs):
        net.hybridize(hybridize)
    trainer, expected = build(ours, SGD, ADAM), stock(theirs, SGD, ADAM)
    target = ours[1] if frozen == "head" else ours[0]
    everything, trained = expected.trainers, expected.trainers[:1] if frozen == "head" else expected.trainers[1:]
    for step, multiplier, active in [(0, 1, everything), (1, 0, trained), (2, 0, trained), (3, 1, everything)]:
        trainer.set_lr_mult({target: multiplier})
        expected.trainers = active
        data = batches(2, seed=step)
        assert same(train(ours, trainer, data), train(theirs, expected, data))
        if step == 1:
            assert (ours[1] if frozen == "head" else ours[0]).weight.grad_req == "null"


def test_schedulers_count_updates_while_their_part_is_frozen():
    """As those of two MultiLRTrainers do."""
    ours, theirs = mlp(), mlp()
    one, two = scheduled()
    trainer = build(ours, one, two)
    first, last = halves(theirs)
    one, two = scheduled()
    others = [MultiLRTrainer([first], *one), MultiLRTrainer([last], *two)]

    def step(batch_size):
        for each in others:
            each.step(batch_size)

    for multiplier in (0, 0, 1, 0, 1):
        trainer.set_lr_mult({ours[2]: multiplier})
        others[1].set_lr_mult({theirs[2]: multiplier})
        assert same(train(ours, trainer, batches(2)), train(theirs, None, batches(2), step=step))
    assert trainer.optimizers["head"].num_update == others[1].optimizer.num_update == 10


def test_multipliers_schedules_and_weight_decay_act_on_every_part():
    """A schedule goes by the updates of the trainer."""
    ours, theirs = mlp(), mlp()
    trainer, expected = build(ours, SGD, ADAM), stock(theirs, SGD, ADAM)
    trainer.set_lr_mult({ours: lambda num_update: 1 / num_update})
    trainer.set_wd_mult({ours[2]: lambda num_update: num_update})
    for step, (x, y) in enumerate(batches(4), 1):
        theirs.collect_params().setattr("lr_mult", 1 / step)
        theirs[2].collect_params().setattr("wd_mult", step)
        assert same(train(ours, trainer, [(x, y)]), train(theirs, expected, [(x, y)]))


DOORS = {
    "trainer": lambda trainer, param: trainer.set_lr_mult({param: 0.25}),
    "Parameter": lambda trainer, param: setattr(param, "lr_mult", 0.25),
    "trainer.optimizer": lambda trainer, param: trainer.optimizer.set_lr_mult({param.name: 0.25}),
    "trainer.optimizers": lambda trainer, param: trainer.optimizers["head"].set_lr_mult({param.name: 0.25}),
    "by index": lambda trainer, param: trainer.optimizers["head"].lr_mult.update(
        {trainer._param2idx[param.name]: 0.25}
    ),
}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("door", DOORS)
def test_any_door_sets_the_multiplier_of_any_part(door, layer):
    ours, theirs = mlp(), mlp()
    trainer, expected = build(ours, SGD, ADAM), stock(theirs, SGD, ADAM)
    assert same(train(ours, trainer, batches(2)), train(theirs, expected, batches(2)))
    DOORS[door](trainer, ours[layer].weight)
    theirs[layer].weight.lr_mult = 0.25
    assert same(train(ours, trainer, batches(2)), train(theirs, expected, batches(2)))
    assert ours[layer].weight.lr_mult == 0.25


def test_two_optimizers_that_were_told_different_things_raise():
    net = mlp()
    trainer = build(net, SGD, ADAM)
    trainer.optimizer.set_lr_mult({"net_dense1_weight": 0.5})
    trainer.optimizers["head"].set_lr_mult({"net_dense1_weight": 0.25})
    backward(net, *batches(1)[0])
    with pytest.raises(ValueError, match=r"net_dense1_weight' was set to 0\.5 .*0\.25"):
        trainer.step(4)
    trainer.set_lr_mult({"net_dense1_weight": 2})
    trainer.step(4)


class TestUnsupportedMultipliers:
    def test_name_the_group_at_the_start(self):
        net = mlp()
        head = ParamGroup(net[2], lr_mult=0.5, name="head", optimizer="adadelta")
        with pytest.raises(ValueError, match=r"would have no effect: AdaDelta, the optimizer of group 'head'"):
            MultiLRTrainer([net, head], "sgd")
        assert net[2].weight._trainer is None
        assert net[2].weight.lr_mult == 1

    def test_name_the_group_later(self):
        net = mlp()
        trainer = build(net, SGD, ("adadelta", {}))
        trainer.set_lr_mult({net[0]: 0.5, net[2]: 0})
        with pytest.raises(ValueError, match="AdaDelta, the optimizer of group 'head', never asks for it"):
            trainer.set_lr_mult({net[2]: 0.5})
        assert net[2].weight.lr_mult == 0

    def test_of_the_trainers_own_optimizer_leave_the_groups_alone(self):
        net = mlp()
        trainer = build(net, ("adadelta", {}), SGD)
        trainer.set_lr_mult({net[2]: 0.5})
        with pytest.raises(ValueError, match="AdaDelta never asks for it"):
            trainer.set_lr_mult({net[0]: 0.5})


class TestNoParameterIsLeftForTheTrainersOwn:
    def build(self):
        net = mlp()
        groups = [ParamGroup(layer, optimizer=o[0], optimizer_params=o[1]) for layer, o in zip(net, (SGD, ADAM, SGD))]
        return net, MultiLRTrainer([net, *groups], "nag", {"learning_rate": 3})

    def test_equals_stock(self):
        (net, trainer), theirs = self.build(), mlp()
        layers = [list(layer.collect_params().values()) for layer in theirs]
        expected = StockTrainers((layers[0], SGD), (layers[1], ADAM), (layers[2], SGD))
        assert same(train(net, trainer, batches()), train(theirs, expected, batches()))

    def test_schedules_go_by_the_updates(self):
        net, trainer = self.build()
        numbers = []
        trainer.set_lr_mult({net[0]: lambda num_update: numbers.append(num_update) or 1})
        trainer._amp_loss_scaler = Overflow({2})
        train(net, trainer, batches(4))
        assert numbers == [1, 2, 2, 3, 4]
        assert trainer.optimizer.num_update == 3


def test_schedules_go_on_while_the_user_holds_the_trainers_own_part():
    net = mlp()
    trainer = build(net, SGD, ADAM)
    numbers = []
    trainer.set_lr_mult({net[2]: lambda num_update: numbers.append(num_update) or 1})
    for layer in net[:2]:
        layer.collect_params().setattr("grad_req", "null")
    train(net, trainer, batches(3))
    assert numbers == [1, 2, 3, 4]


class TestAMP:
    def test_an_overflow_skips_all_parts(self):
        net, theirs = mlp(), mlp()
        trainer, expected = build(net, SGD, ADAM), stock(theirs, SGD, ADAM)
        scaler = trainer._amp_loss_scaler = Overflow({2})
        history = train(net, trainer, batches(4))
        assert scaler.calls == 4
        assert not moved(history[0], history[1]) - {"net_batchnorm0_running_mean", "net_batchnorm0_running_var"}
        for each in expected.trainers:
            each._amp_loss_scaler = Overflow({2})
        assert same(history, train(theirs, expected, batches(4)))

    def test_the_loss_scale_reaches_all_parts(self):
        two = ("adam", {"learning_rate": 0.01, "rescale_grad": 0.3})
        net, theirs = mlp(), mlp()
        trainer, expected = build(net, SGD, two), stock(theirs, SGD, two)
        for each in (trainer, *expected.trainers):
            each._scale /= 1024  # as amp.scale_loss does
        assert same(train(net, trainer, batches()), train(theirs, expected, batches()))


def test_stale_gradients():
    ours, theirs = mlp(), mlp()
    trainer, expected = build(ours, SGD, ADAM), stock(theirs, SGD, ADAM)
    assert same(train(ours, trainer, batches(2)), train(theirs, expected, batches(2)))
    for net in (ours, theirs):
        backward(net, *batches(1)[0])
        net[2].bias.data()._fresh_grad = False
    before = snapshot(ours), bits(trainer._updaters[0].states)
    with pytest.raises(UserWarning, match="Gradient of Parameter `net_dense1_bias` on context"):
        trainer.step(4)
    assert not moved(before[0], snapshot(ours))
    assert before[1] == bits(trainer._updaters[0].states)
    for net, each in ((ours, trainer), (theirs, expected)):
        backward(net, *batches(1)[0])
        net[2].bias.data()._fresh_grad = False
        each.step(4, ignore_stale_grad=True)
    assert not moved(snapshot(theirs), snapshot(ours))
    assert same(train(ours, trainer, batches(2)), train(theirs, expected, batches(2)))


def test_allreduce_and_update_may_be_called_apart():
    ours, theirs = mlp(CONTEXTS), mlp(CONTEXTS)
    options = {"update_on_kvstore": False}
    trainer, expected = build(ours, SGD, ADAM), stock(theirs, SGD, ADAM, **options)

    def apart(*trainers):
        def step(batch_size):
            for each in trainers:
                each.allreduce_grads()
                each.update(batch_size)

        return step

    history = train(ours, None, batches(), CONTEXTS, step=apart(trainer))
    assert same(history, train(theirs, None, batches(), CONTEXTS, step=apart(*expected.trainers)))


def test_sparse_gradients():
    def trained(make):
        net = Embedder()
        net.initialize()
        trainer = make(net)
        for i in range(4):
            with mx.autograd.record():
                loss = (net(mx.nd.array([[i, 1]])) ** 2).sum()
            loss.backward()
            trainer.step(1)
        return [bits(param.data()) for param in net.collect_params().values()]

    two = ("adam", {"lazy_update": True})
    ours = trained(
        lambda net: MultiLRTrainer(
            [net, ParamGroup(net.embedding, optimizer=two[0], optimizer_params=two[1])], "sgd", {"momentum": 0.9}
        )
    )
    assert ours == trained(
        lambda net: StockTrainers(
            (net.output.collect_params(), ("sgd", {"momentum": 0.9})), (net.embedding.collect_params(), two)
        )
    )


def test_deferred_shapes():
    def network():
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Dense(4), nn.Dense(2))
        net.initialize(mx.init.Xavier())
        return net

    ours, theirs = network(), network()
    trainer = MultiLRTrainer([ours, ParamGroup(ours[1], optimizer="adam")], *SGD)
    expected = StockTrainers((theirs[0].collect_params(), SGD), (theirs[1].collect_params(), ("adam", {})))
    mx.random.seed(3)
    history = train(ours, trainer, batches())
    mx.random.seed(3)
    assert same(history, train(theirs, expected, batches()))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_copies_train_on_by_themselves(how):
    def go_on(net, trainer, step=None):
        return train(net, trainer, batches(3, seed=8), step=step)

    net = mlp()
    trainer = build(net, *scheduled())
    train(net, trainer, batches(3))
    twin, other = how((net, trainer))
    for param in twin.collect_params().values():  # the copy of an array is not a variable, with stock either
        if param.grad_req != "null":
            param.grad_req = "null"
            param.grad_req = "write"
    assert other.optimizers["head"] is not trainer.optimizers["head"]
    other.set_lr_mult({twin[2]: 0.5})
    trainer.set_lr_mult({net[2]: 0.5})
    assert same(go_on(twin, other), go_on(net, trainer))
    assert other.optimizers["head"].num_update == 6


def test_a_step_that_fails_in_one_part_leaves_its_count():
    class Failing(mx.optimizer.SGD):
        fails = False

        def update_multi_precision(self, *args):
            if self.fails:
                raise OSError
            super().update_multi_precision(*args)

    net = mlp()
    head = Failing(learning_rate=0.1)
    trainer = MultiLRTrainer([net, (net[0], 0), ParamGroup(net[2], name="head", optimizer=head)], *SGD)
    train(net, trainer, batches(2))
    head.fails = True
    with pytest.raises(OSError):  # noqa: PT011  it has no message
        train(net, trainer, batches(1))
    head.fails = False
    train(net, trainer, batches(1))
    assert head.num_update == 3


def test_an_optimizer_that_another_trainer_took_is_noticed():
    net, own = mlp(), mx.optimizer.Adam()
    trainer = MultiLRTrainer([net, ParamGroup(net[2], optimizer=own)], *SGD)
    gluon.Trainer(mlp(prefix="other_").collect_params(), own)
    backward(net, *batches(1)[0])
    with pytest.raises(RuntimeError, match="was given to another Trainer since"):
        trainer.step(4)


@pytest.mark.parametrize("options", [{"update_on_kvstore": True}, {"kvstore": "dist_async"}], ids=str)
def test_kvstores_that_update_are_refused_before_anything_has_changed(options):
    net, main = mlp(CONTEXTS), mx.optimizer.SGD()
    owner = gluon.Trainer(net.collect_params(), main)
    known = main.param_dict
    with pytest.raises(ValueError, match=r"need workers that update, but .* Use a synchronous kvstore"):
        MultiLRTrainer([net, ParamGroup(net[2], optimizer="adam", lr_mult=3)], main, **options)
    assert main.param_dict is known
    assert net[2].weight._trainer is owner
    assert net[2].weight.lr_mult == 1


def test_learning_rates_are_set_apart():
    net = mlp()
    trainer = build(net, SGD, ADAM)
    trainer.set_learning_rate(0.5)
    assert trainer.learning_rate == 0.5
    assert trainer.learning_rates == {"net": 0.5, "head": 0.01}
    trainer.optimizers["head"].set_learning_rate(0.25)
    assert trainer.learning_rates == {"net": 0.5, "head": 0.25}
    assert MultiLRTrainer(mlp(), "sgd").optimizers == {}


@pytest.mark.parametrize("rate", [{"head": 0.1}, "0.1", None, [0.1]])
def test_a_learning_rate_that_is_no_number_is_refused(rate):
    trainer = build(mlp(), SGD, ADAM)
    with pytest.raises(TypeError, match=r"takes a number, got .*trainer\.optimizers\[name\]\.set_learning_rate"):
        trainer.set_learning_rate(rate)
    assert trainer.learning_rate == SGD[1]["learning_rate"]
    for number in (1, np.float32(0.5), np.array(0.5)):
        trainer.set_learning_rate(number)
        assert trainer.learning_rate == number


def test_multipliers_that_a_ready_made_optimizer_was_told():
    net, own = mlp(), mx.optimizer.Adam()
    own.set_lr_mult({"net_dense1_weight": 0.5})
    MultiLRTrainer([net, ParamGroup(net[2], optimizer=own)], *SGD)
    assert net[2].weight.lr_mult == 0.5
    main, own, net = mx.optimizer.SGD(), mx.optimizer.Adam(), mlp()
    main.set_lr_mult({"net_dense1_weight": 0.25})
    own.set_lr_mult({"net_dense1_weight": 0.5})
    with pytest.raises(ValueError, match=r"'net_dense1_weight' has 0\.5 there and 0\.25 in another optimizer"):
        MultiLRTrainer([net, ParamGroup(net[2], optimizer=own)], main)


def test_freeze_works_on_any_part():
    net = mlp()
    trainer = build(net, SGD, ADAM)
    freeze(net[2])
    history = train(net, trainer, batches(2))
    assert not {name for name in moved(*history) if "dense1" in name}
    assert set(trainer._updaters[0].states) == {
        i for i, param in enumerate(trainer._params) if param.lr_mult and "running" not in param.name
    }


class Program:
    """A random program: parts, optimizers and what happens between the steps."""

    OPTIMIZERS = ("sgd", "nag", "adam", "rmsprop", "adagrad", "signum")

    def __init__(self, seed):
        self.rng = np.random.RandomState(seed)
        self.layers = self.rng.randint(3, 6)
        self.part_of = [int(self.rng.randint(0, 3)) for _ in range(self.layers)]
        self.optimizers = [self.optimizer() for _ in range(3)]
        self.ctx = CONTEXTS if self.rng.rand() < 0.3 else None
        self.hybridize = bool(self.rng.rand() < 0.5)
        self.events = list(self.draw_events())

    def draw_events(self):
        """Draw what comes before each step; at least one layer is not frozen, for backward needs one."""
        frozen = set()
        for _ in range(10):
            kind, layer, value = self.rng.rand(), int(self.rng.randint(self.layers)), self.rng.rand()
            if kind < 0.25 and value < 0.5 and frozen | {layer} == set(range(self.layers)):
                kind = 0.9
            elif kind < 0.25:
                frozen = frozen | {layer} if value < 0.5 else frozen - {layer}
            yield kind, layer, value

    def optimizer(self):
        name = self.OPTIMIZERS[self.rng.randint(len(self.OPTIMIZERS))]
        settings = {"learning_rate": float(self.rng.uniform(0.001, 0.05)), "wd": float(self.rng.choice([0, 0.01]))}
        if name in ("sgd", "nag"):
            settings["momentum"] = float(self.rng.choice([0, 0.9]))
        return name, settings

    def network(self):
        mx.random.seed(3)
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Dense(5, in_units=3), *(nn.Dense(5, in_units=5) for _ in range(self.layers - 2)))
            net.add(nn.Dense(2, in_units=5))
        net.initialize(mx.init.Xavier(), ctx=self.ctx)
        net.hybridize(self.hybridize)
        return net

    def ours(self, tmp_path):
        net = self.network()
        trainer = self.make(net)
        history = []
        for (kind, layer, value), (x, y) in zip(self.events, batches(len(self.events))):
            if kind < 0.25:
                trainer.set_lr_mult({net[layer]: 0 if value < 0.5 else value})
            elif kind < 0.4:
                trainer.set_wd_mult({net[layer]: value})
            elif kind < 0.5:
                self.optimizer_of(trainer, layer).set_learning_rate(value / 50)
            elif kind < 0.65:
                trainer.save_states(tmp_path / "states")
                net.save_parameters(str(tmp_path / "net"))
                net = self.network()
                trainer = self.make(net)
                net.load_parameters(str(tmp_path / "net"), ctx=self.ctx)
                trainer.load_states(tmp_path / "states")
            history += train(net, trainer, [(x, y)], self.ctx)
        return history

    def make(self, net):
        groups = [
            ParamGroup([net[i] for i in range(self.layers) if self.part_of[i] == part], None, None, str(part), *o)
            for part, o in enumerate(self.optimizers)
            if part and part in self.part_of
        ]
        return MultiLRTrainer([net, *groups], *self.optimizers[0])

    def optimizer_of(self, trainer, layer):
        part = self.part_of[layer]
        return trainer.optimizers[str(part)] if part else trainer.optimizer

    def reference(self):
        """Stock trainers, one for each layer; that of a frozen layer is not stepped."""
        net = self.network()
        trainers = [
            gluon.Trainer(net[i].collect_params(), *self.optimizers[self.part_of[i]]) for i in range(self.layers)
        ]
        frozen, history = set(), []
        for (kind, layer, value), (x, y) in zip(self.events, batches(len(self.events))):
            params = net[layer].collect_params()
            if kind < 0.25 and value < 0.5:
                frozen.add(layer)
            elif kind < 0.25:
                frozen.discard(layer)
                params.setattr("lr_mult", value)
            elif kind < 0.4:
                params.setattr("wd_mult", value)
            elif kind < 0.5:
                for i in range(self.layers):
                    if self.part_of[i] == self.part_of[layer]:
                        trainers[i].set_learning_rate(value / 50)
            backward(net, x, y, self.ctx)
            for i in range(self.layers):
                if i not in frozen:
                    trainers[i].step(len(x))
            history.append(snapshot(net))
        return history


@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed, tmp_path):
    program = Program(seed)
    assert same_as_stock(program.ours(tmp_path), program.reference)
