"""The package as it is installed: imports, extras, types, and NumPys that MXNet does or does not run on."""

import subprocess
import sys
import textwrap

import multitrainer
from support import PATIENCE


def python(code, *options):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_public_names():
    assert multitrainer.__all__ == sorted(multitrainer.__all__)
    assert all(hasattr(multitrainer, name) for name in multitrainer.__all__)
    assert multitrainer.__version__ == "0.1.0"


def test_the_core_works_without_any_extra():
    done = python(
        """
        import sys
        extras = {"gluoncv", "sklearn", "tqdm", "matplotlib", "horovod", "cv2", "PIL"}
        for name in extras:
            sys.modules[name] = None  # as if it were not installed: any import of it fails
        import multitrainer
        print(sorted(name for name in sys.modules if name.startswith("multitrainer.cli")))
        """
    )
    assert done.stdout == "[]\n", done.stderr


def test_import_leaves_numpy_as_it_was():
    done = python(
        """
        import numpy
        before = set(vars(numpy))
        import multitrainer, mxnet
        print("bool" in set(vars(numpy)) - before, mxnet.nd.ones(2).sum().asscalar())
        """
    )
    assert done.stdout == "False 2.0\n", done.stderr


def test_a_numpy_without_bool_is_lent_one():
    """NumPy 1.24 to 1.26; 1.23 becomes one when its deprecated names are taken away."""
    without = "import numpy; getattr(numpy, '__deprecated_attrs__', {}).pop('bool', None)\n"
    alone = python(without + "import mxnet")
    assert "has no attribute 'bool'" in alone.stderr
    done = python(without + "import multitrainer, mxnet; print('bool' in vars(numpy), mxnet.__version__)")
    assert done.stdout.startswith("False 1."), done.stderr


def test_a_numpy_that_mxnet_cannot_run_on_is_named():
    """NumPy 2 dropped numpy.PZERO, which MXNet reads while it is imported."""
    done = python(
        """
        import numpy
        numpy.__version__ = "2.1.0"
        del numpy.PZERO
        import multitrainer
        """
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    wanted = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
    assert last.startswith("ImportError: MXNet cannot be imported with NumPy 2.1.0")
    assert last.endswith(f"pip install '{wanted}'")


def test_package_is_typed():
    from importlib import resources

    if sys.version_info >= (3, 9):
        assert (resources.files("multitrainer") / "py.typed").is_file()
    else:
        assert resources.is_resource("multitrainer", "py.typed")
