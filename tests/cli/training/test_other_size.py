"""Networks that average over all positions take images of other sizes; the others are refused before training."""

from __future__ import annotations

import mxnet as mx
import pytest

pytest.importorskip("gluoncv")

from multitrainer_cli.errors import UserError
from multitrainer_cli.training import network


def initialize(model, size):
    net, _ = network.build(model, 3)
    network.initialize(net, [mx.cpu()], model, 3, size)
    return net


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("cifar_resnet20_v1", 48),
        ("mobilenet0.25", 96),
        ("mobilenet0.25", 256),
        ("mobilenetv2_0.25", 64),
        ("mobilenetv3_small", 96),
        ("resnet18_v1b", 33),
    ],
)
def test_a_network_with_global_pooling_takes_another_size(model, size):
    assert initialize(model, size)(mx.nd.zeros((1, 3, size, size))).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("alexnet", 256),  # Dense layers whose shape depends on the size
        ("alexnet", 32),  # a map smaller than the kernel
        ("squeezenet1.1", 256),  # average pooling of 13 x 13 over 15 x 15
        ("squeezenet1.1", 448),  # one over 27 x 27, which leaves 2 x 2 scores
        ("densenet121", 288),
    ],
)
def test_another_network_is_refused(model, size):
    with pytest.raises(UserError, match=f"--input-size {size}: {model} cannot take images of this size; leave the opt"):
        initialize(model, size)


@pytest.mark.parametrize("size", [224, None])
def test_every_network_takes_its_own_size(size):
    initialize("squeezenet1.1", size)


def test_the_check_draws_no_random_numbers_and_leaves_no_hook():
    drawn = []
    for size in (None, 64):
        mx.random.seed(1)
        net = initialize("cifar_resnet20_v1", size)
        drawn.append((net.output.weight.data().asnumpy().tolist(), mx.random.uniform(shape=3).asnumpy().tolist()))
        assert net(mx.nd.zeros((1, 3, 7, 9))).shape == (1, 3)
    assert drawn[0] == drawn[1]
