"""Decoded values are bit for bit and type for type what was encoded; what does not fit is refused."""

import collections

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multitrainer.checkpoint import archive, paths
from multitrainer.checkpoint.decoding import ANYTHING, Decoder, InPlaceDecoder, contains_object, describe, is_shape
from multitrainer.checkpoint.encoding import Encoder
from support import CONTEXTS, bits
from value_trees import TREES

Pair = collections.namedtuple("Pair", "one other")


def decode(path, node, arrays=(), template=ANYTHING, kind=Decoder, context=None):
    """Write arrays to a file, and decode a node that is at the path "x" of it."""
    archive.write(path / "values", None, arrays)
    with archive.Reader(path / "values") as reader:
        value = kind(reader, context or mx.cpu(), paths.SharedValues(), None).decode(node, "x", template)
        reader.check_all_read()
    return value


def recoded(path, value, template=ANYTHING, **options):
    encoder = Encoder()
    return decode(path, encoder.encode(value, "x"), encoder.arrays, template, **options)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees=st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_random_trees_come_back(trees, tmp_path_factory):
    """Bit for bit and type for type; with what was written as the template, and without one."""
    path = tmp_path_factory.getbasetemp() / "trees"
    encoder = Encoder()
    nodes = {name: encoder.encode(tree, paths.component(name)) for name, tree in trees.items()}
    archive.write(path, nodes, encoder.arrays)
    for templates in (trees, dict.fromkeys(trees, ANYTHING)):
        with archive.Reader(path) as reader:
            decoder = Decoder(reader, mx.cpu(), paths.SharedValues(), None)
            found = {
                name: decoder.decode(reader.header[name], paths.component(name), templates[name]) for name in trees
            }
            reader.check_all_read()
        assert bits(found) == bits(trees)


def test_the_context_of_the_template_or_of_the_decoder(tmp_path):
    for value in (mx.nd.ones((2, 2)), mx.nd.ones((2, 2)).tostype("row_sparse")):
        template = value.copyto(CONTEXTS[1])
        assert recoded(tmp_path, value).context == CONTEXTS[0]
        assert recoded(tmp_path, value, context=CONTEXTS[1]).context == CONTEXTS[1]
        assert recoded(tmp_path, value, template).context == CONTEXTS[1]


def test_a_namedtuple_and_a_dict_of_another_class_need_a_template(tmp_path):
    for value in (Pair(1, [2]), collections.OrderedDict(a=1)):
        assert type(recoded(tmp_path, value)) in (tuple, dict)
        assert bits(recoded(tmp_path, value, value)) == bits(value)


def test_shared_parts_become_one_object(tmp_path):
    encoder, array = Encoder(), mx.nd.ones(2)
    node = encoder.encode([array, array], "x")
    archive.write(tmp_path / "values", None, encoder.arrays)
    for groups, expected in (encoder.shared.groups(), True), ([], False):
        with archive.Reader(tmp_path / "values") as reader:
            shared = paths.SharedValues()
            shared.set_groups(groups)
            one, other = Decoder(reader, mx.cpu(), shared, None).decode(node, "x")
        assert (one is other) is expected


def test_objects_are_decoded_by_the_callback(tmp_path):
    archive.write(tmp_path / "values", None, [])
    with archive.Reader(tmp_path / "values") as reader:
        decoder = Decoder(reader, mx.cpu(), paths.SharedValues(), lambda *args: args)
        assert decoder.decode([{"object": "content"}], "x", [3]) == [("content", "x/0", 3)]


class TestInPlaceDecoder:
    def test_arrays_are_written_into_their_templates(self, tmp_path):
        template = [mx.nd.zeros((2, 2)), mx.nd.zeros((3,))]
        found = recoded(tmp_path, [mx.nd.ones((2, 2)), mx.nd.ones((3,))], template, kind=InPlaceDecoder)
        for value, place in zip(found, template):
            assert value is place
            assert (place.asnumpy() == 1).all()

    def test_arrays_without_a_template_are_new(self, tmp_path):
        assert bits(recoded(tmp_path, [mx.nd.ones((2,))], [0], kind=InPlaceDecoder)) == bits([mx.nd.ones((2,))])


ROWS = (np.arange(2, dtype="int64"), np.ones((2, 2), "float32"))


def sparse(rows, data=ROWS[1]):
    return [("x/indices", np.array(rows, "int64")), ("x/data", data)]


@pytest.mark.parametrize(
    ("node", "arrays", "reason"),
    [
        ({}, (), "'x' is of an unknown kind"),
        ({"what": 1}, (), "'x' is of an unknown kind"),
        ({"plain": 1}, (), "'x' is of an unknown kind"),
        ({"list": []}, (), "'x' is of an unknown kind"),
        ({"tuple": [], "dict": []}, (), "'x' is of an unknown kind"),
        ({"float": "1"}, (), "'x' is not a number"),
        ({"float": "infinity"}, (), "'x' is not a number"),
        ({"scalar": ["float32"]}, (), "'x' is incomplete"),
        ({"scalar": ["float32", "1"]}, (), "'x' is not a number"),
        ({"scalar": ["float32", None]}, (), "'x' is not a number"),
        ({"scalar": ["float32", {"tuple": []}]}, (), "'x' is not a number"),
        ({"scalar": ["object", 1]}, (), "the dtype of 'x' is not valid"),
        ({"scalar": [["float32"], 1]}, (), "the dtype of 'x' is not valid"),
        ({"scalar": ["int64", 10**300]}, (), "'x' is not of dtype int64"),
        ({"scalar": ["int8", {"float": "nan"}]}, (), "'x' is not of dtype int8"),
        ({"array": 3}, (), "'x' is incomplete"),
        ({"array": ["float32", [-1]]}, (), "the shape of 'x' is not valid"),
        ({"array": ["uint16", [2]]}, [("x", np.ones(2, "uint16"))], "'x' is of dtype uint16, which MXNet does not"),
        ({"array": ["float32", [2]]}, (), "it has no member 'x'"),
        ({"numpy": ["float32", [2]]}, [("x", np.ones(2))], "dtype or shape mismatch for 'x'"),
        ({"numpy": ["float32", [2], 3]}, (), "'x' is incomplete"),
        ({"row_sparse": ["float32", [2, 2]]}, (), "'x' is incomplete"),
        ({"row_sparse": ["float32", [2, 2], 3]}, (), "'x' cannot have 3 rows"),
        ({"row_sparse": ["float32", [2, 2], -1]}, (), "'x' cannot have -1 rows"),
        ({"row_sparse": ["float32", [2, 2], True]}, (), "'x' cannot have True rows"),
        ({"row_sparse": ["float32", [], 0]}, (), "'x' cannot have 0 rows"),
        ({"row_sparse": ["float32", [4, 2], 2]}, sparse([1, 4]), "row indices of 'x' are out of range"),
        ({"row_sparse": ["float32", [4, 2], 2]}, sparse([-1, 2]), "row indices of 'x' are out of range"),
        ({"row_sparse": ["float32", [4, 2], 2]}, sparse([1, 1]), "row indices of 'x' are out of range"),
        ({"row_sparse": ["float32", [4, 2], 2]}, sparse([3, 0]), "row indices of 'x' are out of range"),
        ({"tuple": 3}, (), "'x' is incomplete"),
        ({"dict": {}}, (), "'x' is incomplete"),
        ({"dict": [["a"]]}, (), "'x' is incomplete"),
        ({"dict": [["a", 1], ["a", 2]]}, (), "'x' has the key 'a', which is not a valid key or occurs twice"),
        ({"dict": [[[], 1]]}, (), r"'x' has the key \[\], which"),
        ({"dict": [[1.5, 1]]}, (), r"'x' has the key 1\.5, which"),
    ],
    ids=str,
)
def test_a_malformed_node_is_refused(node, arrays, reason, tmp_path):
    with pytest.raises(ValueError, match=f"is damaged.*{reason}"):
        decode(tmp_path, node, arrays)


@pytest.mark.parametrize(
    ("rows", "expected"), [([], [0, 0, 0, 0]), ([0, 3], [1, 0, 0, 1]), ([0, 1, 2, 3], [1, 1, 1, 1])], ids=str
)
def test_rows_in_order_are_accepted(rows, expected, tmp_path):
    node = {"row_sparse": ["float32", [4, 2], len(rows)]}
    value = decode(tmp_path, node, sparse(rows, np.ones((len(rows), 2), "float32")))
    assert value.asnumpy()[:, 0].tolist() == expected


FITS = [
    (None, None, True),
    (None, 3, False),
    (3, None, False),
    (3, 2.5, True),
    ("a", 2.5, True),
    (3, [], False),
    (float("nan"), 1, True),
    (float("nan"), (), False),
    (np.float32(1), "a", True),
    (np.float32(1), mx.nd.ones(1), False),
    (mx.nd.ones(2), mx.nd.zeros(2), True),
    (mx.nd.ones(2), mx.nd.zeros(3), False),
    (mx.nd.ones(2), mx.nd.zeros(2, dtype="float16"), False),
    (mx.nd.ones(2), np.zeros(2, "float32"), False),
    (mx.nd.ones((2, 2)), mx.nd.zeros((2, 2)).tostype("row_sparse"), False),
    (mx.nd.ones((2, 2)).tostype("row_sparse"), mx.nd.zeros((2, 2)).tostype("row_sparse"), True),
    (mx.nd.ones((2, 2)).tostype("row_sparse"), mx.nd.zeros((2, 2)), False),
    (np.ones(2), np.zeros(2), True),
    (np.ones(2), np.zeros(2, "float32"), False),
    (np.ones(2), mx.nd.zeros(2, dtype="float64"), False),
    ((1, 2), (3, 4), True),
    ((1, 2), (3,), False),
    ((1, 2), [3, 4], False),
    ([1], [], True),
    ([1], (1,), False),
    ([1], {}, False),
    ({"a": 1}, {}, True),
    ({"a": 1}, [], False),
]


@pytest.mark.parametrize(("value", "template", "fits"), FITS, ids=str)
def test_what_can_take_the_place_of_a_template(value, template, fits, tmp_path):
    if fits:
        assert bits(recoded(tmp_path, value, template)) == bits(value)
    else:
        with pytest.raises(ValueError, match="in the file, but the optimizer of this trainer keeps") as refused:
            recoded(tmp_path, value, template)
        assert describe(template) in str(refused.value)


def test_parts_of_a_tuple_must_fit(tmp_path):
    with pytest.raises(ValueError, match="'x/1' is null in the file, but the optimizer of this trainer keeps int 2"):
        recoded(tmp_path, (1, None), (1, 2))
    assert recoded(tmp_path, [(1, (2, None))], [(1, (2, 3))]) == [(1, (2, None))]


@pytest.mark.parametrize(("value", "template", "fits"), FITS, ids=str)
def test_parts_of_lists_and_dicts_can_be_anything(value, template, fits, tmp_path):
    """Training may have replaced them since they were created; their context is that of the template if they fit."""
    for container, place in (([value], [template]), ({"a": value}, {"a": template}), ([(0, value)], [(0, template)])):
        assert bits(recoded(tmp_path, container, place)) == bits(container)


def test_the_templates_of_parts_count_if_they_fit(tmp_path):
    there = [mx.nd.ones((2,), ctx=CONTEXTS[1])]
    for value, template in (([mx.nd.ones((2,))], there), ({"a": mx.nd.ones((2,))}, {"a": there[0]})):
        found = recoded(tmp_path, value, template)
        assert (found[0] if isinstance(found, list) else found["a"]).context == CONTEXTS[1]
    assert recoded(tmp_path, [mx.nd.ones((3,))], there)[0].context == CONTEXTS[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], True),
        ([0, 2**63 - 1], True),
        ([2**63], False),
        ([-1], False),
        ([True], False),
        ([1.0], False),
        ((1,), False),
        ([1] * 32, True),
        ([1] * 33, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_is_shape(value, expected):
    assert is_shape(value) is expected


@pytest.mark.parametrize(
    ("node", "expected"),
    [(3, False), ([1, [{"object": []}]], True), ({"tuple": [{"dict": [["a", {"object": []}]]}]}, True), ([{}], False)],
    ids=str,
)
def test_contains_object(node, expected):
    assert contains_object(node) is expected


def test_describe():
    assert describe(mx.nd.ones((2, 3))) == "NDArray float32 (2, 3)"
    assert describe(np.ones(2)) == "ndarray float64 (2,)"
    assert describe("x" * 100) == f"str '{'x' * 55}"
