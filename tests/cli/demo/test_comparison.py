"""The command without `--data`: it trains a source once, then four regimes that it compares."""

from __future__ import annotations

import collections
import contextlib
import io
import re
import shutil
import signal

import mxnet as mx
import numpy as np
import pytest

from cli_support import arrays, contents, default_sigint, rows_of, start, without_times
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli import main
from multitrainer_cli.arguments.defaults import DEMO_EPOCHS as EPOCHS
from multitrainer_cli.demo import comparison, digits
from multitrainer_cli.demo.comparison import DRAWS
from multitrainer_cli.demo.digits import CLASSES
from multitrainer_cli.demo.regimes import REGIMES, build_network
from multitrainer_cli.runs.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def finetune(tmp_path_factory):
    """Return a function that compares the regimes on one draw, measured at the last two epochs of three.

    The weights of the source are there already; they have not learned anything.
    """
    folder = tmp_path_factory.mktemp("comparison")
    mx.random.seed(0)
    build_network(CLASSES, [mx.cpu()])[0].save_parameters(str(folder / comparison.SOURCE_FILE))

    def run(name, *options):
        out = folder / name
        out.mkdir(exist_ok=True)
        shutil.copy(str(folder / comparison.SOURCE_FILE), str(out))
        return out, main(
            ["finetune", "--epochs", "3", "--seed", "4", "--batch-size", "25", "--out", str(out), *options]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 1)
        patch.setattr(comparison, "MEASURE_EVERY", 2)
        patch.setattr(comparison, "UNSEEN", 4)
        yield run


@pytest.fixture(scope="module")
def whole(finetune):
    """A whole run: what it printed, and the folder that it wrote."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        out, status = finetune("whole")
    assert status == 0
    return collections.namedtuple("Run", "out printed")(out, printed.getvalue())


def test_every_regime_is_trained_and_reported(whole):
    rows = rows_of(whole.out)
    assert [(row["regime"], row["seed"], row["epoch"]) for row in rows] == [
        (regime.name, 4, epoch) for regime in REGIMES for epoch in (1, 2, 3)
    ]
    assert [row["val_accuracy"] is None for row in rows] == [True, False, False] * 4
    for row, regime in zip(rows[::3], REGIMES):
        assert row["learning_rates"] == {"backbone": 0.05 * regime.backbone, "output": 0.05}
    assert "0 to 4: weights of an earlier run" in whole.printed
    assert "5 to 9: 10 images of each to train on, 4 to measure on, 1 draws" in whole.printed
    assert "accuracy on 20 unseen images after 3 epochs" in whole.printed
    for regime, row in zip(REGIMES, rows[2::3]):
        accuracy = f"{100 * row['val_accuracy']:.1f}"
        assert f"\n{regime.name}\n" in whole.printed  # before its table of groups
        assert re.search(rf"\n{regime.name} +{accuracy} % +0\.0 .* {accuracy}\n", whole.printed)


def test_the_files_are_the_best_and_the_last_network(whole):
    files = [
        "best.params",
        "checkpoint",
        "comparison.png",
        "digits-source.params",
        "last.params",
        "metrics.jsonl",
        "run.json",
    ]
    assert sorted(path.name for path in whole.out.iterdir()) == files
    kept = sorted(path.name for path in (whole.out / "checkpoint").glob("0*"))
    assert kept == ["000012.json", "000012.npz", "000012.params"]
    final = [row["val_accuracy"] for row in rows_of(whole.out)[2::3]]
    unseen = digits.load(CLASSES).draw(10, 4, 4)[1]
    for name, expected in (("best.params", max(final)), ("last.params", final[-1])):
        net, _ = build_network(CLASSES, [mx.cpu()])
        net.load_parameters(str(whole.out / name))
        scores = net(mx.nd.array(unseen.images)).asnumpy()
        assert (scores.argmax(axis=1) == unseen.labels).mean() == pytest.approx(expected, abs=1e-6), name
    last, source = (arrays(whole.out / name) for name in ("last.params", comparison.SOURCE_FILE))
    backbone = [name for name in source if name.startswith("features.")]
    assert backbone
    for name in backbone:  # which the last regime freezes
        np.testing.assert_array_equal(last[name], source[name], err_msg=name)


def test_a_run_stopped_by_ctrl_c_is_resumed_to_the_same_end(finetune, whole, monkeypatch, capsys):
    saved = []

    def save_then_interrupt(*args, save=Checkpoints.save):
        save(*args)
        saved.append(args)
        if len(saved) == 3:
            press()

    with monkeypatch.context() as patch, default_sigint() as press:
        patch.setattr(Checkpoints, "save", save_then_interrupt)
        out, status = finetune("parts")
    assert status == 130
    assert f"interrupted; what was measured is in {out}" in capsys.readouterr().err
    assert [row["epoch"] for row in rows_of(out)] == [1, 2, 3, 1, 2]
    assert finetune("parts", "--resume")[1] == 0
    assert "going on after 5 epochs" in capsys.readouterr().out
    assert without_times(rows_of(out)) == without_times(rows_of(whole.out))
    for name in ("best.params", "last.params"):
        one, other = arrays(whole.out / name), arrays(out / name)
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key], err_msg=key)


def test_a_file_that_is_not_a_source_is_named(tmp_path, capsys):
    (tmp_path / "digits-source.params").write_text("something else")
    assert main(["finetune", "--epochs", "1", "--out", str(tmp_path)]) == 2
    assert "was not written by this command; delete it and run again" in capsys.readouterr().err


@pytest.mark.slow
def test_without_options_four_regimes_are_compared(embedded_default):
    out = embedded_default.out
    rows = rows_of(out)
    assert len(rows) == 4 * DRAWS * EPOCHS
    losses = {regime.name: [row["train_loss"] for row in rows if row["regime"] == regime.name] for regime in REGIMES}
    assert all(loss[EPOCHS - 1] < loss[0] for loss in losses.values()), losses
    assert {row["learning_rates"]["backbone"] for row in rows if row["regime"] == "backbone frozen"} == {0.0}
    files = [
        "best.params",
        "checkpoint",
        "comparison.png",
        "digits-source.params",
        "last.params",
        "metrics.jsonl",
        "run.json",
    ]
    assert sorted(path.name for path in out.iterdir()) == files
    for regime in REGIMES:
        assert embedded_default.printed.count(f"\n{regime.name}") == 2  # its group table, its line of the comparison


@pytest.mark.slow
def test_the_source_is_trained_once(tmp_path, capsys):
    assert main(["finetune", "--out", str(tmp_path), "--epochs", "1"]) == 0
    made = (tmp_path / "digits-source.params").stat().st_mtime_ns
    assert main(["finetune", "--out", str(tmp_path), "--epochs", "1", "--overwrite"]) == 0
    assert (tmp_path / "digits-source.params").stat().st_mtime_ns == made
    assert "weights of an earlier run" in capsys.readouterr().out


@pytest.mark.slow
def test_by_default_a_second_run_takes_the_next_free_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--epochs", "1"]) == 0
    before = contents(tmp_path)
    assert main(["finetune", "--epochs", "1"]) == 0
    assert "this run goes to runs/finetune-2\n" in capsys.readouterr().out
    assert main(["finetune", "--epochs", "1", "--out", "runs/finetune"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * len(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "digits-source.params", "best.params", "checkpoint/000240.npz", "run.json"]
)
def test_an_incomplete_run_is_not_resumed(embedded_default, tmp_path, capsys, name):
    out = tmp_path / "out"
    shutil.copytree(str(embedded_default.out), str(out))
    (out / name).unlink()
    before = contents(out)
    assert main(["finetune", "--out", str(out), "--resume"]) == 2
    assert f"is incomplete: there is no {name}" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.slow
def test_ctrl_c_reports_the_regimes_that_have_ended(tmp_path):
    with start("--out", tmp_path, "--epochs", 2) as process:
        lines = iter(process.stdout.readline, "")
        assert any("backbone at 0.1" in line for line in lines)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "from scratch" in output
    assert "comparison.png" in output
