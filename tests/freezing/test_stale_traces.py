"""A trace that was made before a Block was frozen causes a warning."""

import gc
import warnings
import weakref

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import loss, nn

from freezing_support import build_gluoncv, image_batch, statistics, train_step
from multitrainer import MultiLRTrainer, freeze
from multitrainer.freezing import stale_traces
from multitrainer.freezing.stale_traces import CallWatch, warn_of_old_traces
from support import mlp, moved, snapshot


class TestOldTraces:
    def part_of_a_traced_network(self):
        net = build_gluoncv("mobilenetv2_0.25")
        net.hybridize()
        x, y = image_batch()
        with autograd.record():
            net(x)
        return net, x, y

    def test_warns_at_the_first_step_if_the_network_is_unknown(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([(net.features, 0), net.output], "sgd", {"learning_rate": 0.1})
        with pytest.warns(UserWarning, match=r"features'? was frozen.*net.hybridize\(\).*MultiLRTrainer\(\[net"):
            train_step(net, trainer, x, y)
        net.hybridize()
        before = statistics(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_step(net, trainer, x, y)
        assert not moved(before, statistics(net))

    @pytest.mark.parametrize("spec", ["whole network named", "hybridized again", "not hybridized yet"])
    def test_does_not_warn_if_the_network_is_traced_again(self, spec):
        net, x, y = self.part_of_a_traced_network()
        if spec == "not hybridized yet":
            net = build_gluoncv("mobilenetv2_0.25")
            net(x)
        entries = [(net.features, 0), net.output]
        trainer = MultiLRTrainer([net, *entries] if spec == "whole network named" else entries, "sgd")
        if spec != "whole network named":
            net.hybridize()
        before = statistics(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_step(net, trainer, x, y)
            train_step(net, trainer, x, y)
        assert not moved(before, statistics(net))

    @pytest.mark.parametrize("reduce_first", [False, True])
    def test_does_not_warn_at_a_step_whose_forward_pass_was_earlier(self, reduce_first):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer(net, "sgd")
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.set_lr_mult({net.features: 0})
            before = snapshot(net.features)
            if reduce_first:
                trainer.allreduce_grads()
                trainer.update(4)
            else:
                trainer.step(4)
            train_step(net, trainer, x, y)
        assert not moved(before, snapshot(net.features))

    def test_warns_for_a_slice_of_a_network(self):
        """Nobody hybridizes or calls the Block of a slice."""
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([(net.features[:5], 0), net.features[5:], net.output], "sgd")
        with pytest.warns(UserWarning, match="traced before"):
            train_step(net, trainer, x, y)

    def test_does_not_warn_for_a_slice_of_a_known_network(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([net, (net.features[:5], 0)], "sgd")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_step(net, trainer, x, y)
            train_step(net, trainer, x, y)
        assert not any(
            watch.block for watch in stale_traces._watches if watch.params <= set(net.collect_params().values())
        )

    def test_warns_if_the_network_is_part_of_another_that_was_traced(self):
        net = build_gluoncv("mobilenetv2_0.25")
        outer = nn.HybridSequential()
        outer.add(net)
        outer.hybridize()
        x, y = image_batch()
        with autograd.record():
            outer(x)
        trainer = MultiLRTrainer([net, (net.features, 0)], "sgd")
        with pytest.warns(UserWarning, match="traced before"):
            train_step(outer, trainer, x, y)

    def test_a_trainer_notices_the_function_freeze(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
        train_step(net, trainer, x, y)
        freeze(net.features)
        with pytest.warns(UserWarning, match="traced before"):
            train_step(net, trainer, x, y)


def test_does_not_warn_for_a_layer_that_the_network_does_not_use():
    class Net(nn.HybridBlock):
        def __init__(self):
            super().__init__()
            self.output, self.unused = nn.Dense(3, in_units=3), nn.HybridSequential()
            self.unused.add(nn.BatchNorm(in_channels=3))

        def hybrid_forward(self, F, x):  # noqa: N803
            return self.output(x)

    net = Net()
    net.initialize()
    net.hybridize()
    trainer = MultiLRTrainer(net, "sgd")
    freeze(net.unused, within=net)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was frozen or unfrozen")
        for _ in range(2):
            with autograd.record():
                value = net(mx.nd.ones((2, 3))).sum()
            value.backward()
            trainer.step(2)


class TestCallWatch:
    def build(self, pending=False):
        block = nn.Dense(1, in_units=1, prefix="layer_")
        block.initialize()
        return block, list(block.collect_params().values()), CallWatch(block, pending)

    def warns(self, params):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_old_traces(params)
        return len(caught)

    def test_warns_once_if_the_block_was_not_called(self):
        _, params, _watch = self.build()
        assert [self.warns(params) for _ in range(3)] == [1, 0, 0]

    def test_does_not_warn_if_the_block_was_called(self):
        block, params, watch = self.build()
        block(mx.nd.ones((1, 1)))
        assert self.warns(params) == 0
        assert watch.stop_if_called()
        assert not block._forward_pre_hooks

    def test_stops_with_the_warning(self):
        block, params, watch = self.build()
        assert not watch.stop_if_called()
        assert block._forward_pre_hooks
        self.warns(params)
        assert not block._forward_pre_hooks

    def test_passes_over_one_update_if_a_forward_pass_was_pending(self):
        _, params, _watch = self.build(pending=True)
        assert [self.warns(params) for _ in range(3)] == [0, 1, 0]

    def test_does_not_warn_a_trainer_of_other_parameters(self):
        _, params, _watch = self.build(pending=True)
        assert self.warns([mlp()[0].weight]) == 0
        assert [self.warns(params[:1]) for _ in range(2)] == [0, 1]

    def test_another_watch_of_the_block_replaces_it(self):
        block, params, first = self.build()
        second = CallWatch(block, True)
        assert len(block._forward_pre_hooks) == 1
        assert [self.warns(params) for _ in range(3)] == [0, 1, 0]
        assert first not in stale_traces._watches
        assert second not in stale_traces._watches

    def test_lives_as_long_as_its_block(self):
        block, _, watch = self.build()
        gone = weakref.ref(watch)
        del watch
        gc.collect()
        assert gone() is not None
        del block
        gc.collect()
        assert gone() is None
