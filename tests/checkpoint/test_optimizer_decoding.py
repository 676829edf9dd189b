"""Attributes and states of any optimizer are restored: what shares arrays, and dicts by index of the Parameters."""

import collections
import types
import warnings

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.optimizer import Optimizer

from checkpoint_support import replace_entry, resumes, saved_and_loaded, without_shared
from multitrainer import MultiLRTrainer
from support import CONTEXTS, batches, bits, fingerprint, mlp, same, snapshot, train


class Averaging(Optimizer):
    """Keeps an average of each weight, which `create_state` creates."""

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
    """Arrays that `create_state` puts into attributes, and arrays that are both state and attribute."""

    @pytest.mark.parametrize("before", [None, without_shared], ids=["", "older file"])
    @pytest.mark.parametrize("kind", ["apart", "one", "nested", "rebound"])
    def test_attributes_that_create_state_changes_are_restored(self, kind, before, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer([net, (net[1], 0.5)], Averaging(kind, learning_rate=0.1))

        assert resumes(tmp_path, build, between=before)

    @pytest.mark.parametrize("before", [None, without_shared], ids=["", "older file"])
    def test_a_shared_object_is_shared_again(self, before, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("nested", learning_rate=0.1))

        _, (_, fresh) = saved_and_loaded(tmp_path, build, between=before)
        optimizer, states = fresh.optimizer, fresh._updaters[0].states
        assert len(states) == 6
        for index, state in states.items():
            assert state[0] is optimizer.average[index]
            assert state[1] is optimizer.average

    def test_separate_objects_stay_separate(self, tmp_path):
        """As they were when saved, although a new optimizer would share them."""

        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("rebound", learning_rate=0.1))

        _, (_, fresh) = saved_and_loaded(tmp_path, build)
        for index, state in fresh._updaters[0].states.items():
            assert state[0] is not fresh.optimizer.average[index]

    def test_a_refused_file_does_not_change_what_create_state_would(self, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Averaging("one", learning_rate=0.1))

        net, trainer = build()
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        replace_entry(
            tmp_path / "states", tmp_path / "bad", ["parameters", "net_dense0_weight", "schedules"], {"lr_mult": "?"}
        )
        for keep in ((), "average"):
            before = fingerprint(trainer, net)
            kept = dict(trainer.optimizer.average)
            with pytest.raises(ValueError, match="the schedules of 'net_dense0_weight' are"):
                trainer.load_states(tmp_path / "bad", keep=keep)
            assert fingerprint(trainer, net) == before
            assert all(trainer.optimizer.average[index] is array for index, array in kept.items())

    def test_keep_an_attribute_that_create_state_changes(self, tmp_path):
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
    def test_partial_and_in_another_order(self, kind, before, tmp_path):
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
        """The attribute is the state of the second context, which was created last, and equals that of the first."""

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
    """Has NumPy arrays, lists and dicts for states, and changes them in place."""

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
    """NumPy arrays too: an update on one context must not change the other."""

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
    """Has a factor for each phase of the training, in a dict with integer keys."""

    def __init__(self, factors=None, **kwargs):
        super().__init__(**kwargs)
        self.factors = factors

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= self._get_lr(index) * self.factors[self.num_update // 4] * grad * self.rescale_grad


class Selective(Optimizer):
    """Has an attribute by index, for weights of two axes only."""

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


class TestIntegerKeys:
    """Dicts by index of the Parameters, and dicts that only look like these."""

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
    def test_the_file_wins_if_the_order_is_the_same(self, factors, tmp_path):
        net, params = self.dense()
        trainer = MultiLRTrainer(params, Phased(factors, learning_rate=0.1))
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        net, params = self.dense()
        fresh = MultiLRTrainer(params, Phased({0: 7.0}, learning_rate=0.1))
        fresh.load_states(tmp_path / "states")
        assert list(fresh.optimizer.factors.items()) == list(factors.items())

    @pytest.mark.parametrize("factors", [{1: 0.5, 0: 1.0}, {0: 1.0}], ids=str)
    def test_an_ambiguous_dict_is_refused_in_another_order(self, factors, tmp_path):
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

    def test_a_dict_by_index_of_some_parameters(self, tmp_path):
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
        for name in ("update", "param_dict", "idx2name", "lr", "not a name"):
            replace_entry(tmp_path / "states", tmp_path / "bad", ["optimizer", "by_parameter"], {name: {}})
            with pytest.raises(ValueError, match="is damaged"):
                trainer.load_states(tmp_path / "bad")


class Keeping(Optimizer):
    """Has states of any kind, which its first update may change."""

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
    def test_states_whose_parts_change_their_kind(self, made, become, tmp_path):
        def build():
            net = mlp()
            return net, MultiLRTrainer(net, Keeping((made, become), learning_rate=0.1))

        (_, trainer), (_, fresh) = saved_and_loaded(tmp_path, build)
        assert bits(fresh._updaters[0].states) == bits(trainer._updaters[0].states)
        assert len(fresh._updaters[0].states) == 6


class Slow(Optimizer):
    """Creates states that depend on a setting."""

    def __init__(self, size=2, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def create_state(self, index, weight):
        warnings.warn("a state is created", stacklevel=2)
        return mx.nd.zeros((self.size,), weight.context) if self.size else None

    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= self._get_lr(index) * grad


class TestStates:
    def build(self, size):
        net = mlp()
        return net, MultiLRTrainer(net, Slow(size, learning_rate=0.1))

    def saved(self, folder, size):
        net, trainer = self.build(size)
        train(net, trainer, batches(1))
        trainer.save_states(folder / "states")
        return trainer

    def test_templates_are_created_with_the_settings_of_the_file(self, tmp_path):
        trainer = self.saved(tmp_path, 3)
        _, fresh = self.build(2)
        fresh.load_states(tmp_path / "states")
        assert fresh.optimizer.size == 3
        assert bits(fresh._updaters[0].states) == bits(trainer._updaters[0].states)

    def test_warnings_of_the_optimizer_are_not_repeated(self, tmp_path):
        self.saved(tmp_path, 3)
        _, fresh = self.build(3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            fresh.load_states(tmp_path / "states")

    def test_states_that_do_not_fit_a_kept_setting_are_refused(self, tmp_path):
        self.saved(tmp_path, 3)
        net, fresh = self.build(2)
        before = fingerprint(fresh, net)
        with pytest.raises(ValueError, match=r"is .*3.* in the file, but the optimizer .* NDArray float32 \(2,\)"):
            fresh.load_states(tmp_path / "states", keep="size")
        assert fingerprint(fresh, net) == before

    def test_an_optimizer_that_cannot_create_a_state_is_named(self, tmp_path):
        self.saved(tmp_path, 3)
        keys = ["optimizer", "attributes", "size"]
        replace_entry(tmp_path / "states", tmp_path / "bad", keys, -7)
        _, fresh = self.build(2)
        with pytest.raises(
            ValueError, match=r"Slow cannot create a state for Parameter 'net_.*' with the settings in the"
        ):
            fresh.load_states(tmp_path / "bad")

    def test_states_of_our_own_arrays_are_in_use_after_loading(self, tmp_path):
        """MXNet's optimizers get the arrays that they created, filled; every context has its own."""
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = MultiLRTrainer(net, "adam", update_on_kvstore=False)
        train(net, trainer, batches(2), CONTEXTS)
        trainer.save_states(tmp_path / "states")
        saved = bits([updater.states for updater in trainer._updaters])
        train(net, trainer, batches(1), CONTEXTS)
        trainer.load_states(tmp_path / "states")
        assert bits([updater.states for updater in trainer._updaters]) == saved
        for updater, context in zip(trainer._updaters, CONTEXTS):
            assert {array.context for state in updater.states.values() for array in state} == {context}


class TestDictsByParameterName:
    def trained(self, folder):
        net = mlp()
        trainer = MultiLRTrainer(net, Averaging("apart", learning_rate=0.1))
        train(net, trainer, batches(2))
        trainer.save_states(folder / "states")
        return net, trainer

    @pytest.mark.parametrize(
        ("attribute", "nodes"),
        [
            ("average", []),
            ("average", {"unknown": 3}),
            ("made", {}),
            ("num_update", {}),
            ("update", {}),
            ("create_state", {}),
        ],
    )
    def test_a_malformed_one_is_refused(self, attribute, nodes, tmp_path):
        net, trainer = self.trained(tmp_path)
        replace_entry(tmp_path / "states", tmp_path / "bad", ["optimizer", "by_parameter", attribute], nodes)
        before = fingerprint(trainer, net)
        with pytest.raises(ValueError, match=f"is damaged.*'{attribute}' of the optimizer is not by Parameter name"):
            trainer.load_states(tmp_path / "bad")
        assert fingerprint(trainer, net) == before

    def test_one_that_the_optimizer_does_not_have_yet_is_added(self, tmp_path):
        _, trainer = self.trained(tmp_path)
        saved = bits(trainer.optimizer.average)
        del trainer.optimizer.average
        trainer.load_states(tmp_path / "states")
        assert bits(trainer.optimizer.average) == saved

    def test_an_attribute_of_both_kinds_is_refused(self, tmp_path):
        _, trainer = self.trained(tmp_path)
        replace_entry(tmp_path / "states", tmp_path / "bad", ["optimizer", "attributes", "average"], {"dict": []})
        with pytest.raises(ValueError, match="'average' is not an attribute of Averaging that can be set"):
            trainer.load_states(tmp_path / "bad")

    def test_the_class_of_the_dict_stays(self, tmp_path):
        _, trainer = self.trained(tmp_path)
        trainer.optimizer.average = collections.OrderedDict(trainer.optimizer.average)
        trainer.load_states(tmp_path / "states")
        assert type(trainer.optimizer.average) is collections.OrderedDict
        assert len(trainer.optimizer.average) == 6

    def test_parameters_that_are_left_out_keep_their_part(self, tmp_path):
        net, trainer = self.trained(tmp_path)
        part = MultiLRTrainer([net[2], net[0].weight], Averaging("apart", learning_rate=0.1))
        train(net, part, batches(1))
        part.save_states(tmp_path / "part")
        mine, theirs = dict(trainer.optimizer.average), part.optimizer.average
        trainer.load_states(tmp_path / "part", partial=True)
        names = [param.name for param in part._params]
        for index, param in enumerate(trainer._params):
            if index in mine:
                expected = theirs[names.index(param.name)] if param.name in names else mine[index]
                assert bits(trainer.optimizer.average[index]) == bits(expected)
        assert trainer.optimizer.average.keys() == mine.keys()
