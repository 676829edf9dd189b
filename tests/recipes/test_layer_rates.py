"""Layer-wise decay and discriminative rates: each layer or stage gets the multiplier that the formula says."""

import mxnet as mx
import pytest
from mxnet.gluon import nn

from multitrainer import (
    MultiLRTrainer,
    ParamGroup,
    discriminative,
    layerwise_decay,
    no_weight_decay,
    stages,
    unfreeze_at,
)
from recipe_support import covers, deep, multipliers, names, resnet
from support import batches, mlp, same, train


class TestLayerwiseDecay:
    def test_each_layer_decays_from_the_next_one(self):
        net = resnet()
        groups = layerwise_decay(net, 0.75, head=2)
        assert multipliers(groups) == [2 * 0.75**i for i in reversed(range(10))]
        assert names(groups)[:4] == ["stage1", "stage2 layer1", "stage2 layer2", "stage3 layer1"]
        assert names(groups)[-1] == "stage6"
        assert covers(groups, net)

    def test_a_list_of_blocks_is_taken_for_the_layers(self):
        net = resnet()
        blocks = [net.features[:5], [net.features[5:7], net.features[7]], net.output]
        groups = layerwise_decay(blocks, 0.5)
        assert [group.params for group in groups] == blocks
        assert names(groups) == ["stage1", "stage2", "stage3"]
        assert multipliers(groups) == [0.25, 0.5, 1]
        assert multipliers(layerwise_decay(stages(net), 0.5)) == pytest.approx(
            multipliers(discriminative(net, 0.5**5, 1))
        )

    def test_with_no_weight_decay_it_trains_as_stock_with_the_same_multipliers(self):
        net = deep()
        params = {"learning_rate": 0.1, "wd": 0.1}
        trainer = MultiLRTrainer([*layerwise_decay(net, 0.5), no_weight_decay(net)], "sgd", params)
        twin = deep()
        for name, param in twin.collect_params().items():
            param.lr_mult = 0.25 if name[-1] == "0" or "0_" in name else 0.5 if "1_" in name else 1
            param.wd_mult = float(name.endswith("weight"))
        stock = mx.gluon.Trainer(twin.collect_params(), "sgd", params)
        data = batches(3)
        assert same(train(net, trainer, data), train(twin, stock, data))
        assert trainer.learning_rates == pytest.approx({"stage1": 0.025, "stage2": 0.05, "stage3": 0.1})

    @pytest.mark.parametrize("decay", [0, -0.5, 1.5, float("nan"), float("inf")])
    def test_a_decay_out_of_range_is_refused(self, decay):
        with pytest.raises(ValueError, match=f"decay must be .*got {decay!r}"):
            layerwise_decay(resnet(), decay)

    @pytest.mark.parametrize("bad", ["0.5", None, True, unfreeze_at(3)])
    def test_anything_but_a_number_is_refused(self, bad):
        with pytest.raises(TypeError, match="decay must be a number"):
            layerwise_decay(resnet(), bad)
        with pytest.raises(TypeError, match="head must be a number"):
            layerwise_decay(resnet(), 0.5, head=bad)

    def test_a_decay_of_1_gives_every_layer_the_multiplier_of_the_head(self):
        assert set(multipliers(layerwise_decay(resnet(), 1, head=3))) == {3}

    def test_a_decay_that_would_freeze_is_refused(self):
        with pytest.raises(ValueError, match="decay 1e-36 over 10 layers makes the first multiplier 0"):
            layerwise_decay(resnet(), 1e-36)


class TestDiscriminative:
    def test_stages_differ_by_equal_factors_from_lowest_to_highest(self):
        net = resnet()
        groups = discriminative(net, 0.003, 0.7)
        values = multipliers(groups)
        assert (values[0], values[-1]) == (0.003, 0.7)
        factors = [later / earlier for earlier, later in zip(values, values[1:])]
        assert factors == pytest.approx([(0.7 / 0.003) ** 0.2] * 5)
        assert names(groups) == [f"stage{i}" for i in range(1, 7)]
        assert covers(groups, net)

    def test_a_single_stage_gets_the_highest(self):
        assert multipliers(discriminative(nn.Dense(2), 0.1, 1)) == [1]

    def test_a_range_the_wrong_way_round_is_refused(self):
        with pytest.raises(ValueError, match=r"lowest must not be above highest, got 1.0 and 0.1"):
            discriminative(resnet(), 1, 0.1)
        with pytest.raises(ValueError, match="lowest must be above 0, got 0"):
            discriminative(resnet(), 0, 0.1)

    def test_two_stages_get_the_bounds(self):
        net = mlp()
        assert multipliers(discriminative([net[0], net[2]], 0.1, 3)) == [0.1, 3]
        assert multipliers(discriminative(net, 0.5, 0.5)) == [0.5, 0.5]


def test_a_recipe_refines_the_network_that_is_named_before_it():
    net = mlp()
    trainer = MultiLRTrainer(
        [(net, 0.5), ParamGroup(net[1], wd_mult=2), *layerwise_decay([net[:2], net[2]], 0.1)], "sgd"
    )
    assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (0.1, 0.1, 1)
    assert net[1].gamma.wd_mult == 2
    assert trainer.learning_rates == pytest.approx({"stage1": 0.001, "stage2": 0.01})
