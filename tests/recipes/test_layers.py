"""The stages and the layers of a network have names, and hold every parameter once."""

import pytest
from mxnet.gluon import nn

from multitrainer import discriminative, gradual_unfreezing, layerwise_decay
from multitrainer.recipes.layers import _from_network, check_disjoint, named_layers, named_stages
from multitrainer.recipes.network_tree import make_tree
from recipe_support import deep, resnet
from support import mlp


def test_layers_are_named_by_their_stage_and_stages_by_number():
    net = resnet()
    assert [layer.name for layer in named_layers(net)] == [
        "stage1",
        *(f"stage{stage} layer{layer}" for stage in (2, 3, 4, 5) for layer in (1, 2)),
        "stage6",
    ]
    assert [stage.name for stage in named_stages(net)] == [f"stage{number}" for number in range(1, 7)]
    assert named_stages(net)[1].target is net.features[4]
    assert named_layers(net)[2].target is net.features[4][1]


@pytest.mark.parametrize("divide", [named_layers, named_stages])
def test_a_list_is_taken_as_it_is(divide):
    net = mlp()
    found = divide([net[0], net[1:]])
    assert [(each.name, each.root) for each in found] == [("stage1", None), ("stage2", None)]
    assert found[0].target is net[0]


@pytest.mark.parametrize("divide", [named_layers, named_stages])
def test_a_group_knows_the_network_that_it_is_part_of(divide):
    net = deep()
    for each in divide(net):
        group = each.group(0.5)
        assert (group.params, group.lr_mult, group.wd_mult, group.name) == (each.target, 0.5, None, each.name)
        assert group.root is net


def test_a_parameter_that_no_stage_holds_is_an_error():
    net = deep()
    nodes = [node for node in make_tree(net, None).children if node.block is not net[0]]
    with pytest.raises(
        ValueError, match=r"no stage of HybridSequential 'net' holds net_dense0_weight, net_dense0_bias"
    ):
        _from_network(net, [("stage1", nodes)])


class TestDisjoint:
    def test_targets_without_a_common_parameter_pass(self):
        net = mlp()
        check_disjoint([("one", net[0]), ("other", [net[1], net[2]])])

    def test_a_parameter_in_two_targets_is_an_error(self):
        net = mlp()
        with pytest.raises(ValueError, match="Parameter 'net_dense1_weight' is in one and in other; name it once"):
            check_disjoint([("one", net), ("other", net[2])])

    def test_a_target_of_statistics_is_an_error(self):
        statistics = mlp().collect_params(".*running.*")
        with pytest.raises(ValueError, match="it holds no parameter that could train; leave it out of the list"):
            check_disjoint([("it", statistics)])


RECIPES = {
    "layerwise_decay": lambda given: layerwise_decay(given, 0.5),
    "discriminative": lambda given: discriminative(given, 0.1, 1),
    "gradual_unfreezing": lambda given: gradual_unfreezing(given, 10),
}


class TestEveryRecipe:
    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_misuse_is_refused(self, recipe):
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
    def test_nothing_changes_until_a_trainer_is_made(self, recipe):
        net = resnet()
        recipe(net)
        params = net.collect_params().values()
        assert {(p.lr_mult, p.wd_mult) for p in params} == {(1, 1)}
        assert net.output.weight.grad_req == "write"
