"""Five ways to train a small network on few images, which differ in their parameter groups and first weights."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import mxnet as mx
from mxnet import gluon

from multitrainer import ParamGroup, layerwise_decay

from ..training import network
from .datasets import SIZE

MODEL = "cifar_resnet20_v1"
DECAY = 0.75  # from layer to layer; BEiT's fine-tuning (Bao et al. 2021)


class Regime(NamedTuple):
    """A way to train: which weights it starts from, and the multiplier of everything but the head.

    If `backbone` is None, each layer trains at `DECAY` times the learning rate of the next one.
    """

    name: str
    from_source: bool
    backbone: float | None

    def groups(self, net: gluon.Block, head: str) -> list[ParamGroup]:
        """Return the parameter groups of a network, given the path of its last layer."""
        if self.backbone is None:
            return layerwise_decay(net, DECAY)
        return [ParamGroup(net, self.backbone, name="backbone"), ParamGroup(network.find(net, head), 1, name=head)]


BASE = "one learning rate"  # which all others are compared with
REGIMES = {
    regime.name: regime
    for regime in (
        Regime("from scratch", False, 1.0),
        Regime(BASE, True, 1.0),
        Regime("backbone at 0.1", True, 0.1),
        Regime("layer-wise decay", True, None),
        Regime("backbone frozen", True, 0.0),
    )
}


def build_network(classes: int, contexts: Sequence[mx.Context]) -> tuple[gluon.HybridBlock, str]:
    """Build and initialize the network; return it and the path of its last layer."""
    net, head = network.build(MODEL, classes)
    net.initialize(mx.init.Xavier(), ctx=list(contexts))
    for context in contexts:
        net(mx.nd.zeros((1, 3, SIZE, SIZE), ctx=context))
    return net, head
