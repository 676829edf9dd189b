"""The command without `--data`: it trains a source once, then four regimes that it compares."""

from __future__ import annotations

import shutil
import signal

import pytest

from cli_support import rows_of, start
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer.cli import main
from multitrainer.cli.demo.comparison import DRAWS, EPOCHS
from multitrainer.cli.demo.regimes import REGIMES


def test_a_source_that_does_not_fit_is_named(tmp_path, capsys):
    (tmp_path / "digits-source.params").write_text("something else")
    assert main(["finetune", "--out", str(tmp_path)]) == 2
    assert "delete it and run again" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_default_compares_four_regimes(embedded_default):
    out = embedded_default.out
    rows = rows_of(out)
    assert len(rows) == 4 * DRAWS * EPOCHS
    losses = {regime.name: [row["train_loss"] for row in rows if row["regime"] == regime.name] for regime in REGIMES}
    assert all(loss[EPOCHS - 1] < loss[0] for loss in losses.values()), losses
    assert {row["learning_rates"]["backbone"] for row in rows if row["regime"] == "backbone frozen"} == {0.0}
    files = ["best.params", "checkpoint", "comparison.png", "digits-source.params", "last.params", "metrics.jsonl"]
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
    "name", ["metrics.jsonl", "digits-source.params", "best.params", "checkpoint/000240.npz", "checkpoint/run.json"]
)
def test_an_incomplete_run_is_not_resumed(embedded_default, tmp_path, capsys, name):
    out = tmp_path / "out"
    shutil.copytree(str(embedded_default.out), str(out))
    (out / name).unlink()
    before = contents(out)
    assert main(["finetune", "--out", str(out), "--resume"]) == 2
    assert f"is incomplete: there is no {name}" in capsys.readouterr().err
    assert contents(out) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_ctrl_c_reports_the_regimes_that_came_to_their_end(tmp_path):
    with start("--out", tmp_path, "--epochs", 2) as process:
        lines = iter(process.stdout.readline, "")
        assert any("backbone at 0.1" in line for line in lines)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "from scratch" in output
    assert "comparison.png" in output
