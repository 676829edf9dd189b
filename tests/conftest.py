# isort: off
import multitrainer  # noqa: F401  first: on Python 3.12 it is what makes `import mxnet` work
import mxnet as mx

# isort: on
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)
    np.random.seed(0)
