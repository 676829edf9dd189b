"""What an optimizer of any kind keeps comes back as it was: arrays, what shares them, keys, and what counts."""

import functools
import json
import types

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.gluon import nn
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import archive, encoding
from support import CONTEXTS, batches, bits, fingerprint, mlp, moved, same, snapshot, train
from value_trees import TREES


def saved_and_loaded(folder, build, steps=3, between=None):
    """Train, save, build again and load; return both pairs of network and trainer."""
    net, trainer = build()
    train(net, trainer, batches(steps))
    net.save_parameters(str(folder / "net"))
    trainer.save_states(folder / "states")
    if between is not None:
        between(folder / "states")
    other, fresh = build()
    other.load_parameters(str(folder / "net"))
    fresh.load_states(folder / "states")
    return (net, trainer), (other, fresh)


def resumes(folder, build, **options):
    """Whether training goes on as if it had not been stopped."""
    (net, trainer), (other, fresh) = saved_and_loaded(folder, build, **options)
    assert fingerprint(trainer, net) == fingerprint(fresh, other)
    goes_on = same(train(net, trainer, batches(3, seed=8)), train(other, fresh, batches(3, seed=8)))
    return goes_on and fingerprint(trainer, net) == fingerprint(fresh, other)


def without_shared(path):
    """Write a file as versions before this one did, which had no 'shared'."""
    with np.load(str(path)) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays.pop(archive.HEADER).item())
    del header["shared"]
    archive.write(path, header, list(arrays.items()))


class Averaging(Optimizer):
    """Keeps an average of each weight, which it begins with the state."""

    def __init__(self, kind="apart", **kwargs):
        super().__init__(**kwargs)
        self.kind, self.average, self.made = kind, {}, 0

    def create_state(self, index, weight):
        self.made += 1
        self.average[index] = mx.nd.zeros(weight.shape, weight.context)
        if self.kind == "apart":
            return mx.nd.zeros(weight.shape, weight.context)
        return self.average[index] if self.kind == "one" else [self.average[index], self.average]

    def update(self, index, weight, grad, state):
        self._update_count(index)
        if self.kind == "rebound":
            self.average[index] = self.average[index] * 0.5 + 0.5 * weight
        else:
            self.average[index][:] = 0.5 * self.average[index] + 0.5 * weight
        first = state if self.kind in ("apart", "one") else state[0]
        weight[:] -= self._get_lr(index) * (grad * self.rescale_grad + 0.1 * first)


class TestSharedWithTheState:
    """What create_state keeps on the optimizer, and arrays that are state and attribute at once."""

    @pytest.mark.parametrize("before", [None, without_shared], ids=["", "older file"])
    @pytest.mark.parametrize("kind", ["apart", "one", "nested", "rebound"])
    def test_what_create_state_keeps_is_not_lost(self, kind, before, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer([net, (net[1], 0.5)], Averaging(kind, learning_rate=0.1))

        assert resumes(tmp_path, build, between=before)

    @pytest.mark.parametrize("before", [None, without_shared], ids=["", "older file"])
    def test_one_object_is_one_object_again(self, before, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("nested", learning_rate=0.1))

        _, (_, fresh) = saved_and_loaded(tmp_path, build, between=before)
        optimizer, states = fresh.optimizer, fresh._updaters[0].states
        assert len(states) == 6
        for index, state in states.items():
            assert state[0] is optimizer.average[index]
            assert state[1] is optimizer.average

    def test_two_are_two_again(self, tmp_path):
        """As they were when saved, though a new optimizer would make one of them."""

        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("rebound", learning_rate=0.1))

        _, (_, fresh) = saved_and_loaded(tmp_path, build)
        for index, state in fresh._updaters[0].states.items():
            assert state[0] is not fresh.optimizer.average[index]

    def test_a_refused_file_changes_nothing_that_create_state_would(self, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("one", learning_rate=0.1))

        net, trainer = build()
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        with np.load(str(tmp_path / "states")) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(archive.HEADER).item())
        header["was_frozen"] = 3
        archive.write(tmp_path / "bad", header, list(arrays.items()))
        for keep in ((), "average"):
            before = fingerprint(trainer, net)
            kept = dict(trainer.optimizer.average)
            with pytest.raises(ValueError, match="was_frozen"):
                trainer.load_states(tmp_path / "bad", keep=keep)
            assert fingerprint(trainer, net) == before
            assert all(trainer.optimizer.average[index] is array for index, array in kept.items())

    def test_keep_what_create_state_would_make(self, tmp_path):
        net = mlp()
        trainer = MultiLRTrainer(net, Averaging("apart", learning_rate=0.1))
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        train(net, trainer, batches(2))
        mine = bits(trainer.optimizer.average)
        trainer.load_states(tmp_path / "states", keep="average")
        assert bits(trainer.optimizer.average) == mine

    @pytest.mark.parametrize("before", [None, without_shared], ids=["", "older file"])
    @pytest.mark.parametrize("kind", ["apart", "one"])
    def test_in_part_and_in_another_order(self, kind, before, tmp_path):
        net = mlp()
        trainer = MultiLRTrainer(net, Averaging(kind, learning_rate=0.1))
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        if before is not None:
            before(tmp_path / "states")
        other = mlp()
        params = [*reversed(list(other[2].collect_params().values())), mx.gluon.Parameter("new", shape=(2,))]
        params[-1].initialize()
        fresh = MultiLRTrainer(params, Averaging(kind, learning_rate=0.1))
        fresh.load_states(tmp_path / "states", partial=True)
        there = {trainer._params[i].name: array for i, array in trainer.optimizer.average.items()}
        assert set(fresh.optimizer.average) == set(fresh._updaters[0].states) == {0, 1}
        for index, array in fresh.optimizer.average.items():
            assert bits(array) == bits(there[fresh._params[index].name])
            assert (fresh._updaters[0].states[index] is array) == (kind == "one")

    def test_two_contexts(self, tmp_path):
        """The array is the state on the second, which was made last; the first has equal ones."""

        def build():
            net = mlp(CONTEXTS, batchnorm=False)
            optimizer = Averaging("one", learning_rate=0.1)
            return net, MultiLRTrainer(net, optimizer, update_on_kvstore=False)

        _, trainer = build()
        trainer.step(1, ignore_stale_grad=True)
        states = [updater.states for updater in trainer._updaters]
        assert not any(states)
        for index, param in enumerate(trainer._params):
            for updater, weight in zip(trainer._updaters, param.list_data()):
                updater.states[index] = trainer.optimizer.create_state(index, weight)
                updater.states_synced[index] = True
        trainer.save_states(tmp_path / "states")
        _, fresh = build()
        fresh.load_states(tmp_path / "states")
        for index, state in fresh._updaters[0].states.items():
            assert state is fresh.optimizer.average[index]
            assert state is not fresh._updaters[1].states[index]
            assert fresh._updaters[1].states[index].context == CONTEXTS[1]


class Tallying(Optimizer):
    """Keeps its state in NumPy arrays, lists and dicts, and changes them in place."""

    def create_state(self, index, weight):
        return np.zeros(weight.shape, "float32"), {"log": [0]}

    def update(self, index, weight, grad, state):
        self._update_count(index)
        velocity, notes = state
        velocity *= 0.9
        velocity += (grad * self.rescale_grad).asnumpy()
        notes["log"].append(float(velocity.sum()))
        weight[:] -= self._get_lr(index) * mx.nd.array(velocity, ctx=weight.context) * len(notes["log"])


def test_each_context_has_states_of_its_own(tmp_path):
    """Those that are NumPy arrays, too, which an update on one context would change for the other."""

    def build():
        net = mlp(CONTEXTS, batchnorm=False)
        return net, MultiLRTrainer(net, Tallying(learning_rate=0.1), update_on_kvstore=False)

    def go_on(net, trainer, seed):
        train(net, trainer, batches(3, seed=seed), CONTEXTS)
        return [snapshot(net), *({n: p.list_data()[1].asnumpy() for n, p in net.collect_params().items()},)]

    net, trainer = build()
    go_on(net, trainer, 5)
    net.save_parameters(str(tmp_path / "net"))
    trainer.save_states(tmp_path / "states")
    other, fresh = build()
    other.load_parameters(str(tmp_path / "net"), ctx=CONTEXTS)
    fresh.load_states(tmp_path / "states")
    one, two = (updater.states for updater in fresh._updaters)
    for index in one:
        assert one[index][0] is not two[index][0]
        assert one[index][1]["log"] is not two[index][1]["log"]
    assert same(go_on(net, trainer, 8), go_on(other, fresh, 8))


class Phased(Optimizer):
    """Has a factor for each phase of the training, under a whole number."""

    def __init__(self, factors=None, **kwargs):
        super().__init__(**kwargs)
        self.factors = factors

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= self._get_lr(index) * self.factors[self.num_update // 4] * grad * self.rescale_grad


class Selective(Optimizer):
    """Keeps something by index for those alone that have two axes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norms = {}

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        self._update_count(index)
        if len(weight.shape) == 2:
            self.norms[index] = self.norms.get(index, 0) + float(grad.norm().asscalar())
        weight[:] -= self._get_lr(index) * grad * self.rescale_grad / (1 + self.norms.get(index, 0))


class TestWholeNumbersForKeys:
    """A dict by index of the Parameters, and one that only looks like it."""

    def dense(self, turned=False):
        mx.random.seed(3)
        net = nn.Dense(2, in_units=3, prefix="fc_")
        net.initialize(mx.init.Xavier())
        return net, list(net.collect_params().values())[:: -1 if turned else 1]

    FACTORS = ({1: 0.5, 0: 1.0}, {0: 1.0}, {1: 2.0, 0: 1.0, 2: 3.0}, {0: 1.0, 1: 1.0, 70: 2.0})

    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("factors", FACTORS, ids=str)
    def test_phases_are_not_parameters(self, factors, turned, tmp_path):
        for there, here in ((False, turned), (True, turned)):
            net, params = self.dense(there)
            trainer = MultiLRTrainer(params, Phased(factors, learning_rate=0.1))
            train(net, trainer, batches(2))
            trainer.save_states(tmp_path / "states")
            net, params = self.dense(here)
            fresh = MultiLRTrainer(params, Phased(dict(factors), learning_rate=0.1))
            fresh.load_states(tmp_path / "states")
            assert list(fresh.optimizer.factors.items()) == list(factors.items())

    @pytest.mark.parametrize("factors", FACTORS, ids=str)
    def test_phases_of_the_file_win_where_the_order_is_the_same(self, factors, tmp_path):
        net, params = self.dense()
        trainer = MultiLRTrainer(params, Phased(factors, learning_rate=0.1))
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        net, params = self.dense()
        fresh = MultiLRTrainer(params, Phased({0: 7.0}, learning_rate=0.1))
        fresh.load_states(tmp_path / "states")
        assert list(fresh.optimizer.factors.items()) == list(factors.items())

    @pytest.mark.parametrize("factors", [{1: 0.5, 0: 1.0}, {0: 1.0}], ids=str)
    def test_what_could_be_either_is_refused_in_another_order(self, factors, tmp_path):
        net, params = self.dense()
        trainer = MultiLRTrainer(params, Phased(factors, learning_rate=0.1))
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        net, params = self.dense(turned=True)
        fresh = MultiLRTrainer(params, Phased({0: 7.0, 1: 8.0}, learning_rate=0.1))
        with pytest.raises(ValueError, match=r"'factors' of Phased has whole numbers for keys.*keep='factors'"):
            fresh.load_states(tmp_path / "states")
        fresh.load_states(tmp_path / "states", keep="factors")
        assert fresh.optimizer.factors == {0: 7.0, 1: 8.0}

    def test_by_index_for_some_only(self, tmp_path):
        def build(turned):
            net = mlp()
            params = list(net.collect_params().values())[:: -1 if turned else 1]
            return net, MultiLRTrainer(params, Selective(learning_rate=0.1))

        assert resumes(tmp_path, lambda: build(False))
        _, turned = build(True)
        with pytest.raises(ValueError, match=r"'norms' of Selective has whole numbers for keys.*same order"):
            turned.load_states(tmp_path / "states")

    def test_a_method_is_not_replaced_by_a_dict(self, tmp_path):
        _, params = self.dense()
        trainer = MultiLRTrainer(params, "sgd")
        trainer.save_states(tmp_path / "states")
        with np.load(str(tmp_path / "states")) as file:
            header = json.loads(file[archive.HEADER].item())
        for name in ("update", "param_dict", "idx2name", "lr", "not a name"):
            header["optimizer"]["by_parameter"] = {name: {}}
            archive.write(tmp_path / "bad", header, [])
            with pytest.raises(ValueError, match="is damaged"):
                trainer.load_states(tmp_path / "bad")


class Warming:
    """Says what the learning rate is, and counts how often it did."""

    def __init__(self, rates=(0.1, 0.05, 0.02, 0.01)):
        self.rates, self.asked = list(rates), 0

    def rate(self, num_update):
        self.asked += 1
        return self.rates[self.asked % len(self.rates)]


class TestMethodsForSchedulers:
    def build(self, wrap=lambda method: method):
        net = mlp()
        optimizer = mx.optimizer.SGD(momentum=0.9)
        optimizer.lr_scheduler = wrap(Warming().rate)
        return net, MultiLRTrainer(net, optimizer)

    @pytest.mark.parametrize("wrap", [lambda method: method, functools.partial], ids=["method", "partial"])
    def test_what_the_object_counts_is_saved(self, wrap, tmp_path):
        assert resumes(tmp_path, lambda: self.build(wrap))

    def test_of_another_class(self, tmp_path):
        class Cooling(Warming):
            pass

        _, trainer = self.build()
        trainer.save_states(tmp_path / "states")
        trainer.optimizer.lr_scheduler = Cooling().rate
        with pytest.raises(ValueError, match=r"object of class 'Warming' in the file, but .*Cooling"):
            trainer.load_states(tmp_path / "states")

    def test_what_cannot_be_saved_of_the_object_is_named(self, tmp_path):
        net, trainer = self.build()
        trainer.optimizer.lr_scheduler.__self__.net = net
        with pytest.raises(TypeError, match=r"lr_scheduler method cannot be saved: @lr_scheduler/__self__/net/"):
            trainer.save_states(tmp_path / "states")

    def test_methods_of_a_class_keep_nothing(self, tmp_path):
        class Fixed:
            @classmethod
            def rate(cls, num_update):
                return 0.1 / num_update

        _, trainer = self.build(lambda method: Fixed.rate)
        trainer.save_states(tmp_path / "states")
        trainer.load_states(tmp_path / "states")

    def test_older_files_say_nothing_of_the_object(self, tmp_path):
        net, trainer = self.build()
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        with np.load(str(tmp_path / "states")) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(archive.HEADER).item())
        header["lr_scheduler"] = {"object": ["method", {}]}
        archive.write(tmp_path / "old", header, list(arrays.items()))
        with pytest.warns(UserWarning, match="Warming"):
            trainer.load_states(tmp_path / "old")

    def test_slots_are_not_dropped_in_silence(self, tmp_path):
        class Slotted(mx.lr_scheduler.LRScheduler):
            __slots__ = ("count",)

            def __call__(self, num_update):
                self.count = num_update
                return 0.1

        net, trainer = self.build(lambda method: Slotted())
        train(net, trainer, batches(2))
        with pytest.raises(TypeError, match=r"cannot be saved: Slotted keeps 'count' in __slots__"):
            trainer.save_states(tmp_path / "states")


class TestAttributesThatComeLater:
    def gluoncv(self, chain):
        utils = pytest.importorskip("gluoncv.utils.lr_scheduler")
        parts = [utils.LRScheduler("linear", 0, 0.1, niters=3), utils.LRScheduler("cosine", 0.1, niters=9)]
        return utils.LRSequential(parts) if chain else parts[1]

    @pytest.mark.parametrize("chain", [False, True])
    @pytest.mark.parametrize("steps", [0, 1, 2, 5])
    def test_of_gluoncv(self, chain, steps, tmp_path):
        """Which remembers what it said last, from the first time on that it was asked."""

        def build():
            net = mlp()
            return net, MultiLRTrainer(net, "sgd", {"lr_scheduler": self.gluoncv(chain)})

        net, trainer = build()
        train(net, trainer, batches(steps))
        net.save_parameters(str(tmp_path / "net"))
        trainer.save_states(tmp_path / "states")
        saved = fingerprint(trainer, net)
        then = train(net, trainer, batches(6, seed=8))
        for other, fresh in (build(), (net, trainer)):
            other.load_parameters(str(tmp_path / "net"))
            fresh.load_states(tmp_path / "states")
            assert fingerprint(fresh, other) == saved
            assert same(train(other, fresh, batches(6, seed=8)), then)

    def test_one_that_no_call_makes_is_of_another_version(self, tmp_path):
        net = mlp()
        trainer = MultiLRTrainer(net, "sgd", {"lr_scheduler": mx.lr_scheduler.PolyScheduler(9)})
        trainer.save_states(tmp_path / "states")
        trainer.optimizer.lr_scheduler.newer = 3
        before = fingerprint(trainer, net)
        with pytest.raises(ValueError, match="the file has no 'newer' of PolyScheduler"):
            trainer.load_states(tmp_path / "states")
        assert fingerprint(trainer, net) == before


class Keeping(Optimizer):
    """Keeps whatever it is told to, as attribute and as state, from its first update on."""

    def __init__(self, states=None, later=None, **kwargs):
        super().__init__(**kwargs)
        self.later = types.MappingProxyType(later or {}).copy()
        self._states = {}
        self.tell(states)

    def tell(self, states):
        type(self).made, type(self).become = states or (None, None)

    def create_state(self, index, weight):
        return type(self).made()

    def update(self, index, weight, grad, state):
        self._update_count(index)
        if type(self).become is not None:
            type(self).become(state)


def replaced(value):
    return lambda state: state.__setitem__(0, value)


class TestWhatIsSavedCanBeLoaded:
    @pytest.mark.parametrize(
        ("made", "become"),
        [
            (lambda: [0], replaced(mx.nd.ones((2,)))),
            (lambda: [0], replaced("text")),
            (lambda: [0], replaced(None)),
            (lambda: [None], replaced([1, (2, None)])),
            (lambda: [mx.nd.ones((2,))], replaced(mx.nd.ones((3,)))),
            (lambda: [mx.nd.ones((2,))], replaced(0)),
            (lambda: [(0, None)], replaced((None, mx.nd.ones((1,))))),
            (lambda: {0: 1}, replaced(np.ones(3))),
            (lambda: {}, replaced(np.ones(3))),
            (lambda: ([0], {}), lambda state: (state[0].append(3), state[1].update(a=4))),
        ],
    )
    def test_states_that_change_what_they_hold(self, made, become, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Keeping((made, become), learning_rate=0.1))

        (_, trainer), (_, fresh) = saved_and_loaded(tmp_path, build)
        assert bits(fresh._updaters[0].states) == bits(trainer._updaters[0].states)
        assert len(fresh._updaters[0].states) == 6

    @pytest.mark.parametrize(
        "value",
        [
            np.arange(3, dtype=">f4"),
            np.arange(3, dtype=">i8"),
            np.arange(6, dtype="float16").reshape(2, 3).T,
            np.array(3.0),
            np.float64("nan"),
            {10**299: mx.nd.ones((1,))},
            {"\udc80": mx.nd.ones((2,)), "\udc80/0": 3},
            [[[[[[1], None]]]]],
            "x" * 1000,
        ],
        ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
    )
    def test_unusual_values(self, value, tmp_path):
        def build():
            net = mlp()
            trainer = MultiLRTrainer(net, "sgd")
            return net, trainer

        _, trainer = build()
        trainer.optimizer.thing = value
        trainer.save_states(tmp_path / "states")
        _, fresh = build()
        fresh.load_states(tmp_path / "states")
        found = fresh.optimizer.thing
        if isinstance(value, np.ndarray):
            value = value.astype(value.dtype.newbyteorder("="))
        assert bits(found) == bits(value)

    @pytest.mark.parametrize(
        "value",
        [
            {10**300: 1},
            {10**400: 1},
            10**5000,
            {-(10**300): mx.nd.ones((1,))},
            functools.reduce(lambda a, _: [a], range(99), 0),
        ],
        ids=["key", "long key", "number", "negative key", "deep"],
    )
    def test_what_could_not_be_read_is_not_written(self, value, tmp_path):
        trainer = MultiLRTrainer(mlp(), "sgd")
        trainer.optimizer.thing = value
        with pytest.raises(TypeError, match="thing of optimizer SGD cannot be saved"):
            trainer.save_states(tmp_path / "states")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "value"), [("lr", float("nan")), ("wd", float("inf")), ("momentum", np.float32("nan"))]
    )
    def test_rates_that_are_no_numbers(self, name, value, tmp_path):
        """Neither are they written, nor read."""
        trainer = MultiLRTrainer(mlp(), "sgd")
        trainer.save_states(tmp_path / "good")
        setattr(trainer.optimizer, name, value)
        with pytest.raises(ValueError, match=f"{name} of SGD is (nan|inf)"):
            trainer.save_states(tmp_path / "states")
        with np.load(str(tmp_path / "good")) as file:
            header = json.loads(file[archive.HEADER].item())
        header["optimizer"]["attributes"][name] = encoding.Encoder().encode(value, "x")
        archive.write(tmp_path / "bad", header, [])
        fresh = MultiLRTrainer(mlp(), "sgd")
        with pytest.raises(ValueError, match=f"is damaged.*{name} of SGD is (nan|inf)"):
            fresh.load_states(tmp_path / "bad")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
    def test_loss_scales_that_are_no_numbers(self, value, tmp_path):
        trainer, fresh = (MultiLRTrainer(mlp(), "sgd") for _ in range(2))
        trainer._amp_loss_scaler, fresh._amp_loss_scaler = LossScaler(), LossScaler()
        trainer.save_states(tmp_path / "good")
        trainer._amp_loss_scaler._loss_scale = value
        with pytest.raises(ValueError, match="_loss_scale of AMP's loss scaler is"):
            trainer.save_states(tmp_path / "states")
        with np.load(str(tmp_path / "good")) as file:
            header = json.loads(file[archive.HEADER].item())
        header["loss_scaler"]["_loss_scale"] = encoding.Encoder().encode(value, "x")
        archive.write(tmp_path / "bad", header, [])
        with pytest.raises(ValueError, match=r"is damaged.*_loss_scale of AMP's loss scaler is"):
            fresh.load_states(tmp_path / "bad")
        assert vars(fresh._amp_loss_scaler) == vars(LossScaler())

    def test_statistics_may_be_no_numbers(self, tmp_path):
        """As those of a training that diverged."""

        def build():
            trainer = MultiLRTrainer(mlp(), "sgd")
            trainer.optimizer.best, trainer.optimizer.loss = float("inf"), 1.0
            return trainer

        trainer = build()
        trainer.optimizer.loss = float("nan")
        trainer.save_states(tmp_path / "states")
        fresh = build()
        fresh.load_states(tmp_path / "states")
        assert bits([fresh.optimizer.best, fresh.optimizer.loss]) == bits([float("inf"), float("nan")])

    def test_an_attribute_that_became_something_else(self, tmp_path):
        def build():
            trainer = MultiLRTrainer(mlp(), "sgd")
            trainer.optimizer.stage, trainer.optimizer.notes = 0, "none"
            return trainer

        trainer = build()
        trainer.optimizer.stage, trainer.optimizer.notes = "last", [1, 2]
        trainer.save_states(tmp_path / "states")
        fresh = build()
        fresh.load_states(tmp_path / "states")
        assert (fresh.optimizer.stage, fresh.optimizer.notes) == ("last", [1, 2])

    @pytest.mark.parametrize("field", ["lr_mult", "wd_mult"])
    def test_negative_multipliers(self, field, tmp_path):
        """A file brings none that the trainer does not have: a Parameter may come with one, as under stock."""
        net = mlp()
        setattr(net[0].weight, field, -1.0)
        trainer = MultiLRTrainer(net, "sgd")
        trainer.save_states(tmp_path / "states")
        other = mlp()
        fresh = MultiLRTrainer(other, "sgd")
        with pytest.raises(
            ValueError, match=rf"the {field} of 'net_dense0_weight' is -1.0; a multiplier must be 0 or more"
        ):
            fresh.load_states(tmp_path / "states")
        third = mlp()
        setattr(third[0].weight, field, -1.0)
        again = MultiLRTrainer(third, "sgd")
        again.load_states(tmp_path / "states")
        assert getattr(third[0].weight, field) == -1.0
        assert not moved(snapshot(net), snapshot(third))


class Blank(Optimizer):
    """Keeps what it is given; a state may hold anything."""

    def create_state(self, index, weight):
        return []


def identities(value, found):
    """Return the same numbers for two trees of which the same parts are one object."""
    if isinstance(value, (mx.nd.NDArray, np.ndarray, list, dict)):
        yield found.setdefault(id(value), len(found))
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from identities(part, found)


@st.composite
def webs(draw):
    """Draw attributes and states that share arrays, lists and dicts."""
    pool = draw(st.lists(TREES, min_size=1, max_size=3))
    part = st.sampled_from(pool) | TREES
    kept = (
        st.lists(part, max_size=3) | st.dictionaries(st.integers(0, 3) | st.text(max_size=2), part, max_size=3) | part
    )
    names = st.sampled_from(["one", "other", "third"])
    return draw(st.dictionaries(names, kept, max_size=3)), draw(
        st.dictionaries(st.integers(0, 3), st.lists(part, max_size=3), max_size=4)
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(web=webs())
def test_random_webs_come_back(web, tmp_path_factory):
    """Bit for bit and type for type, and what was one object is one again; the file is the same when saved again."""
    attributes, states = web
    path = tmp_path_factory.getbasetemp() / "webs"
    trainers = []
    for _ in range(2):
        trainer = MultiLRTrainer(mlp(batchnorm=False), Blank(learning_rate=0.1))
        trainer._init_kvstore()
        trainers.append(trainer)
    trainer, fresh = trainers
    vars(trainer.optimizer).update(attributes)
    trainer._updaters[0].states.update(states)
    trainer._updaters[0].states_synced.update(dict.fromkeys(states, True))
    trainer.save_states(path)
    saved = path.read_bytes()
    fresh.load_states(path)
    found = {name: getattr(fresh.optimizer, name) for name in attributes}, fresh._updaters[0].states
    assert bits(found) == bits((attributes, dict(sorted(states.items()))))
    expected = attributes, dict(sorted(states.items()))
    assert list(identities(found, {})) == list(identities(expected, {}))
    fresh.save_states(path)
    assert path.read_bytes() == saved
