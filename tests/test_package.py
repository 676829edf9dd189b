"""The package as it is installed: public names, extras and types."""

import sys

import multitrainer
from support import run_python


def test_public_names_are_sorted_and_exist():
    assert multitrainer.__all__ == sorted(multitrainer.__all__)
    assert all(hasattr(multitrainer, name) for name in multitrainer.__all__)
    assert multitrainer.__version__ == "0.1.0"


def test_the_core_works_without_any_extra():
    done = run_python(
        """
        import sys
        extras = {"gluoncv", "sklearn", "tqdm", "matplotlib", "horovod", "cv2", "PIL"}
        for name in extras:
            sys.modules[name] = None  # any import of it fails, as if it were not installed
        import multitrainer
        print(sorted(name for name in sys.modules if name.startswith("multitrainer_cli")))
        """
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_package_is_typed():
    from importlib import resources

    if sys.version_info >= (3, 9):
        assert (resources.files("multitrainer") / "py.typed").is_file()
    else:
        assert resources.is_resource("multitrainer", "py.typed")
