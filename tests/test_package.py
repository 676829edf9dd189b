"""The package as it is installed: public names, extras and types."""

import ast
import pathlib
import pickle
import pydoc
import sys

import pytest

import multitrainer
from support import run_python


def test_public_names_are_sorted_and_exist():
    assert multitrainer.__all__ == sorted(multitrainer.__all__)
    assert all(hasattr(multitrainer, name) for name in multitrainer.__all__)
    assert multitrainer.__version__ == "0.1.0"


def test_what_is_imported_later_is_what_type_checkers_see():
    tree = ast.parse(pathlib.Path(multitrainer.__file__).read_text())
    tests = {ast.dump(node.test): node for node in tree.body if isinstance(node, ast.If)}
    block = tests[ast.dump(ast.parse("TYPE_CHECKING", mode="eval").body)]
    hidden = tests[ast.dump(ast.parse("not TYPE_CHECKING", mode="eval").body)]
    assert [node.name for node in hidden.body] == ["__getattr__"]  # with which a checker would accept any name
    assert "__getattr__" not in [getattr(node, "name", None) for node in tree.body]
    seen = {name.name: getattr(multitrainer, name.name) for node in block.body for name in node.names}
    assert seen.keys() == multitrainer._MODULES.keys() | {"symbolic"}
    assert seen.keys() | {"use_all_cores"} == {*multitrainer.__all__, "symbolic"}
    for node in block.body:
        for name in node.names:
            where = __import__(f"multitrainer.{node.module}" if node.module else "multitrainer", fromlist=[name.name])
            assert seen[name.name] is getattr(where, name.name)


def test_mxnet_is_imported_at_the_first_use_of_a_name():
    done = run_python(
        """
        import sys
        import multitrainer
        print({"mxnet", "numpy"} & sys.modules.keys(), "MultiLRTrainer" in dir(multitrainer))
        assert not hasattr(multitrainer, "horovod")
        assert not hasattr(multitrainer, "no_such_name") and not hasattr(multitrainer, "__wrapped__")
        print("mxnet" in sys.modules)
        from multitrainer import *
        print(MultiLRTrainer.__module__, multitrainer.symbolic.__name__, multitrainer.checkpoint.__name__)
        """
    )
    assert done.stdout == ("set() True\nFalse\nmultitrainer.trainer multitrainer.symbolic multitrainer.checkpoint\n"), (
        done.stderr
    )


def test_the_package_is_as_one_that_imports_all_names_at_once():
    assert "class MultiLRTrainer" in pydoc.render_doc(multitrainer, renderer=pydoc.plaintext)
    for name in multitrainer.__all__:
        assert pickle.loads(pickle.dumps(getattr(multitrainer, name))) is getattr(multitrainer, name)
    with pytest.raises(AttributeError, match="module 'multitrainer' has no attribute 'MultiTrainer'"):
        _ = multitrainer.MultiTrainer
    with pytest.raises(ImportError, match="cannot import name 'MultiTrainer'"):
        from multitrainer import MultiTrainer  # noqa: F401


@pytest.mark.parametrize("name", ["", ".", "a.b", "optimizers.adamw", "trainer.x", "trainer.x.y", "_x..y"])
def test_a_name_that_is_no_identifier_is_no_attribute(name):
    assert not hasattr(multitrainer, name)


def test_the_core_works_without_any_extra():
    done = run_python(
        """
        import sys
        extras = {"gluoncv", "sklearn", "tqdm", "matplotlib", "horovod", "cv2", "PIL", "joblib"}
        for name in extras:
            sys.modules[name] = None  # any import of it fails, as if it were not installed
        import multitrainer
        for name in multitrainer.__all__:
            getattr(multitrainer, name)
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
