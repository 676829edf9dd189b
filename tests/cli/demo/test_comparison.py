"""The command without `--data`: it trains a source once, then compares five regimes at three learning rates."""

from __future__ import annotations

import collections
import contextlib
import io
import re
import shutil
import signal

import mxnet as mx
import pytest

from cli_support import contents, rows_of, start
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")
pytest.importorskip("mlxtend")

from multitrainer import load_run
from multitrainer_cli import main
from multitrainer_cli.demo import comparison
from multitrainer_cli.demo.comparison import DRAWS, learning_rates
from multitrainer_cli.demo.datasets import CLASSES
from multitrainer_cli.demo.intervals import Results, conclude, interval
from multitrainer_cli.demo.regimes import REGIMES, build_network
from multitrainer_cli.training.optimizer import parse_optimizer

FILES = ["best.params", "checkpoint", "comparison.png", "metrics.jsonl", "mnist-source.params", "run.json"]
OPTIONS = ["--epochs", "1", "--seed", "4", "--batch-size", "25"]
TIMED = ("seconds_per_epoch", "megabytes")


def write_source(path):
    """Write weights of a source that has not learned anything."""
    mx.random.seed(0)
    build_network(CLASSES, [mx.cpu()])[0].save_parameters(str(path))


@pytest.fixture(scope="module")
def finetune(tmp_path_factory):
    """Return a function that compares the regimes on two draws in one epoch; the weights of the source are there."""
    source = tmp_path_factory.mktemp("source") / comparison.SOURCE_FILE
    write_source(source)

    def run(out, *options):
        shutil.copy(str(source), str(out))
        return main(["finetune", *OPTIONS, "--out", str(out), *options])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 2)
        yield run


@pytest.fixture(scope="module")
def whole(finetune, make_once):
    """A whole run: what it printed, and the folder that it wrote."""

    def make(folder):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert finetune(folder) == 0
        return printed.getvalue()

    return collections.namedtuple("Run", "out printed")(*make_once("comparison", make))


def without_times(rows):
    return [{key: row[key] for key in row if key not in TIMED} for row in rows]


@pytest.mark.slow
def test_every_regime_is_trained_at_every_rate_and_reported(whole):
    rows = rows_of(whole.out)
    rates = [0.01, 0.03, 0.1]
    assert [(row["seed"], row["learning_rate"], row["regime"]) for row in rows] == [
        (seed, rate, name) for seed in (4, 5) for rate in rates for name in REGIMES
    ]
    results = Results(rows, rates)
    assert "MNIST: weights of an earlier run" in whole.printed
    assert "accuracy on 400 unseen images in per cent: mean and 95 % interval, 2 draws" in whole.printed
    for name in REGIMES:
        cells = [str(interval(values)) for values in [*(results.at_rate(name, r) for r in rates), results.tuned(name)]]
        assert re.search(rf"\n{name} +{' +'.join(map(re.escape, cells))} +\d+\.\d\d\n", whole.printed)
    assert whole.printed.endswith(f"{conclude(results)}\n")
    assert sorted(path.name for path in whole.out.iterdir()) == FILES


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_end(finetune, whole, tmp_path, monkeypatch, capsys):
    rows = []

    class KilledError(Exception):
        pass

    def add_or_die(metrics, row, add=comparison.artifacts.MetricsFile.add):
        if len(rows) == 7:
            raise KilledError
        rows.append(row)
        add(metrics, row)

    with monkeypatch.context() as patch:
        patch.setattr(comparison.artifacts.MetricsFile, "add", add_or_die)
        with pytest.raises(KilledError):
            finetune(tmp_path)
    assert len(rows_of(tmp_path)) == 7
    assert finetune(tmp_path, "--resume") == 0
    assert "continuing after 7 " in capsys.readouterr().out
    assert without_times(rows_of(tmp_path)) == without_times(rows_of(whole.out))
    assert (tmp_path / "best.params").read_bytes() == (whole.out / "best.params").read_bytes()


@pytest.mark.slow
def test_a_whole_run_has_nothing_left_to_do(finetune, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(str(whole.out), str(out))
    before = contents(out)
    assert finetune(out, "--resume") == 0
    after = contents(out)
    assert {path.name for path in before if after[path] != before[path]} <= {"comparison.png"}
    assert after.keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "best.params", "mnist-source.params"])
def test_an_incomplete_run_is_not_resumed(whole, tmp_path, capsys, name):
    out = tmp_path / "out"
    shutil.copytree(str(whole.out), str(out))
    (out / name).unlink()
    before = contents(out)
    assert main(["finetune", *OPTIONS, "--out", str(out), "--resume"]) == 2
    assert f"is incomplete: there is no {name}" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "51"], "expected at least one image for each device and at most the 50 images to train on"),
        (["--optimizer", "sdg"], "--optimizer sdg: MXNet has no such optimizer"),
        (["--pretrained"], "--pretrained can only be used with --data DIR"),
        (["--kvstore", "dist_sync"], "without --data, the command runs on one machine"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(tmp_path, capsys, options, message):
    assert main(["finetune", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_rates_surround_the_one_that_is_asked_for():
    assert learning_rates(parse_optimizer(None, None, None)) == [0.01, 0.03, 0.1]
    assert learning_rates(parse_optimizer("sgd", 0.3, None)) == [0.1, 0.3, 1.0]
    assert learning_rates(parse_optimizer("adam", None, None)) == pytest.approx([0.001 / 3, 0.001, 0.01 / 3], rel=1e-3)


@pytest.mark.slow
def test_without_options_five_regimes_are_compared(embedded_default):
    out = embedded_default.out
    rows = rows_of(out)
    assert len(rows) == len(REGIMES) * 3 * DRAWS
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert conclude(Results(rows, [0.01, 0.03, 0.1])) in embedded_default.printed
    learned = [row for row in rows if row["learning_rate"] == 0.01]
    assert all(row["train_loss"] < 2.3 for row in learned)  # log 10, the loss of guessing


@pytest.mark.slow
def test_the_best_network_can_be_loaded(embedded_default):
    net, classes, transform = load_run(embedded_default.out)
    scores = net(transform(mx.nd.zeros((8, 8, 3), dtype="uint8")).expand_dims(0))
    assert classes == list("0123456789")
    assert scores.shape == (1, 10)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(whole, tmp_path):
    shutil.copy(str(whole.out / comparison.SOURCE_FILE), str(tmp_path))
    with start(*OPTIONS, "--out", tmp_path, start_new_session=True) as process:
        while not (tmp_path / "metrics.jsonl").exists() or len(rows_of(tmp_path)) < 40:
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert error.splitlines() == [f"multitrainer: interrupted; what was measured is in {tmp_path}"]
    assert re.search(r"\b\d+ draws", output)
    rows, expected = (without_times(rows_of(out)) for out in (tmp_path, whole.out))
    assert len(rows) < len(REGIMES) * 3 * DRAWS
    assert rows[: len(expected)] == expected


@pytest.mark.slow
def test_by_default_a_second_run_takes_the_next_free_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "DRAWS", 1)
    monkeypatch.setattr(comparison, "FACTORS", (1,))
    monkeypatch.setattr(comparison, "_train_source", lambda settings, _: write_source(settings.source))
    assert main(["finetune", "--epochs", "1"]) == 0
    before = contents(tmp_path)
    assert main(["finetune", "--epochs", "1"]) == 0
    assert "this run goes to runs/digits-2\n" in capsys.readouterr().out
    assert main(["finetune", "--epochs", "1", "--out", "runs/digits"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * len(before)
