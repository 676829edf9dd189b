# isort: off
import os

# One thread, as in processes that tests start: the command would take all cores, and other numbers have other bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import multitrainer  # noqa: F401  first: on Python 3.12 it is what makes `import mxnet` work
import mxnet as mx

# isort: on
import collections
import fcntl
import gc
import os
import shutil

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
def make_once(tmp_path_factory):
    """Return a function that makes a folder in one of the processes of pytest-xdist; the others wait, and read it.

    ``make_once(name, make)`` calls ``make(folder)`` and returns the folder and the text that ``make`` returned.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def find_or_make(name, make):
        folder, answer = root / name, root / f"{name}.txt"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not answer.exists():
                shutil.rmtree(str(folder), ignore_errors=True)  # of a process that failed
                folder.mkdir()
                answer.write_text(make(folder) or "")
        return folder, answer.read_text()

    return find_or_make


@pytest.fixture(scope="session")
def embedded_default(make_once):
    """`multitrainer finetune` as it comes, run once for all tests: what it printed, and the folder it left."""

    def make(out):
        with start("--out", out) as process:
            printed, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        return printed

    return collections.namedtuple("Run", "out printed")(*make_once("digits", make))


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of three classes, told apart by their colour, ten images each."""
    return write_images(tmp_path_factory.mktemp("images") / "colours", 10)


@pytest.fixture(scope="session")
def finished_run(images, make_once):
    """The folder of a run of two epochs on those images. Tests must not write there."""

    def make(folder):
        assert finetune(images, "--out", folder / "run") == 0

    return make_once("finished", make)[0] / "run"


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
