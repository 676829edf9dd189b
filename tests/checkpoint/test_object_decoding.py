"""Schedulers and other callables of the trainer get the attributes that the file holds, and nothing is created."""

import functools

import mxnet as mx
import numpy as np
import pytest

from checkpoint_support import replace_entry, resumes
from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import archive, encoding, paths
from multitrainer.checkpoint.object_decoding import ObjectDecoder, ObjectUpdate, can_be_added
from support import batches, fingerprint, mlp, same, train


class Warming:
    """A schedule whose rate depends on how often it was called."""

    def __init__(self, rates=(0.1, 0.05, 0.02, 0.01)):
        self.rates, self.calls = list(rates), 0

    def rate(self, num_update):
        self.calls += 1
        return self.rates[self.calls % len(self.rates)]


class TestMethodsForSchedulers:
    def build(self, wrap=lambda method: method):
        net = mlp()
        optimizer = mx.optimizer.SGD(momentum=0.9)
        optimizer.lr_scheduler = wrap(Warming().rate)
        return net, MultiLRTrainer(net, optimizer)

    @pytest.mark.parametrize("wrap", [lambda method: method, functools.partial], ids=["method", "partial"])
    def test_the_attributes_of_the_object_are_saved(self, wrap, tmp_path):
        assert resumes(tmp_path, lambda: self.build(wrap))

    def test_an_object_of_another_class_is_refused(self, tmp_path):
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

    def test_class_methods_have_no_attributes_to_save(self, tmp_path):
        class Fixed:
            @classmethod
            def rate(cls, num_update):
                return 0.1 / num_update

        _, trainer = self.build(lambda method: Fixed.rate)
        trainer.save_states(tmp_path / "states")
        trainer.load_states(tmp_path / "states")

    def test_files_of_early_versions_lack_the_attributes_and_warn(self, tmp_path):
        net, trainer = self.build()
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        replace_entry(tmp_path / "states", tmp_path / "old", ["lr_scheduler"], {"object": ["method", {}]})
        before = dict(vars(trainer.optimizer.lr_scheduler.__self__))
        with pytest.warns(UserWarning, match=r"was saved by an earlier version.*Warming.* stay as they are"):
            trainer.load_states(tmp_path / "old")
        assert vars(trainer.optimizer.lr_scheduler.__self__) == before

    def test_attributes_in_slots_are_refused(self, tmp_path):
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
    def test_schedulers_of_gluoncv(self, chain, steps, tmp_path):
        """They get an attribute with their last rate at the first call."""

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

    def test_an_attribute_that_no_call_sets_is_of_another_version(self, tmp_path):
        net = mlp()
        trainer = MultiLRTrainer(net, "sgd", {"lr_scheduler": mx.lr_scheduler.PolyScheduler(9)})
        trainer.save_states(tmp_path / "states")
        trainer.optimizer.lr_scheduler.newer = 3
        before = fingerprint(trainer, net)
        with pytest.raises(ValueError, match="the file has no 'newer' of PolyScheduler"):
            trainer.load_states(tmp_path / "states")
        assert fingerprint(trainer, net) == before


@pytest.mark.parametrize(
    ("name", "value"), [("lr", float("nan")), ("wd", float("inf")), ("momentum", np.float32("nan"))]
)
def test_rates_that_are_not_finite_are_refused(name, value, tmp_path):
    """When they are saved, and when they are loaded."""
    trainer = MultiLRTrainer(mlp(), "sgd")
    trainer.save_states(tmp_path / "good")
    setattr(trainer.optimizer, name, value)
    with pytest.raises(ValueError, match=f"{name} of SGD is (nan|inf)"):
        trainer.save_states(tmp_path / "states")
    node = encoding.Encoder().encode(value, "x")
    replace_entry(tmp_path / "good", tmp_path / "bad", ["optimizer", "attributes", name], node)
    fresh = MultiLRTrainer(mlp(), "sgd")
    with pytest.raises(ValueError, match=f"is damaged.*{name} of SGD is (nan|inf)"):
        fresh.load_states(tmp_path / "bad")


def test_an_attribute_that_became_a_value_of_another_type(tmp_path):
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


@pytest.fixture
def decoder(tmp_path):
    """Return a decoder of a file without arrays, which was saved after update 5."""
    archive.write(tmp_path / "values", None, [])
    with archive.Reader(tmp_path / "values") as reader:
        yield ObjectDecoder(reader, mx.cpu(), paths.SharedValues(), 5)


class Lazy:
    """A schedule that sets an attribute at its first call."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, num_update):
        self.last = self.factor / (num_update - 3)
        return self.last

    @property
    def half(self):
        return self.factor / 2


def node_of(value):
    return encoding.ObjectEncoder(encoding.Encoder()).encode(value, "x")


class TestObjectDecoder:
    def test_nothing_changes_before_the_update_is_applied(self, decoder):
        target = Lazy(2.0)
        assert decoder.values.decode(node_of(Lazy(3.0)), "x", target) is target
        assert vars(target) == {"factor": 2.0}
        (update,) = decoder.updates
        update.apply()
        assert vars(target) == {"factor": 3.0}

    def test_what_a_call_sets_again_is_removed(self, decoder):
        target = Lazy(2.0)
        target(4)
        decoder.values.decode(node_of(Lazy(3.0)), "x", target)
        assert target.last == 2.0
        decoder.updates[0].apply()
        assert vars(target) == {"factor": 3.0}

    @pytest.mark.parametrize("wrap", [lambda lazy: lazy.__call__, functools.partial], ids=["method", "partial"])
    def test_what_a_method_or_partial_sets_again_is_removed(self, wrap, decoder):
        target = Lazy(2.0)
        target(4)
        decoder.values.decode(node_of(wrap(Lazy(3.0))), "x", wrap(target))
        decoder.updates[0].apply()
        assert vars(target) == {"factor": 3.0}

    def test_the_trial_call_is_for_the_update_that_follows(self, decoder):
        calls = []

        class Recording(Lazy):
            def __call__(self, num_update):
                calls.append(num_update)
                return super().__call__(num_update)

        target, saved = Recording(), Recording()
        target.last = 1.0
        decoder.values.decode(node_of(saved), "x", target)
        assert calls == [6]

    def test_a_call_that_fails_sets_nothing(self, decoder):
        target = Lazy(2.0)
        target(4)
        node = node_of(Lazy(3.0))
        node["object"][1]["factor"] = None  # the trial call divides it
        with pytest.raises(ValueError, match="the file has no 'last' of Lazy: it was saved by a version of that class"):
            decoder.values.decode(node, "x", target)
        assert not decoder.updates

    @pytest.mark.parametrize(
        ("node", "target", "reason"),
        [
            ({"object": ["Other", {}]}, Lazy(), "'x' is an object of class 'Other' in the file, but Lazy <"),
            ({"object": ["Lazy", []]}, Lazy(), "'x' is an object of class 'Lazy' in the file, but Lazy <"),
            ({"object": ["Lazy"]}, Lazy(), "'x' is incomplete"),
            ({"object": ["int", {}]}, 3, "'x' is an object of class 'int' in the file, but int 3 in this"),
            ({"object": ["method", {"__self__": 3}]}, Lazy().__call__, "'__self__' of 'x' is not an object"),
            ({"object": ["partial", {"func": []}]}, functools.partial(Lazy()), "'func' of 'x' is not an object"),
            ({"object": ["partial", {"func": {"object": []}}]}, functools.partial(Lazy()), "'x/func' is incomplete"),
            ({"object": ["Lazy", {}]}, Lazy(), "the file has no 'factor' of Lazy"),
            ({"object": ["Lazy", {"factor": "a"}]}, Lazy(), "'x/factor' is \"a\" in the file, but .* keeps float 1.0"),
            ({"object": ["Lazy", {"factor": {"float": "nan"}}]}, Lazy(), "is damaged.*factor of Lazy is nan"),
            ({"object": ["Lazy", {"factor": 1, "half": 1}]}, Lazy(), "'half' is not an attribute of Lazy that can be"),
            ({"object": ["Lazy", {"factor": 1, "a b": 1}]}, Lazy(), "'a b' is not an attribute of Lazy that can be"),
        ],
        ids=range(12),
    )
    def test_what_does_not_fit_is_refused(self, node, target, reason, decoder):
        with pytest.raises(ValueError, match=reason):
            decoder.values.decode(node, "x", target)
        assert not decoder.updates

    def test_new_attributes_and_objects_inside_objects(self, decoder):
        target, saved = Lazy(), Lazy()
        target.inner, saved.inner, saved.note = [Lazy()], [Lazy(7.0)], (1, None)
        decoder.values.decode(node_of(saved), "x", target)
        inner = target.inner[0]
        for update in decoder.updates:
            update.apply()
        assert (target.note, target.inner[0], inner.factor) == ((1, None), inner, 7.0)

    @pytest.mark.parametrize(
        ("name", "current", "value", "fits"),
        [
            ("factor", 1.0, 2, True),
            ("factor", 1.0, None, True),
            ("factor", None, "text", True),
            ("factor", 1.0, "text", False),
            ("factor", "text", [1], False),
            ("note", 1.0, "text", True),
            ("note", "text", [1], True),
            ("note", Lazy(), 3, False),
        ],
    )
    def test_a_setting_keeps_its_kind_and_a_statistic_may_not(self, name, current, value, fits, decoder):
        """An object is never replaced."""
        if fits:
            assert decoder.decode_attributes({name: value}, {name: current}, (), Lazy, "x") == {name: value}
        else:
            with pytest.raises(ValueError, match=f"'x/{name}' is .* in the file, but"):
                decoder.decode_attributes({name: value}, {name: current}, (), Lazy, "x")

    def test_forbidden_attributes(self, decoder):
        with pytest.raises(ValueError, match="'note' is not an attribute of Lazy that can be set"):
            decoder.decode_attributes({"note": 1}, {"note": 2}, {"note"}, Lazy, "x")

    def test_shared_attributes_become_one_object(self, decoder):
        decoder.shared.set_groups([["x/a", "x/b"]])
        found = decoder.decode_attributes({"a": [1], "b": [1], "c": [1]}, {}, (), Lazy, "x")
        assert found["a"] is found["b"]
        assert found["a"] is not found["c"]

    def test_a_scheduler_that_would_loop_for_ever_is_not_called(self, decoder):
        target = mx.lr_scheduler.FactorScheduler(1)
        node = node_of(target)
        node["object"][1]["step"] = 0
        target.later = 3  # so that a call is tried
        with pytest.raises(ValueError, match="needs more than 4,000,000 iterations"):
            decoder.values.decode(node, "x", target)


def test_an_update_sets_and_removes():
    target = Lazy()
    target.old, target.kept = 1, 2
    ObjectUpdate(target, {"factor": 5}, {"old"}).apply()
    assert vars(target) == {"factor": 5, "kept": 2}


@pytest.mark.parametrize(
    ("name", "expected"), [("new", True), ("half", False), ("__call__", False), ("a b", False), ("1a", False)]
)
def test_can_be_added(name, expected):
    assert can_be_added(name, Lazy) is expected
