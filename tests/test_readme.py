"""The README's Python runs, from the first block to the last, in one process as a reader would paste it.

GluonCV's published weights cannot be downloaded in a test: ``pretrained=True`` becomes the same network with random
weights. Nothing else is changed.
"""

import pathlib
import re

import mxnet as mx
import pytest
from gluoncv import model_zoo

from multitrainer.cli import main
from support import moved, snapshot

README = pathlib.Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def namespace(monkeypatch, tmp_path):
    build = model_zoo.get_model

    def with_random_weights(name, pretrained=False, **kwargs):
        net = build(name, **kwargs)
        if pretrained:
            net.initialize(mx.init.Xavier())
        return net

    monkeypatch.setattr(model_zoo, "get_model", with_random_weights)
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in blocks("python"):
        exec(compile(code, str(README), "exec"), scope)
    return scope


def test_python_blocks_run(namespace):
    assert len(blocks("python")) >= 4
    net, trainer, step = namespace["net"], namespace["trainer"], namespace["train_step"]
    assert trainer.learning_rates == {"features": 0.0, "output": 0.01}
    x, y = mx.nd.random.normal(shape=(4, 3, 64, 64)), mx.nd.array([0, 1, 2, 3])
    before = snapshot(net)
    step(x, y)
    assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())


def test_what_the_readme_shows_is_what_is_printed(namespace):
    shown = [block for block in blocks("text") if block.startswith("group")]
    assert shown == [namespace["table"] + "\n"]
    shown = [block for block in blocks("text") if "* lr_mult" in block]
    assert shown == [namespace["reason"] + "\n"]
    assert pathlib.Path("rates.png").exists()
    assert list(pathlib.Path("runs").glob("events*"))


def test_commands_are_those_that_ci_runs():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox" in commands
    assert (
        "python3 -m venv .venv && .venv/bin/pip install -e '.[finetune]' && .venv/bin/multitrainer finetune" in commands
    )
    assert commands[1] in (README.parent / ".ci" / "run").read_text()


def test_files_that_are_named_exist():
    for path in re.findall(r"`((?:tests|benchmarks|src)/[\w/.]+)`", README.read_text()):
        assert (README.parent / path).exists(), path


def test_groups_prints_what_the_readme_shows(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (command,) = [block.split() for block in blocks("sh") if block.startswith("multitrainer groups")]
    (shown,) = [block for block in blocks("text") if "unfreezes stage4" in block]
    assert main(command[1:]) == 0
    assert capsys.readouterr().out == shown
    assert pathlib.Path("groups.png").exists()
