"""MXNet can be imported with any NumPy that it runs on, and NumPy stays as it was."""

import sys

from support import run_python


def test_import_leaves_numpy_as_it_was():
    done = run_python(
        """
        import numpy
        before = set(vars(numpy))
        import multitrainer, mxnet
        print("bool" in set(vars(numpy)) - before, mxnet.nd.ones(2).sum().asscalar())
        """
    )
    assert done.stdout == "False 2.0\n", done.stderr


def test_a_numpy_without_bool_gets_one_for_the_import():
    """NumPy 1.24 to 1.26 has none, nor has 1.23 without its deprecated names."""
    without = "import numpy; getattr(numpy, '__deprecated_attrs__', {}).pop('bool', None)\n"
    alone = run_python(without + "import mxnet")
    assert "has no attribute 'bool'" in alone.stderr
    done = run_python(without + "import multitrainer, mxnet; print('bool' in vars(numpy), mxnet.__version__)")
    assert done.stdout.startswith("False 1."), done.stderr


def test_an_unsuitable_numpy_raises_an_error_that_names_the_one_to_install():
    """NumPy 2 has no numpy.PZERO, which MXNet reads while it is imported."""
    done = run_python(
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
