"""The command without `--data`: it trains a source once, then compares five regimes at three learning rates."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import re
import shutil
import signal
import zlib

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
from multitrainer_cli.runs import run_folder
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
    source = tmp_path_factory.mktemp("source") / run_folder.SOURCE
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


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The folder of a comparison that was stopped before its first row of metrics."""

    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    out = tmp_path / "begun"
    out.mkdir()
    build_network(CLASSES, [mx.cpu()])[0].save_parameters(str(out / run_folder.SOURCE))
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_train_source", stop)
        with pytest.raises(StoppedError):
            main(["finetune", "--seed", "4", "--out", str(out)])
    return out


def resume(out):
    return main(["finetune", "--seed", "4", "--out", str(out), "--resume"])


def write_rows(out, rows):
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
@pytest.mark.parametrize("name", ["metrics.jsonl", "mnist-source.params"])
def test_an_incomplete_run_is_not_resumed(whole, tmp_path, capsys, name):
    out = tmp_path / "out"
    shutil.copytree(str(whole.out), str(out))
    (out / name).unlink()
    before = contents(out)
    assert main(["finetune", *OPTIONS, "--out", str(out), "--resume"]) == 2
    assert f"is incomplete: there is no {name}" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_last_file_writes_it(finetune, whole, tmp_path):
    out = tmp_path / "stopped"
    shutil.copytree(str(whole.out), str(out))
    (out / "best.params").unlink()
    assert finetune(out, "--resume") == 0
    assert rows_of(out) == rows_of(whole.out)
    assert (out / "best.params").read_bytes() == (whole.out / "best.params").read_bytes()


@pytest.mark.slow
def test_a_damaged_best_network_is_refused(finetune, whole, tmp_path, capsys):
    out = tmp_path / "damaged"
    shutil.copytree(str(whole.out), str(out))
    (out / "best.params").write_bytes(b"")
    assert finetune(out, "--resume") == 2
    assert "is damaged (best.params cannot be read as MXNet parameters)" in capsys.readouterr().err


ROWS = [{"regime": name, "learning_rate": 0.01, "seed": 4, "val_accuracy": 0.5} for name in REGIMES]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([ROWS[0], *ROWS[2:]], "line 2: expected the run one learning rate, 0.01, 4, got backbone at 0.1, 0.01, 4"),
        (ROWS[1::-1], "line 1: expected the run from scratch, 0.01, 4, got one learning rate, 0.01, 4"),
        ([{**ROWS[0], "seed": None}], "line 1: expected the run from scratch, 0.01, 4, got from scratch, 0.01, None"),
        ([{"val_accuracy": 0.5}], "line 1: expected the run from scratch, 0.01, 4, got None, None, None"),
        ([*ROWS, ROWS[-1]], "line 6: expected the run from scratch, 0.03, 4, got backbone frozen, 0.01, 4"),
    ],
)
def test_rows_of_other_runs_are_refused(begun, capsys, rows, error):
    write_rows(begun, rows)
    assert resume(begun) == 2
    assert f"is damaged (metrics.jsonl, {error})" in capsys.readouterr().err


def test_rows_of_more_runs_are_refused(begun, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "DRAWS", 0)
    write_rows(begun, ROWS[:1])
    assert resume(begun) == 2
    assert "line 1: expected no more rows, got from scratch, 0.01, 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"), [("model", "cifar_resnet56_v1"), ("classes", list("1023456789")), ("input", {"size": True})]
)
def test_a_record_of_another_network_is_refused(begun, capsys, field, value):
    write_rows(begun, ROWS)
    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**record, field: value}))
    assert resume(begun) == 2
    assert f"is damaged (run.json: {field} is {value!r}, and" in capsys.readouterr().err


@pytest.mark.parametrize("checksum", [None, 0, 1])
def test_another_source_is_refused(begun, capsys, monkeypatch, checksum):
    class ReachedError(Exception):
        pass

    def reach(*_):
        raise ReachedError

    monkeypatch.setattr(comparison, "_train_source", reach)
    write_rows(begun, ROWS)
    record = json.loads((begun / "run.json").read_text())
    source = begun / "mnist-source.params"
    if checksum is not None:
        record["weights"] = {"file": source.name, "crc32": zlib.crc32(source.read_bytes()) + checksum}
    (begun / "run.json").write_text(json.dumps(record))
    if checksum:
        assert resume(begun) == 2
        assert "is damaged (checksum mismatch for mnist-source.params)" in capsys.readouterr().err
    else:  # an earlier version did not record it
        with pytest.raises(ReachedError):
            resume(begun)


@pytest.mark.slow
def test_the_record_identifies_the_source(whole):
    record = json.loads((whole.out / "run.json").read_text())
    source = whole.out / "mnist-source.params"
    assert record["weights"] == {"file": source.name, "crc32": zlib.crc32(source.read_bytes())}


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
    shutil.copy(str(whole.out / run_folder.SOURCE), str(tmp_path))
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
