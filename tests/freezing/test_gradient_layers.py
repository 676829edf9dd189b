"""Which frozen Parameters need no gradient: those of whole layers that cannot hold the weight of a trained bias."""

import mxnet as mx
import pytest
from mxnet.gluon import HybridBlock, Parameter, SymbolBlock, nn

from multitrainer.freezing.gradient_layers import Layer, layers_of, without_dependents
from multitrainer.freezing.state import mark_frozen


def dense(units=4, in_units=3, **kwargs):
    return nn.Dense(units, in_units=in_units, **kwargs)


def frozen(*blocks):
    for block in blocks:
        for param in block.collect_params().values():
            mark_frozen(param, "write", 1)


def params_of(*blocks):
    return {param for block in blocks for param in block.collect_params().values()}


class Users(HybridBlock):
    """A layer with Parameters of given shapes."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, self.params.get(name, shape=shape, allow_deferred_init=True))


class TestLayersOf:
    def test_each_block_with_parameters_is_a_layer(self):
        net = nn.HybridSequential()
        net.add(dense(), nn.Flatten(), nn.BatchNorm(in_channels=4))
        net.add(Users(a=(2,), b=(3,)))
        layers = layers_of([net, net[0]])
        assert [set(layer.params) for layer in layers] == [params_of(net[0]), params_of(net[2]), params_of(net[3])]
        assert [layer.is_mxnets for layer in layers] == [True, True, False]
        assert all(layer.is_complete for layer in layers)

    def test_of_a_symbolblock_are_those_of_its_operators(self):
        """A FullyConnected is a layer, and so is every Parameter."""
        x = mx.sym.var("data")
        hidden = mx.sym.FullyConnected(x, num_hidden=4, name="one")
        weight = mx.sym.transpose(mx.sym.var("two_weight"))
        output = mx.sym.FullyConnected(hidden, weight, mx.sym.var("two_bias"), num_hidden=2, name="two")
        block = SymbolBlock(mx.sym.Group([output, mx.sym.Convolution(x, num_filter=1, kernel=(1,), name="three")]), x)
        found = [({param.name for param in layer.params}, layer.is_complete) for layer in layers_of([block])]
        names = ["one_weight", "one_bias", "two_weight", "two_bias", "three_weight", "three_bias"]
        assert sorted(map(str, found[2:])) == sorted(str(({name}, True)) for name in names)
        assert found[:2] == [({"one_weight", "one_bias"}, True), ({"two_weight", "two_bias"}, True)]
        assert all(layer.is_mxnets for layer in layers_of([block]))

    def test_of_a_symbolblock_are_incomplete_if_an_input_is_a_weight(self):
        """It may be computed from Parameters of another Block."""
        x, weight = mx.sym.var("data"), mx.sym.var("w")
        block = SymbolBlock(mx.sym.FullyConnected(x, weight, num_hidden=2, name="fc"), [x, weight])
        layers = layers_of([block])
        assert [(set(layer.params), layer.is_complete) for layer in layers] == [(params_of(block), False)] + [
            (params_of(block), True)
        ]


class TestWithoutDependents:
    def find(self, *blocks, elsewhere=()):
        return without_dependents(layers_of(blocks), elsewhere)

    def test_nothing_that_trains(self):
        one = dense()
        assert self.find(one) == set()

    def test_whole_layers(self):
        one, two = dense(), dense()
        frozen(one)
        assert self.find(one, two) == params_of(one)

    @pytest.mark.parametrize("trained", ["weight", "bias"])
    def test_not_a_layer_of_which_a_part_trains(self, trained):
        one, two = dense(), dense()
        frozen(two)
        mark_frozen(one.bias if trained == "weight" else one.weight, "write", 1)
        assert self.find(one, two) == params_of(two)

    def test_a_layer_of_which_the_rest_has_no_gradient(self):
        one = dense()
        mark_frozen(one.weight, "write", 1)
        one.bias.grad_req = "null"
        assert self.find(one) == {one.weight}

    def test_statistics_do_not_count_as_trained(self):
        norm = nn.BatchNorm(in_channels=2)
        mark_frozen(norm.gamma, "write", 1)
        mark_frozen(norm.beta, "write", 1)
        assert self.find(norm) == {norm.gamma, norm.beta}

    def test_statistics_do_not_count_as_trained_even_if_they_request_a_gradient(self):
        """As those of an imported network do at first."""
        weight, statistic = Parameter("weight", shape=(2, 2)), Parameter("moving_var", shape=(2,))
        statistic._differentiable = False
        assert statistic.grad_req == "write"
        mark_frozen(weight, "write", 1)
        assert without_dependents([Layer((weight, statistic), True)], ()) == {weight}

    def test_not_a_parameter_that_is_shared_with_a_trained_layer(self):
        one = dense()
        two = dense(params=one.params)
        two.another = two.params.get("another", shape=(7,))
        frozen(one)
        assert self.find(one, two) == set()

    def test_not_a_layer_that_is_incomplete(self):
        one = dense()
        frozen(one)
        layer = Layer((one.weight, one.bias), True, is_complete=False)
        assert without_dependents([layer], ()) == set()
        assert without_dependents([layer._replace(is_complete=True)], ()) == params_of(one)


class TestBiasOfAnotherBlock:
    """A user's layer can give a frozen weight to FullyConnected together with a bias of its own."""

    def is_independent(self, shape, *bias_shapes):
        """Whether a frozen weight of a layer of MXNet's is independent of a user's layer with these Parameters."""
        weight = Parameter("weight", shape=shape)
        mark_frozen(weight, "write", 1)
        biases = tuple(Parameter(f"bias{i}", shape=bias) for i, bias in enumerate(bias_shapes))
        return weight in without_dependents([Layer((weight,), True), Layer(biases, False)], ())

    @pytest.mark.parametrize(
        ("shape", "bias", "independent"),
        [
            ((4, 6), (4,), False),  # the weight as it is
            ((4, 6), (6,), False),  # transposed
            ((4, 6), (24,), False),  # reshaped
            ((4, 6), (2,), False),  # one of several pieces of the bias
            ((4, 6), (12,), False),
            ((4, 6), (5,), True),
            ((4, 6), (1,), True),  # a scalar is not a piece of a bias
            ((4, 6), (48,), True),
            ((1, 6), (1,), False),
            ((4, 6), (2, 2), False),  # reshaped to 4
            ((4, 6), (5, 5), True),
            ((2, 3, 5), (10,), False),
            ((2, 3, 5), (15,), False),
            ((2, 3, 5), (30,), False),
            ((2, 3, 5), (7,), True),
            ((8,), (8,), True),  # not a weight of FullyConnected
            ((4, 6, 1, 1), (4,), True),
            ((4, 6), None, False),  # of unknown shape
            ((4, 6), (0,), False),
        ],
    )
    def test_of_a_user_layer(self, shape, bias, independent):
        assert self.is_independent(shape, bias) is independent

    def test_no_bias_at_all(self):
        assert self.is_independent((4, 6))

    @pytest.mark.parametrize("units", [4, 5])
    def test_a_weight_of_a_user_layer_and_a_bias_of_mxnets(self, units):
        users, other = Users(weight=(4, 6)), nn.BatchNorm(in_channels=units, scale=False)
        frozen(users)
        assert (users.weight in without_dependents(layers_of([users, other]), ())) is (units == 5)

    def test_a_weight_and_a_bias_of_layers_of_mxnets(self):
        one, other = dense(4, 6), nn.BatchNorm(in_channels=4)
        frozen(one)
        assert params_of(one) <= without_dependents(layers_of([one, other]), ())

    @pytest.mark.parametrize(("size", "independent"), [(4, False), (6, True), (None, False)])
    def test_a_bias_whose_block_is_unknown(self, size, independent):
        one, other = dense(4, 6), Parameter("other", shape=size and (size,))
        frozen(one)
        assert (one.weight in without_dependents(layers_of([one]), [other])) is independent
        assert one.bias in without_dependents(layers_of([one]), [other])
        mark_frozen(other, "write", 1)
        assert params_of(one) == without_dependents(layers_of([one]), [other])

    def test_a_weight_of_unknown_shape(self):
        one, other = nn.Dense(4), Parameter("other", shape=(4,))
        frozen(one)
        assert one.bias in without_dependents(layers_of([one]), [other])
        assert one.weight not in without_dependents(layers_of([one]), [other])
