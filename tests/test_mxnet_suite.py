"""MultiLRTrainer is a drop-in: MXNet's own tests of Trainer pass with the class swapped.

They are not part of MXNet's wheel. To run them, set MXNET_SOURCE to a checkout of apache/mxnet at tag 1.9.1:
``git clone --branch 1.9.1 --depth 1 https://github.com/apache/mxnet``.
"""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from support import PATIENCE

SOURCE = os.environ.get("MXNET_SOURCE")

# The tests need nose, which Python 3.10 and later cannot import; this replaces the names that they use.
NOSE = """
import functools, pytest

def raises(*errors):
    def decorate(test):
        @functools.wraps(test)
        def run():
            with pytest.raises(errors):
                test()
        return run
    return decorate

def assert_raises(error, call, *args, **kwargs):
    with pytest.raises(error):
        call(*args, **kwargs)

def make_decorator(test):
    return functools.wraps(test)
"""

SWAP = """
import multitrainer
from mxnet import gluon
gluon.Trainer = multitrainer.MultiLRTrainer
"""


@pytest.mark.skipif(not SOURCE, reason="MXNET_SOURCE is not set: MXNet's own tests come with its source only")
def test_mxnet_tests_of_trainer_pass_with_the_class_swapped(tmp_path):
    tests = pathlib.Path(SOURCE or "", "tests", "python", "unittest")
    (tmp_path / "nose").mkdir()
    (tmp_path / "nose" / "__init__.py").write_text("from . import tools\n")
    (tmp_path / "nose" / "tools.py").write_text(textwrap.dedent(NOSE))
    (tmp_path / "conftest.py").write_text(textwrap.dedent(SWAP))
    (tmp_path / "test_swapped.py").write_text((tests / "test_gluon_trainer.py").read_text())
    paths = [str(tmp_path), str(tests), str(tests.parent / "common"), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_swapped.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout
