import mxnet as mx
import numpy as np
import pytest

import multitrainer  # noqa: F401  first: it makes `import mxnet` work on Python 3.12


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)
    np.random.seed(0)
