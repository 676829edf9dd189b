from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")

from multitrainer import MultiLRTrainer, layerwise_decay
from multitrainer_cli.demo.datasets import SIZE
from multitrainer_cli.demo.regimes import BASE, DECAY, REGIMES, build_network
from support import moved, snapshot, weights


@pytest.mark.parametrize("regime", REGIMES.values(), ids=lambda regime: regime.name)
def test_a_regime_trains_the_head_at_the_full_rate_and_the_backbone_at_its_own(regime):
    net, head = build_network(16, [mx.cpu()])
    trainer = MultiLRTrainer(regime.groups(net, head), "sgd", {"learning_rate": 0.5})
    if regime.backbone is None:
        expected = MultiLRTrainer(layerwise_decay(net, DECAY), "sgd", {"learning_rate": 0.5}).learning_rates
        assert trainer.learning_rates == expected
        assert len(set(expected.values())) > 10
    else:
        assert trainer.learning_rates == {"backbone": 0.5 * regime.backbone, "output": 0.5}
    before = snapshot(net)
    with mx.autograd.record():
        loss = net(mx.nd.random.normal(shape=(4, 3, SIZE, SIZE)))[:, 0].sum()
    loss.backward()
    trainer.step(4)
    changed = weights(moved(before, snapshot(net)))
    heads = set(net.output.collect_params())
    assert changed & heads
    assert bool(changed - heads) == (regime.name != "backbone frozen")


def test_the_regimes_differ_in_weights_or_multiplier():
    assert [regime.name for regime in REGIMES.values() if not regime.from_source] == ["from scratch"]
    assert len({(regime.from_source, regime.backbone) for regime in REGIMES.values()}) == len(REGIMES) == 5
    assert REGIMES[BASE].from_source


def test_the_network_is_initialized_with_an_output_per_class():
    net, head = build_network(7, [mx.cpu()])
    assert head == "output"
    outputs = net(mx.nd.ones((2, 3, SIZE, SIZE))).asnumpy()
    assert outputs.shape == (2, 7)
    assert np.isfinite(outputs).all()
