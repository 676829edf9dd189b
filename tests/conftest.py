# isort: off
import multitrainer  # noqa: F401  first: on Python 3.12 it is what makes `import mxnet` work
import mxnet as mx

# isort: on
import collections
import gc

import numpy as np
import pytest

from cli_support import MODEL, finetune, start, write_images


def pytest_addoption(parser):
    group = parser.getgroup("oracle", "random programs (tests/oracle)")
    group.addoption("--long", type=int, default=300, metavar="N", help="how many random programs to run (300)")
    group.addoption("--oracle-first", type=int, default=0, metavar="N", help="the seed of the first one (0)")
    group.addoption("--oracle-seed", type=int, metavar="N", help="run the program of this seed alone")


def pytest_terminal_summary(terminalreporter):
    totals = {"programs": 0, "differences": 0}
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            totals[name] = totals.get(name, 0) + value if report.when == "call" else totals.get(name, 0)
    if totals["programs"]:
        terminalreporter.write_line("{programs} random programs, {differences} differed".format(**totals))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what MXNet and the tests collect later need not look at thousands of tests again


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


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of three classes, told apart by their colour, ten images each."""
    return write_images(tmp_path_factory.mktemp("images") / "colours", 10)


@pytest.fixture(scope="session")
def finished_run(images, tmp_path_factory):
    """The folder of a run of two epochs on those images. Tests must not write there."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert finetune(images, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of `MODEL` for another number of classes than those images have."""
    from multitrainer_cli.training import network

    mx.random.seed(0)
    net, _ = network.build(MODEL, 7)
    network.initialize(net, [mx.cpu()], MODEL, 7)
    path = tmp_path_factory.mktemp("weights") / "seven.params"
    net.save_parameters(str(path))
    return path
