"""A graph is divided before the first trained operator, and both parts together compute what the whole does."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.ndarray import CachedOp

from multitrainer.freezing.graph_splitting import divide, read_backward, shield


def operators(symbol):
    inputs = set(symbol.list_inputs())
    return [node.name for node in symbol.get_internals() if node.name not in inputs]


def fully_connected(data, name, **kwargs):
    return mx.sym.FullyConnected(data, name=name, num_hidden=4, no_bias=True, **kwargs)


def values_of(symbol):
    """Give each input an array: a matrix of 4 x 4."""
    rng = np.random.RandomState(3)
    return {name: mx.nd.array(rng.randn(4, 4)) for name in sorted(symbol.list_inputs())}


def run(symbol, values):
    outputs = CachedOp(symbol)(*(values[name] for name in symbol.list_inputs()))
    return outputs if isinstance(outputs, list) else [outputs]


def run_parts(parts, values):
    first, between, rest = parts
    return run(rest, {**values, **dict(zip(between, run(first, values)))})


class TestDivide:
    def build(self):
        """Two values cross the cut, of which one is an output of the graph and one comes from a split."""
        one = mx.sym.relu(fully_connected(mx.sym.var("data"), "one"), name="relu")
        halves = mx.sym.split(fully_connected(one, "two"), num_outputs=2, axis=1, name="split")
        joined = mx.sym.concat(halves[1], halves[0], dim=1, name="joined")
        late = fully_connected(joined + one, "three")
        return mx.sym.Group([one, fully_connected(late, "four"), one * late])

    def test_computes_what_the_whole_does(self):
        symbol = self.build()
        values = values_of(symbol)
        parts = divide(symbol, {"three_weight", "four_weight"})
        found, expected = run_parts(parts, values), run(symbol, values)
        assert len(found) == 3
        assert [array.asnumpy().tobytes() for array in found] == [array.asnumpy().tobytes() for array in expected]

    def test_cuts_before_the_first_operator_that_takes_a_trained_variable(self):
        symbol = self.build()
        first, between, rest = divide(symbol, {"three_weight"})
        assert "three" not in operators(first)
        assert "joined" in operators(first)
        assert between == [f"frozen output {i}" for i in range(len(first.list_outputs()))]
        assert set(rest.list_inputs()) == {*between, "three_weight", "four_weight"}
        first, _, rest = divide(symbol, {"two_weight"})
        assert operators(first) == ["one", "relu"]
        assert "two_weight" in rest.list_inputs()

    def test_operators_keep_their_order(self):
        symbol = self.build()
        first, _, rest = divide(symbol, {"three_weight"})
        together = [name for name in operators(first) + operators(rest) if "frozen" not in name]
        assert together == operators(symbol)

    def test_an_output_of_the_first_part_has_a_gradient_of_its_own(self):
        symbol = self.build()
        values = values_of(symbol)
        first, between, rest = divide(symbol, {"three_weight"})
        crossing = dict(zip(between, run(first, values)))
        for array in crossing.values():
            array.attach_grad()
        with autograd.record():
            output = run(rest, {**values, **crossing})[0].sum()
        output.backward()
        assert sum(array.grad.asnumpy().sum() for array in crossing.values()) == 16

    @pytest.mark.parametrize(
        ("trained", "reason"), [({"one_weight"}, "no operator before"), ({"another"}, "nothing trained")]
    )
    def test_gives_none_if_there_is_nothing_to_divide(self, trained, reason):
        assert divide(self.build(), trained) is None
        assert divide(mx.sym.relu(self.build()[0]), trained) is None

    def test_gives_none_if_a_name_of_an_operator_is_that_of_a_trained_variable(self):
        """Only variables are trained."""
        assert divide(self.build(), {"relu"}) is None

    def test_orders_the_outputs_of_the_first_part_so_that_its_operators_keep_theirs(self):
        """Asked for q before r, the first part would run q before p."""
        one, two = (fully_connected(mx.sym.var("data"), name) for name in "pq")
        symbol = fully_connected(mx.sym.elemwise_mul(one, two, name="r"), "t") + two
        first, _, _ = divide(symbol, {"t_weight"})
        assert operators(first) == ["p", "q", "r"]
        assert first.list_outputs() == ["r_output", "q_output"]
        values = values_of(symbol)
        found, expected = run_parts(divide(symbol, {"t_weight"}), values), run(symbol, values)
        assert found[0].asnumpy().tobytes() == expected[0].asnumpy().tobytes()

    def test_gives_none_if_the_order_of_operators_would_change(self):
        """No order of the outputs q, r and s makes the first part run p, q, r and s in that order."""
        one, two, other = (fully_connected(mx.sym.var("data"), name) for name in "pqs")
        product = mx.sym.elemwise_mul(one, two, name="r")
        symbol = mx.sym.Group([mx.sym.concat(product, other, mx.sym.var("trained"), name="t"), two])
        assert operators(symbol) == ["p", "q", "r", "s", "t"]
        assert divide(symbol, {"trained"}) is None

    def test_keeps_the_kind_of_symbol(self):
        with mx.util.np_array(True):
            x, w = (mx.sym.var(name).as_np_ndarray() for name in ("x", "w"))
            symbol = mx.sym.np.dot(mx.sym.np.tanh(x), w)
            first, _, rest = divide(symbol, {"w"})
            assert type(first) is type(rest) is type(symbol)
            assert type(shield(symbol, {"x"})) is type(symbol)
        assert type(divide(self.build(), {"three_weight"})[0]) is mx.sym.Symbol


class TestReadBackward:
    """The backward pass of these operators reads their first input, if their output needs a gradient."""

    def test_first_input_of_a_trained_layer(self):
        x, y = mx.sym.var("x"), mx.sym.var("y")
        symbol = fully_connected(x, "fc") + y
        assert read_backward(symbol, {"fc_weight"}) == {"x"}
        assert read_backward(symbol, {"y"}) == set()
        assert read_backward(symbol, set()) == set()

    def test_first_input_of_a_layer_behind_a_trained_one(self):
        hidden = fully_connected(mx.sym.var("x"), "one")
        assert read_backward(fully_connected(hidden, "two"), {"one_weight"}) == {"x"}
        assert read_backward(fully_connected(hidden, "two"), {"two_weight"}) == set()

    @pytest.mark.parametrize(
        ("operator", "options"),
        [
            (mx.sym.BatchNorm, {}),
            (mx.sym.Convolution, {"num_filter": 2, "kernel": (1,)}),
            (mx.sym.Deconvolution, {"num_filter": 2, "kernel": (1,)}),
            (mx.sym.Embedding, {"input_dim": 2, "output_dim": 2}),
            (mx.sym.FullyConnected, {"num_hidden": 2}),
            (mx.sym.GroupNorm, {"num_groups": 2}),
            (mx.sym.InstanceNorm, {}),
            (mx.sym.LayerNorm, {}),
            (mx.sym.RNN, {"state_size": 2, "num_layers": 1, "mode": "gru"}),
        ],
    )
    def test_first_input_of_each_kind_of_layer(self, operator, options):
        symbol = operator(mx.sym.var("x"), name="layer", **options)
        for name in symbol.list_arguments()[1:]:
            assert read_backward(symbol, {name}) == {"x"}

    def test_not_the_second_input_nor_operators(self):
        x, w = mx.sym.var("x"), mx.sym.var("w")
        assert read_backward(mx.sym.FullyConnected(w, x, no_bias=True, num_hidden=4), {"w"}) == {"w"}
        assert read_backward(mx.sym.relu(x) * w, {"w"}) == set()
        assert read_backward(fully_connected(mx.sym.relu(x), "fc"), {"fc_weight"}) == set()


class TestShield:
    def test_puts_a_blockgrad_behind_the_inputs_named(self):
        x = mx.sym.var("x")
        symbol = fully_connected(x, "fc") * x + mx.sym.var("y")
        shielded = shield(symbol, {"x"})
        assert [name for name in operators(shielded) if name not in operators(symbol)] == ["shield of x"]
        assert set(shielded.list_inputs()) == set(symbol.list_inputs())

    def test_shields_no_operator(self):
        symbol = mx.sym.relu(fully_connected(mx.sym.var("x"), "fc"))
        assert operators(shield(symbol, {"fc"})) == operators(symbol)

    def test_computes_the_same_without_a_gradient_of_those_inputs(self):
        x = mx.sym.var("x")
        symbol = fully_connected(x, "fc") * x + mx.sym.var("y")
        values, expected = values_of(symbol), run(symbol, values_of(symbol))
        for array in values.values():
            array.attach_grad()
        with autograd.record():
            output = run(shield(symbol, {"x", "y"}), values)[0]
        output.backward()
        assert output.asnumpy().tobytes() == expected[0].asnumpy().tobytes()
        assert not values["x"].grad.asnumpy().any()
        assert not values["y"].grad.asnumpy().any()
        assert values["fc_weight"].grad.asnumpy().any()
