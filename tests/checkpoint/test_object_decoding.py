"""Schedulers and other callables of the trainer get the attributes that the file holds, and nothing is created."""

import functools

import mxnet as mx
import numpy as np
import pytest

from checkpoint_support import replace_entry, resumes
from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import encoding
from support import batches, fingerprint, mlp, same, train


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
        replace_entry(tmp_path / "states", tmp_path / "old", ["lr_scheduler"], {"object": ["method", {}]})
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


@pytest.mark.parametrize(
    ("name", "value"), [("lr", float("nan")), ("wd", float("inf")), ("momentum", np.float32("nan"))]
)
def test_rates_that_are_no_numbers(name, value, tmp_path):
    """Neither are they written, nor read."""
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


def test_an_attribute_that_became_something_else(tmp_path):
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
