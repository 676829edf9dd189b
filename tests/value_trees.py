"""Random values of every kind that a checkpoint can hold."""

import mxnet as mx
import numpy as np
from hypothesis import strategies as st

from multitrainer.checkpoint import archive

DTYPES = st.sampled_from(archive.DTYPES)
ND_DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int32", "int64", "uint8"])
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def filled(dtype, shape, seed):
    """Return an array of random bits."""
    raw = np.random.RandomState(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return (
        np.frombuffer(raw, "uint8").reshape(-1).view("uint8" if dtype == "bool" else dtype).reshape(shape).astype(dtype)
    )


@st.composite
def row_sparse(draw):
    rows = sorted(draw(st.sets(st.integers(0, 5))))
    data = filled("float32", (len(rows), 2), draw(st.integers(0, 99)))
    return mx.nd.sparse.row_sparse_array((data, np.array(rows, "int64")), shape=(6, 2))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False)
    | st.just(float("nan"))  # one bit pattern of nan, for scalars do not keep others
    | st.text(max_size=5)
    | st.floats(width=32, allow_nan=False).map(np.float32)
    | st.integers(-5, 5).map(np.int16)
)


ARRAYS = (
    st.builds(lambda *args: mx.nd.array(filled(*args), dtype=args[0]), ND_DTYPES, SHAPES, st.integers(0, 99))
    | st.builds(filled, DTYPES, SHAPES, st.integers(0, 99))
    | row_sparse()
)


TREES = st.recursive(
    SCALARS | ARRAYS,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9) | st.none(), parts, max_size=3)
    ),
    max_leaves=10,
)
