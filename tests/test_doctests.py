"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import multitrainer

# All modules but the one that needs an extra, and the library of the kernels, which Python could take for a module.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(multitrainer.__path__, "multitrainer.")
    if not module.name.startswith(("multitrainer.horovod", "multitrainer.fused._kernels"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", multitrainer.__all__)
def test_every_public_name_has_an_example(name):
    public = getattr(multitrainer, name)
    examples = [test for test in doctest.DocTestFinder().find(public, name) if test.examples]
    assert examples, f"{name} has no example"
