"""Recipes: the groups that each makes, what it refuses, and what trains when."""

import copy
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer import (
    MultiLRTrainer,
    ParamGroup,
    discriminative,
    gradual_unfreezing,
    layerwise_decay,
    no_weight_decay,
    stages,
    unfreeze_at,
)
from multitrainer.recipes import layers
from support import Overflow, backward, batches, mlp, moved, same, snapshot, train, weights


def resnet(**kwargs):
    return mx.gluon.model_zoo.vision.resnet18_v1(prefix="net_", **kwargs)


def deep(prefix="net_"):
    """Return three Dense layers, the first two with BatchNorm: three stages."""
    mx.random.seed(3)
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        for units in (4, 5):
            net.add(nn.Dense(units, in_units=units - 1), nn.BatchNorm(in_channels=units))
        net.add(nn.Dense(2, in_units=5))
    net.initialize(mx.init.Xavier())
    return net


def names(groups):
    return [group.name for group in groups]


def multipliers(groups):
    return [group.lr_mult for group in groups]


def covers(groups, net):
    held = [param for group in groups for param in group.params.collect_params().values()]
    return len(held) == len(set(held)) and set(held) == set(net.collect_params().values())


class TestLayerwiseDecay:
    def test_each_layer_decays_from_the_next(self):
        net = resnet()
        groups = layerwise_decay(net, 0.75, head=2)
        assert multipliers(groups) == [2 * 0.75**i for i in reversed(range(10))]
        assert names(groups)[:4] == ["stage1", "stage2 layer1", "stage2 layer2", "stage3 layer1"]
        assert names(groups)[-1] == "stage6"
        assert covers(groups, net)

    def test_of_blocks(self):
        net = resnet()
        blocks = [net.features[:5], [net.features[5:7], net.features[7]], net.output]
        groups = layerwise_decay(blocks, 0.5)
        assert [group.params for group in groups] == blocks
        assert names(groups) == ["stage1", "stage2", "stage3"]
        assert multipliers(groups) == [0.25, 0.5, 1]
        assert multipliers(layerwise_decay(stages(net), 0.5)) == pytest.approx(
            multipliers(discriminative(net, 0.5**5, 1))
        )

    def test_a_parameter_that_no_group_holds_is_an_error(self, monkeypatch):
        whole = layers.layers_by_stage
        monkeypatch.setattr(layers, "layers_by_stage", lambda net: whole(net)[1:])
        for recipe in (lambda net: layerwise_decay(net, 0.5), lambda net: gradual_unfreezing(net, 2)):
            with pytest.raises(ValueError, match=r"no stage of ResNetV1 'net' holds net_conv0_weight, net_batchnorm0"):
                recipe(resnet())

    def test_two_networks_in_one_trainer(self):
        one, other = deep("one_"), deep("other_")
        trainer = MultiLRTrainer(
            [*layerwise_decay(one, 0.5), *layerwise_decay(other, 0.1), no_weight_decay(one)], "sgd"
        )
        expected = ["stage1", "stage2", "stage3", "other stage1", "other stage2", "other stage3", "no_weight_decay"]
        assert names(trainer.groups) == expected

    def test_joins_no_weight_decay(self):
        net = deep()
        params = {"learning_rate": 0.1, "wd": 0.1}
        trainer = MultiLRTrainer([*layerwise_decay(net, 0.5), no_weight_decay(net)], "sgd", params)
        twin = deep()
        for name, param in twin.collect_params().items():
            param.lr_mult = 0.25 if name[-1] == "0" or "0_" in name else 0.5 if "1_" in name else 1
            param.wd_mult = float(name.endswith("weight"))
        stock = mx.gluon.Trainer(twin.collect_params(), "sgd", params)
        data = [(x, y) for x, y in batches(3)]
        assert same(train(net, trainer, data), train(twin, stock, data))
        assert trainer.learning_rates == pytest.approx({"stage1": 0.025, "stage2": 0.05, "stage3": 0.1})

    @pytest.mark.parametrize("decay", [0, -0.5, 1.5, float("nan"), float("inf")])
    def test_decay_out_of_range(self, decay):
        with pytest.raises(ValueError, match=f"decay must be .*got {decay!r}"):
            layerwise_decay(resnet(), decay)

    @pytest.mark.parametrize("bad", ["0.5", None, True, unfreeze_at(3)])
    def test_what_is_no_number(self, bad):
        with pytest.raises(TypeError, match="decay must be a number"):
            layerwise_decay(resnet(), bad)
        with pytest.raises(TypeError, match="head must be a number"):
            layerwise_decay(resnet(), 0.5, head=bad)

    def test_one_so_small_that_it_would_freeze(self):
        with pytest.raises(ValueError, match="decay 1e-60 over 10 layers makes the first multiplier 0"):
            layerwise_decay(resnet(), 1e-60)


class TestDiscriminative:
    def test_by_equal_factors_from_first_to_last(self):
        net = resnet()
        groups = discriminative(net, 0.003, 0.7)
        values = multipliers(groups)
        assert (values[0], values[-1]) == (0.003, 0.7)
        factors = [later / earlier for earlier, later in zip(values, values[1:])]
        assert factors == pytest.approx([(0.7 / 0.003) ** 0.2] * 5)
        assert names(groups) == [f"stage{i}" for i in range(1, 7)]
        assert covers(groups, net)

    def test_one_stage_gets_the_highest(self):
        assert multipliers(discriminative(nn.Dense(2), 0.1, 1)) == [1]

    def test_range_the_wrong_way_round(self):
        with pytest.raises(ValueError, match=r"lowest must not be above highest, got 1.0 and 0.1"):
            discriminative(resnet(), 1, 0.1)
        with pytest.raises(ValueError, match="lowest must be above 0, got 0"):
            discriminative(resnet(), 0, 0.1)


RECIPES = {
    "layerwise_decay": lambda given: layerwise_decay(given, 0.5),
    "discriminative": lambda given: discriminative(given, 0.1, 1),
    "gradual_unfreezing": lambda given: gradual_unfreezing(given, 10),
}


class TestWhatIsGiven:
    """Of all recipes alike."""

    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_refused(self, recipe):
        net = resnet()
        one, other = nn.Dense(2), nn.Dense(3)
        for given, error, message in [
            (3, TypeError, "expected a network or a list of Blocks, got 3"),
            ({"a": 1}, TypeError, "expected a network or a list of Blocks"),
            ([], ValueError, "got an empty list"),
            ([one, "dense"], TypeError, r"blocks\[1\] must be a Block or another target, got 'dense'"),
            ([one, nn.Activation("relu")], ValueError, "Activation .* holds no parameter that could train"),
            (
                [one, other, one],
                ValueError,
                r"'dense\d+_weight' is in Dense .* and in Dense .*; name it once",
            ),
            ([net, net.features], ValueError, "is in ResNetV1 'net' and in HybridSequential"),
        ]:
            with pytest.raises(error, match=message):
                recipe(given)

    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_nothing_changes_before_the_trainer_is_made(self, recipe):
        net = resnet()
        recipe(net)
        params = net.collect_params().values()
        assert {(p.lr_mult, p.wd_mult) for p in params} == {(1, 1)}
        assert net.output.weight.grad_req == "write"


class TestNoWeightDecay:
    def test_biases_and_norms(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(mx.gluon.rnn.GRU(3, input_size=2), nn.BatchNorm(), nn.LayerNorm(), nn.Dense(2))
        group = no_weight_decay(net)
        assert {name.split("_", 1)[1] for name in group.params} == {
            "gru0_l0_i2h_bias",
            "gru0_l0_h2h_bias",
            "batchnorm0_gamma",
            "batchnorm0_beta",
            "layernorm0_gamma",
            "layernorm0_beta",
            "dense0_bias",
        }
        assert (group.lr_mult, group.wd_mult, group.name) == (None, 0, "no_weight_decay")

    def test_targets_other_than_a_network(self):
        net = deep()
        assert len(no_weight_decay([net[0], net[1]]).params) == 3
        assert len(no_weight_decay(net.collect_params(".*dense")).params) == 3

    def test_none_there(self):
        with pytest.raises(ValueError, match=r"Dense 'fc' has no parameter whose name ends in bias, gamma, beta"):
            no_weight_decay(nn.Dense(2, use_bias=False, prefix="fc_"))


class TestUnfreezeAt:
    def test_0_before_and_the_multiplier_from_then_on(self):
        assert [unfreeze_at(3, 0.5)(t) for t in range(1, 6)] == [0, 0, 0.5, 0.5, 0.5]
        assert [unfreeze_at(np.int64(2))(t) for t in (1, 2)] == [0, 1]
        assert [unfreeze_at(3, lambda t: t / 10)(t) for t in (2, 3, 4)] == [0, 0.3, 0.4]

    def test_shown_compared_copied_and_pickled(self):
        schedule = unfreeze_at(3, 0.5)
        assert repr(schedule) == "unfreeze_at(3, lr_mult=0.5)"
        assert repr(unfreeze_at(3)) == "unfreeze_at(3)"
        assert schedule == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
        assert len({schedule, unfreeze_at(3, 0.5), unfreeze_at(3), unfreeze_at(4, 0.5)}) == 3
        assert schedule != 3

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0,), ValueError, "num_update of unfreeze_at must be at least 1.*got 0"),
            ((1.5,), TypeError, "must be a whole number of updates, got 1.5"),
            ((True,), TypeError, "must be a whole number of updates, got True"),
            ((2, -1), ValueError, "lr_mult of unfreeze_at must be a finite number >= 0, got -1"),
            ((2, "x"), TypeError, "lr_mult of unfreeze_at must be a number"),
        ],
    )
    def test_refused(self, arguments, error, message):
        with pytest.raises(error, match=message):
            unfreeze_at(*arguments)


STAGES = [
    {"net_dense0_weight", "net_dense0_bias", "net_batchnorm0_gamma", "net_batchnorm0_beta"},
    {"net_dense1_weight", "net_dense1_bias", "net_batchnorm1_gamma", "net_batchnorm1_beta"},
    {"net_dense2_weight", "net_dense2_bias"},
]


def stages_moved(net, trainer, count):
    """Return, for each of ``count`` updates, how many of the last stages it moved, statistics among them."""
    found = []
    for x, y in batches(count):
        before = snapshot(net)
        train(net, trainer, [(x, y)])
        changed = moved(before, snapshot(net))
        found.append(next(i for i in range(3) if weights(changed) == set().union(*STAGES[2 - i :])) + 1)
        statistics = {name for name in changed if "running" in name}
        frozen = {f"batchnorm{i}_running_{what}" for i in range(3 - found[-1]) for what in ("mean", "var")}
        assert not {name for name in statistics if name[len("net_") :] in frozen}
    return found


def train_and_predict_agree(net):
    """Whether every BatchNorm runs on its running statistics, in the trace too."""
    x = batches(1)[0][0]
    with mx.autograd.record(train_mode=True):
        trained = net(x)
    return np.allclose(trained.asnumpy(), net(x).asnumpy(), atol=1e-5)


class TestGradualUnfreezing:
    def test_groups(self):
        net = resnet()
        groups = gradual_unfreezing(net, 100, lr_mult=0.5)
        assert multipliers(groups) == [*(unfreeze_at(t, 0.5) for t in (501, 401, 301, 201, 101)), 0.5]
        assert covers(groups, net)
        assert multipliers(gradual_unfreezing(deep(), [5, 5])) == [unfreeze_at(5), unfreeze_at(5), 1]
        assert multipliers(gradual_unfreezing(nn.Dense(2), 5)) == [1]
        assert multipliers(gradual_unfreezing(deep(), (1, 4))) == [unfreeze_at(4), 1, 1]

    def test_of_groups_keeps_their_multipliers(self):
        net = deep()
        given = [*discriminative(net, 0.25, 1)]
        given[0].wd_mult = 0.5
        groups = gradual_unfreezing(given, 2)
        assert multipliers(groups) == [unfreeze_at(5, 0.25), unfreeze_at(3, 0.5), 1]
        assert names(groups) == names(given)
        assert groups[0].wd_mult == 0.5
        assert multipliers(given) == [0.25, 0.5, 1]

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    @pytest.mark.filterwarnings("error:.*has not been called since")
    def test_stage_by_stage_from_the_head_down(self, hybridize):
        """Without naming the network beside the recipe, traced before the trainer was made or after."""
        net = deep()
        if hybridize is not None:
            net.hybridize(**hybridize)
            net(mx.nd.ones((2, 3)))
        trainer = MultiLRTrainer(gradual_unfreezing(net, 2), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        assert [layer._kwargs["use_global_stats"] for layer in (net[1], net[3])] == [True, True]
        assert train_and_predict_agree(net)
        assert stages_moved(net, trainer, 6) == [1, 1, 2, 2, 3, 3]
        assert not train_and_predict_agree(net)
        assert [layer._kwargs["use_global_stats"] for layer in (net[1], net[3])] == [False, False]

    def test_as_if_unfrozen_by_hand(self):
        net, twin = deep(), deep()
        trainer = MultiLRTrainer(gradual_unfreezing(discriminative(net, 0.25, 1), [2, 4]), "adam")
        by_hand = MultiLRTrainer([twin, (twin[:4], 0)], "adam")
        for t, batch in enumerate(batches(5), 1):
            by_hand.set_lr_mult({twin[2:4]: 0.5} if t == 2 else {twin[:2]: 0.25} if t == 4 else {twin[4]: 1})
            assert same(train(net, trainer, [batch]), train(twin, by_hand, [batch]))

    def test_in_step_with_the_lr_scheduler_and_the_updates_that_amp_skips(self):
        net = deep()
        scheduler = mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1)
        trainer = MultiLRTrainer(gradual_unfreezing(net, [2, 3]), "sgd", {"lr_scheduler": scheduler})
        trainer._amp_loss_scaler = Overflow([2, 3])
        seen = []
        for batch in batches(5):
            rates = trainer.learning_rates
            before = snapshot(net)
            train(net, trainer, [batch])
            changed = bool(weights(moved(before, snapshot(net))))
            seen.append((trainer.optimizer.num_update, changed, [rates[f"stage{i}"] for i in (1, 2, 3)]))
        assert seen == [
            (1, True, pytest.approx([0, 0, 0.9])),
            (1, False, pytest.approx([0, 0.8, 0.8])),
            (1, False, pytest.approx([0, 0.8, 0.8])),
            (2, True, pytest.approx([0, 0.8, 0.8])),
            (3, True, pytest.approx([0.7, 0.7, 0.7])),
        ]

    def test_goes_on_while_all_else_is_frozen(self):
        """Nothing trains at first, so there is nothing to call backward on: `step` alone counts."""
        net = deep()
        groups = [(net, 0), (net[2:4], unfreeze_at(3)), (net[4], unfreeze_at(4))]
        trainer = MultiLRTrainer(groups, "sgd", {"learning_rate": 0.1})
        before = snapshot(net)
        trainer.step(4)
        trainer.step(4)
        assert not moved(before, snapshot(net))
        changed = []
        for x, y in batches(2):
            before = snapshot(net)
            backward(net, x, y)
            trainer.step(4)
            changed.append(weights(moved(before, snapshot(net))))
        assert changed == [STAGES[1], STAGES[1] | STAGES[2]]

    @pytest.mark.parametrize(
        ("every", "error", "message"),
        [
            (0, ValueError, "every must be at least 1, the number of the first update, got 0"),
            (2.5, TypeError, "every must be a whole number of updates, got 2.5"),
            ("ab", TypeError, "every must be a whole number of updates, got 'ab'"),
            ([5], ValueError, "every names 1 updates, but there are 2 stages before the last"),
            ([5, 3], ValueError, r"every must not decrease, got \[5, 3\]"),
            ([5, 0], ValueError, r"every\[1\] must be at least 1"),
            ([5, None], TypeError, r"every\[1\] must be a whole number"),
        ],
    )
    def test_calendar_refused(self, every, error, message):
        with pytest.raises(error, match=message):
            gradual_unfreezing(deep(), every)

    def test_groups_refused(self):
        net = deep()
        groups = discriminative(net, 0.1, 1)
        with pytest.raises(ValueError, match=r"lr_mult 0.5 was given beside groups"):
            gradual_unfreezing(groups, 2, lr_mult=0.5)
        with pytest.raises(TypeError, match=r"groups\[3\] must be a ParamGroup like the others, got Dense"):
            gradual_unfreezing([*groups, net[0]], 2)
        with pytest.raises(ValueError, match=r"is in ParamGroup\(.*stage1.* and in ParamGroup\(.*no_weight_decay"):
            gradual_unfreezing([*groups, no_weight_decay(net)], 2)


def test_a_recipe_refines_the_network_around_it():
    net = mlp()
    trainer = MultiLRTrainer(
        [(net, 0.5), ParamGroup(net[1], wd_mult=2), *layerwise_decay([net[:2], net[2]], 0.1)], "sgd"
    )
    assert [net[i].collect_params().values() and net[i].params for i in (0, 2)]
    assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (0.1, 0.1, 1)
    assert net[1].gamma.wd_mult == 2
    assert trainer.learning_rates == pytest.approx({"stage1": 0.001, "stage2": 0.01})
