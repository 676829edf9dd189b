"""Four ways to train a small network on few images, which differ in their parameter groups and first weights."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import mxnet as mx
from mxnet import gluon

from multitrainer import ParamGroup

from ..training import network

MODEL = "cifar_resnet20_v1"


class Regime(NamedTuple):
    """A way to train: which weights it starts from, and the multiplier of everything but the head."""

    name: str
    from_source: bool
    backbone: float

    def groups(self, net: gluon.Block, head: str) -> list[ParamGroup]:
        """Return the parameter groups of a network, given the path of its last layer."""
        return [ParamGroup(net, self.backbone, name="backbone"), ParamGroup(network.find(net, head), 1, name=head)]


REGIMES = (
    Regime("from scratch", False, 1.0),
    Regime("one learning rate", True, 1.0),
    Regime("backbone at 0.1", True, 0.1),
    Regime("backbone frozen", True, 0.0),
)


def build_network(classes: int, contexts: Sequence[mx.Context]) -> tuple[gluon.HybridBlock, str]:
    """Build and initialize the network; return it and the path of its last layer."""
    net, head = network.build(MODEL, classes)
    network.initialize(net, list(contexts), MODEL, classes)
    return net, head
