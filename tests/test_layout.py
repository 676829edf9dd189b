"""The layout of the sources: imports point downwards only, and every module has its tests beside its name."""

import ast
import pathlib

import pytest

import multitrainer
import multitrainer_cli

ROOT = pathlib.Path(multitrainer.__file__).parent
COMMAND = pathlib.Path(multitrainer_cli.__file__).parent
TESTS = pathlib.Path(__file__).parent
# Each room may import what stands before it.
ROOMS = [
    *("importing", "_mxnet", "cores", "groups", "optimizers", "symbolic", "freezing", "multipliers", "gradients"),
    *("fused", "checkpoint", "recipes", "images", "pretrained", "report", "plotting", "averages", "adding", "trainer"),
    *("weight_average", "rate_search", "saved_run", "", "horovod"),
]


def imports(path, root=ROOT):
    """Yield the module of its package that each relative import of a file names, as a tuple of its parts."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            for alias in node.names:
                inner = root.joinpath(*base, alias.name)
                yield (*base, alias.name) if inner.is_dir() or inner.with_suffix(".py").exists() else base


def room(parts):
    return parts[0] if parts and parts[0] in ROOMS else ""


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
MODULES_OF_COMMAND = sorted(path for path in COMMAND.rglob("*.py") if path != COMMAND / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = room(path.relative_to(ROOT).with_suffix("").parts)
    above = {room(parts) for parts in imports(path) if ROOMS.index(room(parts)) > ROOMS.index(here)}
    assert not above


def test_the_library_does_not_import_the_command():
    assert not [path for path in MODULES if "multitrainer_cli" in path.read_text()]


@pytest.mark.parametrize(("root", "modules"), [(ROOT, MODULES), (COMMAND, MODULES_OF_COMMAND)], ids=["library", "cli"])
def test_modules_do_not_import_each_other(root, modules):
    graph = {
        path: {root.joinpath(*parts).with_suffix(".py") for parts in imports(path, root)} & set(modules)
        for path in modules
    }
    while graph:
        leaves = [path for path, imported in graph.items() if not imported & graph.keys()]
        assert leaves, f"a circle among {sorted(str(path.relative_to(root)) for path in graph)}"
        for path in leaves:
            del graph[path]


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not path.name.startswith("__")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_module_has_its_tests_beside_its_name(path):
    where = path.relative_to(ROOT)
    tests = TESTS / "distributed" if where.name == "horovod.py" else TESTS / where.parent
    assert (tests / f"test_{path.name}").exists()


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES_OF_COMMAND if not path.name.startswith("__") and path.parent.name != "arguments"],
    ids=lambda path: str(path.relative_to(COMMAND)),
)
def test_a_module_of_the_command_has_its_tests_beside_its_name(path):
    assert (TESTS / "cli" / path.relative_to(COMMAND).parent / f"test_{path.name}").exists()
