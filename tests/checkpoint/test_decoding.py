"""Decoded values are bit for bit and type for type what was encoded; what does not fit is refused."""

import mxnet as mx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multitrainer.checkpoint import archive, decoding, encoding, paths
from support import bits
from value_trees import TREES


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees=st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_random_trees_come_back(trees, tmp_path_factory):
    """Bit for bit and type for type; with what was written as the pattern, and without one."""
    path = tmp_path_factory.getbasetemp() / "trees"
    packer = encoding.Encoder()
    nodes = {name: packer.encode(tree, paths.component(name)) for name, tree in trees.items()}
    archive.write(path, nodes, packer.arrays)
    for like in (trees, dict.fromkeys(trees, decoding.ANYTHING)):
        with archive.Reader(path) as reader:
            unpacker = decoding.Decoder(reader, mx.cpu(), paths.SharedValues(), None)
            back = {name: unpacker.decode(reader.header[name], paths.component(name), like[name]) for name in trees}
            reader.check_all_read()
        assert bits(back) == bits(trees)
    with np.load(str(path), allow_pickle=False) as file:
        assert all(file[key] is not None for key in file.files)
