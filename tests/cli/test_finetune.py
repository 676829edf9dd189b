from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import mxnet as mx
import numpy as np
import pytest

from cli_support import MODEL, rows_of, start
from support import PATIENCE

pytest.importorskip("gluoncv")

from multitrainer.cli import main
from multitrainer.cli.data import batches
from multitrainer.cli.training import network

FILES = ["best.params", "checkpoint", "classes.txt", "finetune.png", "last.params", "metrics.jsonl"]


def _run(*arguments):
    return main(["finetune", *map(str, arguments)])


def _loaded(path):
    return {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}


def test_a_run_from_scratch(images, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert _run("--data", images, "--model", MODEL, "--epochs", 3, "--batch-size", 8, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    rows = rows_of(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["learning_rates"] == {"net": 0.01}
    for row in rows:
        assert 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["val_accuracy"] <= 1
        assert row["train_loss"] > 0
        assert row["seconds"] > 0
        assert row["images_per_second"] > 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert (out / "classes.txt").read_text().split() == ["blue", "green", "red"]
    assert (out / "finetune.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "from scratch" in printed
    assert "epoch 3/3" in printed


def test_the_files_hold_what_was_trained(images, tmp_path):
    assert _run("--data", images, "--model", MODEL, "--epochs", 2, "--batch-size", 8, "--out", tmp_path) == 0
    net, _ = network.build(MODEL, 3)
    net.load_parameters(str(tmp_path / "last.params"))
    assert np.isfinite(net(mx.nd.ones((1, 3, 32, 32))).asnumpy()).all()
    first, second = (row["val_accuracy"] for row in rows_of(tmp_path))
    best, last = _loaded(tmp_path / "best.params"), _loaded(tmp_path / "last.params")
    assert all(np.array_equal(best[name], last[name]) for name in last) == (second > first)


def test_from_given_weights_the_backbone_trains_slower(images, weights, tmp_path, capsys):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 1, "--batch-size", 8)
    assert _run(*arguments, "--lr", 0.02, "--out", tmp_path) == 0
    assert rows_of(tmp_path)[0]["learning_rates"] == pytest.approx({"backbone": 0.002, "output": 0.02})
    assert "with a new output" in capsys.readouterr().out


def test_what_is_frozen_stays_bit_for_bit(images, weights, tmp_path):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 2, "--batch-size", 8)
    assert _run(*arguments, "--freeze", "features", "--out", tmp_path) == 0
    before, after = _loaded(weights), _loaded(tmp_path / "last.params")
    for name, value in after.items():
        if name.startswith("features."):
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert rows_of(tmp_path)[-1]["learning_rates"] == {"net": 0.01, "features": 0.0}


def test_multipliers_reach_the_parts_they_name(images, weights, tmp_path):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 1, "--batch-size", 8)
    parts = ("--lr-mult", "features=0.5", "--lr-mult", "features.3.0=0.25", "--freeze", "features.0", "--lr", 0.1)
    assert _run(*arguments, *parts, "--optimizer", "nag", "--wd", 0, "--out", tmp_path) == 0
    wanted = {"net": 0.1, "features": 0.05, "features.3.0": 0.025, "features.0": 0.0}
    assert rows_of(tmp_path)[0]["learning_rates"] == pytest.approx(wanted)
    before, after = _loaded(weights), _loaded(tmp_path / "last.params")
    np.testing.assert_array_equal(before["features.0.weight"], after["features.0.weight"])
    assert not np.array_equal(before["features.3.0.body.0.weight"], after["features.3.0.body.0.weight"])


def test_a_part_refines_what_contains_it_whichever_option_named_it(images, tmp_path, capsys):
    options = ["--freeze", "features", "--lr-mult", "features.3=0.5", "--epochs", 1, "--out", tmp_path]
    assert _run("--data", images, "--model", MODEL, *options) == 0
    table = {line.split()[0]: line.split()[3] for line in capsys.readouterr().out.splitlines() if "0.0001" in line}
    assert table == {"net": "1", "features": "0", "features.3": "0.5"}


def test_a_seed_makes_a_run_repeatable(images, tmp_path):
    def run(name, *arguments):
        common = ("--data", images, "--model", MODEL, "--epochs", 2, "--batch-size", 8, "--out", tmp_path / name)
        assert _run(*common, *arguments) == 0
        return [(row["train_loss"], row["val_accuracy"]) for row in rows_of(tmp_path / name)]

    first = run("a", "--seed", 5)
    assert first == run("b", "--seed", 5)
    assert first == run("c", "--seed", 5, "--workers", 2)
    assert first != run("d", "--seed", 6)


@pytest.mark.parametrize("option", ["--data", "--out", "--params"])
def test_a_name_that_is_not_in_utf8_is_refused(option, capsys):
    assert _run(option, os.fsdecode(b"d\xe9")) == 2
    assert f"argument {option}: expected a name in UTF-8, got 'd\\udce9'" in capsys.readouterr().err


def test_no_option_is_taken_for_another(capsys):
    assert _run("--over") == 2
    assert "unrecognized arguments: --over" in capsys.readouterr().err


def test_the_command_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "multitrainer.cli", "finetune", "--lr", "-1"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=PATIENCE,
    )
    assert (done.returncode, b"expected a number above 0" in done.stderr) == (2, True)


def test_a_batch_is_divided_among_devices(images, tmp_path):
    net_of = {}
    for name, contexts in (("one", "cpu"), ("two", "cpu(0),cpu(1)")):
        out = tmp_path / name
        arguments = ("--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 9, "--ctx", contexts)
        assert _run(*arguments, "--out", out) == 0
        net_of[name] = rows_of(out)[0]
    # BatchNorm sees half a batch on each of two devices, so close is all there is to ask for.
    assert net_of["two"]["train_loss"] == pytest.approx(net_of["one"]["train_loss"], rel=0.5)


def test_the_batch_is_no_larger_than_the_data(images, tmp_path, capsys):
    assert _run("--data", images, "--model", MODEL, "--epochs", 1, "--out", tmp_path) == 0
    assert "batches of 24, not 32" in capsys.readouterr().out


WRONG = {
    "model": (["--model", "resnet50v1b"], "closest: .*resnet50_v1b"),
    "path of --freeze": (["--freeze", "feature"], "the network has features, output"),
    "path of --lr-mult": (["--lr-mult", "features.77=2"], "features has 0, 1, 2, 3, 4"),
    "multiplier": (["--lr-mult", "features=fast"], "expected PATH=MULT"),
    "no multiplier": (["--lr-mult", "features"], "expected PATH=MULT"),
    "negative multiplier": (["--lr-mult", "features=-1"], "finite number >= 0"),
    "nan multiplier": (["--lr-mult", "features=nan"], "finite number >= 0"),
    "twice": (["--lr-mult", "features=1", "--freeze", "features"], "features: given more than once"),
    "all frozen": (["--freeze", "features", "--freeze", "output"], "every part of the network is frozen"),
    "optimizer": (["--optimizer", "sdg"], "closest: .*sgd"),
    "multiplier without a rate": (["--optimizer", "adadelta", "--lr-mult", "features=0.5"], "adadelta|AdaDelta"),
    "ctx": (["--ctx", "tpu"], r"expected cpu, gpu\(0\)"),
    "gpu": (["--ctx", "gpu(63)"], r"no gpu\(63\).*--ctx cpu"),
    "device twice": (["--ctx", "cpu,cpu(0)"], "named twice"),
    "more devices than images": (["--ctx", "cpu(0),cpu(1),cpu(2)", "--batch-size", "2"], "raise --batch-size"),
    "params": (["--params", "nowhere.params"], "nowhere.params cannot be read"),
    "lr": (["--lr", "0"], "--lr: expected a number above 0"),
    "wd": (["--wd", "-1"], "--wd: expected a number of at least 0"),
    "epochs": (["--epochs", "many"], "--epochs: invalid"),
    "unknown option": (["--lrmult", "features=1"], "unrecognized arguments"),
}


def _one_line(capsys):
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_is_one_line(images, tmp_path, capsys, what):
    arguments, answer = WRONG[what]
    model = [] if "--model" in arguments else ["--model", MODEL]
    assert _run("--data", images, "--out", tmp_path / "out", "--epochs", 1, *model, *arguments) == 2
    assert re.search(answer, _one_line(capsys))
    out = tmp_path / "out"
    assert not out.exists() or list(out.iterdir()) == []


def test_pretrained_and_params_exclude_each_other(images, capsys):
    assert _run("--data", images, "--pretrained", "--params", "x") == 2
    assert "not allowed with" in _one_line(capsys)


def test_weights_that_nobody_publishes(images, tmp_path, capsys):
    assert _run("--data", images, "--model", "cifar_resnext29_32x4d", "--pretrained", "--out", tmp_path) == 2
    assert "publishes no weights" in _one_line(capsys)


def test_no_network(images, tmp_path, capsys, monkeypatch):
    # A port where nobody listens, in place of the real store: the loading code is GluonCV's own.
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9/")
    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    assert _run("--data", images, "--model", MODEL, "--pretrained", "--out", tmp_path / "out") == 2
    message = _one_line(capsys)
    assert "cannot be downloaded" in message
    assert "--params" in message


def test_params_of_another_network(images, weights, tmp_path, capsys):
    arguments = ("--data", images, "--model", "cifar_resnet56_v1", "--params", weights, "--out", tmp_path)
    assert _run(*arguments) == 2
    assert "does not fit this --model" in _one_line(capsys)


def test_workers_that_do_not_answer(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batches, "TIMEOUT", 1)
    monkeypatch.setattr(batches, "_augmentation", lambda size: lambda image: time.sleep(30))
    assert _run("--data", images, "--model", MODEL, "--workers", 1, "--out", tmp_path) == 2
    assert "use fewer --workers" in _one_line(capsys)


def test_divergence_is_said(images, tmp_path, capsys):
    arguments = ("--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 9, "--lr", 1e30)
    assert _run(*arguments, "--out", tmp_path) == 2
    assert "training diverged" in _one_line(capsys)


@pytest.mark.parametrize(
    "option", ["--model=x", "--pretrained", "--params=x", "--lr-mult=a=1", "--freeze=a", "--workers=1"]
)
def test_the_digits_take_no_model_of_yours(capsys, option):
    assert _run(option) == 2
    assert "can only be used with --data" in _one_line(capsys)


def test_out_that_is_a_file(images, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert _run("--data", images, "--model", MODEL, "--out", tmp_path / "out") == 2
    assert "choose a folder that can be written to" in _one_line(capsys)


def test_without_the_extra_it_is_named(images):
    hidden = "import sys; sys.modules['gluoncv'] = None;"
    with start("--data", images, prelude=hidden) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "pip install 'multitrainer[finetune]'" in error
    assert error.count("\n") == 1


def test_help_needs_no_extra():
    hidden = "import sys; sys.modules.update(gluoncv=None, sklearn=None, tqdm=None, matplotlib=None);"
    with start("--help", prelude=hidden) as process:
        output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "--lr-mult PATH=MULT" in output
    assert error == ""


def test_no_subcommand(capsys):
    assert main([]) == 2
    assert "COMMAND" in _one_line(capsys)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_what_there_is(images, tmp_path, workers):
    arguments = ("--data", images, "--model", MODEL, "--epochs", 10000, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, "--workers", workers, start_new_session=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("epoch 1/" in line for line in lines)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert error.count("\n") == 1, error
    assert "interrupted" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    net, _ = network.build(MODEL, 3)
    for name in ("best.params", "last.params"):
        net.load_parameters(str(tmp_path / name))
    assert rows_of(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_leaves_no_half_a_file(images, tmp_path):
    # The limit stands in for the disk: what goes beyond it fails to be written. The network takes 1.1 MB.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000));"
    arguments = ("--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, prelude=limited, stdin=subprocess.DEVNULL) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, error
    assert error.count("\n") == 1, error
    assert "cannot write" in error
    assert "last.params" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "classes.txt", "metrics.jsonl"]
