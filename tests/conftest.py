# isort: off
import multitrainer  # noqa: F401  first: on Python 3.12 it is what makes `import mxnet` work
import mxnet as mx

# isort: on
import collections

import numpy as np
import pytest

from cli_helpers import start


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def embedded_default(tmp_path_factory):
    """`multitrainer finetune` as it comes, run once for all tests: what it printed, and the folder it left."""
    out = tmp_path_factory.mktemp("digits")
    with start("--out", out) as process:
        printed, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return collections.namedtuple("Run", "out printed")(out, printed)
