"""MXNet can be imported with any NumPy that it runs on, and NumPy stays as it was."""

import pathlib
import sys

import pytest

import multitrainer
from support import run_python

NUMPY = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"


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
    assert last.startswith("ImportError: MXNet cannot be imported with NumPy 2.1.0")
    assert last.endswith(f"pip install '{NUMPY}'")


def refused(tmp_path, name, content, prepare=""):
    """Return the output of an import beside a package of that content that stands in for MXNet."""
    if content is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    done = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {prepare}\nimport multitrainer")
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("prepare", ["", "import mxnet"], ids=["", "imported before"])
def test_mxnet_2_is_refused_in_one_line(tmp_path, prepare):
    """With a package of version 2.0.0 without `mxnet.module`, because the tests run with MXNet 1.9.1."""
    errors = refused(tmp_path, "mxnet", "__version__ = '2.0.0'", prepare)
    last = errors.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: MXNet 2.0.0 is not supported, because it has another Gluon; install 1.9.1: pip"
    )
    assert last.endswith(f"pip install 'mxnet>=1.9.1,<2' '{NUMPY}'")
    assert errors.count("Traceback") == 1


@pytest.mark.parametrize(
    "content",
    [
        "import numpy\nnumpy.no_such_name",
        "from numpy import no_such_name",
        "import no_such_package",
        "raise OSError('libopenblas.so.0: cannot open shared object file')",
    ],
)
def test_mxnet_2_that_cannot_be_imported_is_refused_as_such(tmp_path, content):
    (tmp_path / "mxnet-2.0.0b1.dist-info").mkdir()
    (tmp_path / "mxnet-2.0.0b1.dist-info" / "METADATA").write_text("Name: mxnet\nVersion: 2.0.0b1\n")
    errors = refused(tmp_path, "mxnet", content)
    assert "ImportError: MXNet 2.0.0b1 is not supported" in errors.strip().splitlines()[-1]
    assert errors.count("Traceback") == 1


def test_a_missing_mxnet_is_named_with_what_to_install(tmp_path):
    errors = refused(tmp_path, "", None, "sys.modules['mxnet'] = None")
    assert errors.strip().splitlines()[-1] == (
        f"ModuleNotFoundError: MXNet is not installed: pip install 'mxnet>=1.9.1,<2' '{NUMPY}'"
    )
    assert errors.count("Traceback") == 1


def test_a_missing_numpy_is_named_with_what_to_install(tmp_path):
    errors = refused(tmp_path, "", None, "sys.modules['numpy'] = None")
    assert errors.strip().splitlines()[-1] == (
        f"ModuleNotFoundError: NumPy, which MXNet needs, is not installed: pip install 'mxnet>=1.9.1,<2' '{NUMPY}'"
    )
    assert errors.count("Traceback") == 1


@pytest.mark.parametrize("prepare", ["", "import mxnet"], ids=["", "imported before"])
def test_a_folder_called_mxnet_is_not_mistaken_for_it(tmp_path, prepare):
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "multitrainer").symlink_to(pathlib.Path(multitrainer.__file__).parent)  # MXNet may be beside it
    only_here = f"import numpy; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; {prepare}"
    last = refused(tmp_path, "", None, only_here).strip().splitlines()[-1]
    assert last.startswith(f"ImportError: MXNet is not installed, and the folder {tmp_path / 'mxnet'} has its name")
    assert f"pip install 'mxnet>=1.9.1,<2' '{NUMPY}'" in last


@pytest.mark.parametrize("error", ["OSError('libgfortran.so.4')", "ImportError('no')"])
def test_another_error_of_mxnet_1_is_raised_as_it_is(tmp_path, error):
    last = refused(tmp_path, "mxnet", f"raise {error}").strip().splitlines()[-1]
    assert last == error.replace("('", ": ").replace("')", "")


def test_a_package_that_mxnet_misses_is_named_as_ever(tmp_path):
    errors = refused(tmp_path, "mxnet", "import no_such_package")
    assert errors.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_package'"
