"""`multitrainer finetune` on two ranks on loopback, under parameter servers and under horovodrun."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import cluster
import numpy as np
import pytest

import preloaded
from cli_support import FILES, MODEL, Process, arrays, contents, rows_of, without_times
from support import PATIENCE, close

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli import main

pytestmark = pytest.mark.slow
HERE = pathlib.Path(__file__).parent
COMMAND = HERE / "command.py"

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed: `tox -e horovod` builds it"
)
launched_by = pytest.mark.parametrize(
    "kvstore", ["dist_sync", "dist_device_sync", pytest.param("horovod", marks=needs_horovod)]
)


def horovodrun(script, *options):
    return Process(
        [*preloaded.horovodrun(2), str(script), *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )


def finetune(kvstore, *options):
    """Run the command on two ranks and return their output."""
    return launch(kvstore, COMMAND, "finetune", "--kvstore", kvstore, *options)


def launch(kvstore, script, *options):
    if kvstore != "horovod":
        return "\n".join(cluster.run(script, *options))
    with horovodrun(script, *options) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def written(folder):
    """Return the only folder with files among those of the ranks."""
    folders = [path for path in folder.iterdir() if any(path.iterdir())]
    assert len(folders) == 1, folders
    return folders[0]


@launched_by
def test_ranks_have_the_weights_statistics_and_losses_of_one_another(kvstore, tmp_path):
    launch(kvstore, HERE / "ranks_worker.py", kvstore, tmp_path)
    for when in ("before", "after"):
        with np.load(tmp_path / f"{when}0.npz") as first, np.load(tmp_path / f"{when}1.npz") as second:
            for name in first.files:
                np.testing.assert_array_equal(first[name], second[name], err_msg=f"{when}: {name}")
            if when == "before":
                assert all((first[name] == 3).all() for name in first.files if name.startswith("sum"))
                assert (first["net_dense0_bias"] == 0).all()  # of rank 0; the other one began with 1


@launched_by
def test_two_ranks_train_as_one(kvstore, images, weights, tmp_path):
    check_that_ranks_train_as_one(kvstore, images, weights, tmp_path)


def test_two_ranks_train_as_one_on_features_computed_once(images, weights, tmp_path):
    printed = check_that_ranks_train_as_one("dist_sync", images, weights, tmp_path, "--no-augment")
    assert "computed once" in printed


def test_two_ranks_train_as_one_with_all_options_of_updates(images, weights, tmp_path):
    options = ["--accumulate", "2", "--clip-grad", "0.5", "--ema", "0.9", "--early-stop", "9", "--tensorboard"]
    check_that_ranks_train_as_one("dist_sync", images, weights, tmp_path, *options, "--optimizer", "adamw")


@needs_horovod
def test_two_ranks_of_horovod_train_as_one_with_all_options_of_updates(images, weights, tmp_path):
    options = ["--accumulate", "2", "--clip-grad", "0.5", "--ema", "0.9", "--early-stop", "9"]
    check_that_ranks_train_as_one("horovod", images, weights, tmp_path, *options)


def test_two_ranks_stop_early_at_the_same_epoch_and_resume(images, tmp_path):
    common = ["--data", images, "--model", MODEL, "--batch-size", "8", "--accumulate", "2", "--ema", "0.9"]
    common += ["--freeze", "features", "--lr", "1e-9", "--epochs", "9", "--early-stop", "2", "--resume"]
    finetune("dist_sync", *common, "--out", tmp_path / "whole" / "{index}")
    whole = written(tmp_path / "whole")
    for epochs in ("2", "9", "9"):
        printed = finetune("dist_sync", *common, "--epochs", epochs, "--out", tmp_path / "parts")
    assert "stopped after epoch 3" in printed
    assert without_times(rows_of(tmp_path / "parts")) == without_times(rows_of(whole))
    for name, array in arrays(whole / "last.params").items():
        np.testing.assert_array_equal(array, arrays(tmp_path / "parts/last.params")[name], err_msg=name)


def test_two_ranks_minimize_what_one_does(images, weights, tmp_path):
    loss = ("--label-smoothing", "0.1", "--mixup", "0.4", "--class-weights", "red=3", "--mixup-off-epoch", "1")
    check_that_ranks_train_as_one("dist_sync", images, weights, tmp_path, *loss)


def test_two_ranks_divide_and_crop_the_images_as_one_does(images, weights, tmp_path):
    options = ("--val-split", "0.4", "--input-size", "40")
    printed = check_that_ranks_train_as_one("dist_sync", images, weights, tmp_path, *options)
    assert "18 images to train on, 12 to measure on" in printed


def check_that_ranks_train_as_one(kvstore, images, weights, tmp_path, *options):
    # With the backbone frozen no BatchNorm looks at the batch, which the ranks divide.
    common = ["--data", images, "--model", MODEL, "--params", weights, "--freeze", "features", "--epochs", "3"]
    common += ["--batch-size", "8", "--lr", "0.05", *options]
    printed = finetune(kvstore, *common, "--out", tmp_path / "two" / "{index}")
    assert main(["finetune", *map(str, common), "--out", str(tmp_path / "one")]) == 0
    out = written(tmp_path / "two")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*FILES, *["tensorboard"] * ("--tensorboard" in options)]
    )
    assert printed.count("epoch 3/3") == 1  # only one of the ranks prints it
    two, one = rows_of(out), rows_of(tmp_path / "one")
    for field in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert [row[field] for row in two] == pytest.approx([row[field] for row in one], rel=1e-4), field
    assert [row["learning_rates"] for row in two] == [row["learning_rates"] for row in one]
    before, alone, two_ranks = (arrays(path) for path in (weights, tmp_path / "one/last.params", out / "last.params"))
    for name, array in two_ranks.items():
        assert close(array, alone[name], 1e-4), name
        if name.startswith("features."):
            np.testing.assert_array_equal(array, before[name], err_msg=name)
    return printed


def test_two_ranks_resume_where_they_were_killed(images, tmp_path):
    common = ["--data", images, "--model", MODEL, "--epochs", "6", "--batch-size", "8", "--resume"]
    finetune("dist_sync", *common, "--out", tmp_path / "whole" / "{index}")
    options = ["finetune", "--kvstore", "dist_sync", *common, "--out", tmp_path / "parts" / "{index}"]
    with cluster.start(COMMAND, *options) as started:
        out, writer, other = once_written(started, tmp_path / "parts")
        writer.kill()
        assert other.wait(PATIENCE) == 1
    out.rename(out.parent / "all")  # its place does not matter, but rank 0 must be given it
    finetune("dist_sync", *common, "--out", out.parent / "all")
    whole = written(tmp_path / "whole")
    assert without_times(rows_of(out.parent / "all")) == without_times(rows_of(whole))
    for name, array in arrays(whole / "last.params").items():
        np.testing.assert_array_equal(array, arrays(out.parent / "all/last.params")[name], err_msg=name)


class TestEarlierRuns:
    """Rank 0 decides whether the run in --out is resumed or refused, and all follow."""

    OPTIONS = ("--model", MODEL, "--batch-size", "8", "--epochs", "1")

    def run(self, images, out):
        assert main(["finetune", "--data", str(images), *self.OPTIONS, "--out", str(out)]) == 0
        return contents(out)

    def finetune(self, images, out, *options):
        """Return the status and the output of both ranks."""
        command = ["finetune", "--kvstore", "dist_sync", "--data", images, *self.OPTIONS, "--out", out, *options]
        with cluster.start(COMMAND, *command) as started:
            ended = [(worker.communicate(timeout=120)[0], worker.returncode) for _, worker in started[-2:]]
        return [code for _, code in ended], [output for output, _ in ended]

    def test_a_run_is_not_replaced(self, images, tmp_path):
        before = self.run(images, tmp_path)
        codes, outputs = self.finetune(images, tmp_path)
        assert codes == [2, 2]
        assert all("holds a run already" in output for output in outputs), outputs
        assert contents(tmp_path) == before

    def test_an_incomplete_run_is_not_resumed(self, images, tmp_path):
        self.run(images, tmp_path)
        (tmp_path / "metrics.jsonl").unlink()
        before = contents(tmp_path)
        codes, outputs = self.finetune(images, tmp_path, "--resume")
        assert codes == [2, 2]
        assert all("there is no metrics.jsonl" in output for output in outputs), outputs
        assert contents(tmp_path) == before

    def test_a_run_on_the_machine_of_another_rank_is_not_begun_again(self, images, tmp_path):
        """The scheduler chooses rank 0: the worker that has the run, or the other one."""
        before = self.run(images, tmp_path / "0")
        codes, outputs = self.finetune(images, tmp_path / "{index}", "--resume")
        resumed = any("continuing after 1 epochs" in output for output in outputs)
        missed = all("copy that folder to this machine" in output for output in outputs)
        assert (codes == [0, 0] and resumed) or (codes == [2, 2] and missed), outputs
        assert not contents(tmp_path / "1")
        assert contents(tmp_path / "0").keys() == before.keys()


class TestAllRanksEnd:
    """All ranks end if one does: parameter servers do not see to that, and horovodrun does."""

    @pytest.mark.parametrize(("ending", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
    def test_if_one_ends_early(self, images, tmp_path, ending, status):
        with cluster.start(COMMAND, *endless(images, tmp_path)) as started:
            out, writer, other = once_written(started, tmp_path)
            other.send_signal(ending)
            output, _ = writer.communicate(timeout=PATIENCE)
            assert other.wait(PATIENCE) == status
            assert writer.returncode == 1, output
        assert "rank 1 has ended; rank 0 ends with it" in output
        assert rows_of(out)  # whole lines, however it ended

    def test_ctrl_c_on_the_rank_that_writes_keeps_its_files(self, images, tmp_path):
        with cluster.start(COMMAND, *endless(images, tmp_path)) as started:
            out, writer, other = once_written(started, tmp_path)
            writer.send_signal(signal.SIGINT)
            output, _ = writer.communicate(timeout=PATIENCE)
            assert writer.returncode == 130, output
            assert other.wait(PATIENCE) == 1
        assert "holds the weights as they are now" in output
        assert sorted(path.name for path in out.iterdir()) == FILES

    def test_if_the_ranks_have_different_options(self, images, tmp_path):
        options = ["--kvstore", "dist_sync", "--data", images, "--model", MODEL, "--out", tmp_path, "--seed", "{index}"]
        with cluster.start(COMMAND, "finetune", *options) as started:
            for _, worker in started[-2:]:
                output, _ = worker.communicate(timeout=PATIENCE)
                assert worker.returncode == 2, output
                assert "different options" in output
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            (["--lr-mult", "nothing=3"], "'nothing' is not a part"),
            (["--lr-mult", "features"], "expected PATH=MULT"),
            (["--optimizer", "sdg"], "no such optimizer"),
            (["--batch-size", "7"], "cannot be divided among 2 ranks"),
            (["--params", "nowhere.params"], "nowhere.params"),
        ],
    )
    def test_with_the_same_error_if_the_options_are_wrong(self, images, tmp_path, options, error):
        common = ["--kvstore", "dist_sync", "--data", images, "--model", MODEL, "--out", tmp_path / "{index}"]
        with cluster.start(COMMAND, "finetune", *common, *options) as started:
            ended = [(worker.communicate(timeout=PATIENCE)[0], worker.returncode) for _, worker in started[-2:]]
        outputs = [output for output, _ in ended]
        assert [status for _, status in ended] == [2, 2], outputs
        assert all(error in output and "has ended" not in output for output in outputs), outputs
        assert not list(tmp_path.iterdir())

    @needs_horovod
    def test_under_horovodrun(self, images, tmp_path):
        options = ["--data", images, "--model", MODEL, "--lr-mult", "nothing=3", "--out", tmp_path]
        with horovodrun(COMMAND, "finetune", "--kvstore", "horovod", *options) as process:
            output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
        assert "'nothing'" in output


def endless(images, folder):
    options = ["--kvstore", "dist_sync", "--data", images, "--model", MODEL, "--epochs", "100000", "--batch-size", "8"]
    return ["finetune", *options, "--out", folder / "{index}"]


def once_written(started, folder):
    """Wait for the first line of metrics; return its folder, the worker that wrote it, and the other worker."""
    deadline = time.monotonic() + PATIENCE
    workers = [process for role, process in started if role == "worker"]
    while not any(path.stat().st_size for path in folder.glob("*/metrics.jsonl")):  # it is empty at first
        if time.monotonic() > deadline or any(worker.poll() is not None for worker in workers):
            cluster.fail(started, "no metrics were written")
        time.sleep(0.1)
    out = next(folder.glob("*/metrics.jsonl")).parent
    return out, workers[int(out.name)], workers[1 - int(out.name)]


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, ["--kvstore", "dist_sync", "--data", "images"], "DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT"),
        ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2"}, [], "add --kvstore dist_sync"),
        ({"HOROVOD_SIZE": "2"}, ["--kvstore", "device"], "add --kvstore horovod"),
    ],
)
def test_the_launcher_must_fit_the_kvstore(monkeypatch, capsys, tmp_path, environment, options, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["finetune", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
