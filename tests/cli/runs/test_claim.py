"""Two processes never write to one folder, and a run is never replaced unless --overwrite asks for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

import preloaded
from cli_support import FILES, MODEL, contents, default_sigint, finetune, rows_of, start
from run_support import IMAGES, NETWORK, check_run, claim, required_files, train

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli import main
from multitrainer_cli.arguments.defaults import RUN_FOLDER
from multitrainer_cli.data import batches, image_folder
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs.checkpoints import Checkpoints


def test_runs_that_start_at_once_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claim() as one, claim() as two:
        assert [str(one), str(two)] == ["runs/finetune", "runs/finetune-2"]
        with pytest.raises(UserError, match="another process is training there"), claim(one):
            pass
    assert os.listdir(".") == []  # neither has written anything


@pytest.fixture(scope="module")
def claimants():
    """Four processes that claim a folder at the same moment."""
    command = [*preloaded.command("claimants"), str(Path(__file__).with_name("claimant.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "universal_newlines": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.kill()
        process.communicate()


def tell(processes, line):
    for process in processes:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_of_processes_that_start_at_the_same_moment_one_gets_the_folder(claimants, tmp_path, attempt):
    out = tmp_path / "deep/out"
    tell(claimants, f"{out} 1")
    answers = [process.stdout.readline() for process in claimants]
    refused = f"--out {out}: another process is training there; wait for it, or choose another --out\n"
    assert sorted(answers) == sorted([f"claimed {out}\n", *[refused] * 3])
    tell([claimants[answers.index(f"claimed {out}\n")]], "release")
    assert {process.stdout.readline() for process in claimants} == {"done\n"}
    # The empty folder stays if a refused process made it and the other one found it there.
    assert not list(out.glob("*"))


def test_a_folder_that_others_make_and_remove_meanwhile_is_claimed_or_refused(claimants, tmp_path):
    out = tmp_path / "deep/out"
    tell(claimants, f"{out} 200")
    answers = set()
    for process in claimants:
        answers |= {*iter(process.stdout.readline, "done\n")}
    claimed, in_use = f"claimed {out}\n", f"--out {out}: another process is training there; wait for it, or choose "
    assert claimed in answers
    assert answers <= {claimed, f"{in_use}another --out\n"}
    assert contents(tmp_path) == {}


def test_the_last_default_run_is_the_one_with_the_highest_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("finetune-2", "finetune-10", "finetune-old", "finetune-011"):
        Path("runs", name).mkdir(parents=True)
        train(Path("runs", name), 1, 0)
    Path("runs/finetune-12").mkdir()
    with claim(resume=True) as out:
        assert str(out) == "runs/finetune-10"
    with claim() as out:
        assert str(out) == "runs/finetune-11"
    assert Path("runs/finetune-12").is_dir()  # it was there before


def test_a_default_run_killed_in_its_first_epoch_is_the_one_to_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(RUN_FOLDER, 1, 0)
    with claim() as out:
        begun = Checkpoints(out, {"value": "1"}, False, False, Ranks())
        begun.find_earlier(Path("data"), required_files)
        begun.write_record(NETWORK, IMAGES)
    capsys.readouterr()
    with claim(resume=True) as out:
        assert str(out) == "runs/finetune-2"
        train(out, 2, 1, resume=True)
    assert capsys.readouterr().out == f"the run in {out} has no whole epoch yet; it begins from the start\n"
    check_run(out, 2, 1)
    check_run(RUN_FOLDER, 1, 0)


def test_a_checkpoint_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    error = r"--out .*checkpoint: .*; choose a folder that can be written to"
    with pytest.raises(UserError, match=error), claim(tmp_path):
        pass


class TestDefaultFolder:
    """Without --out, a run goes to a folder that holds none."""

    @pytest.mark.slow
    def test_a_second_run_takes_the_next_free_folder(self, first_run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        images = first_run / "colours"
        assert finetune(images, epochs=1) == 0
        before = contents(tmp_path / "runs/finetune")
        assert finetune(images, "--seed", 1, epochs=1) == 0
        assert "runs/finetune holds a run; this run goes to runs/finetune-2\n" in capsys.readouterr().out
        assert finetune(images, "--seed", 1, "--resume") == 0  # the same command goes on with its own run
        assert "continuing after 1 epochs of the run in runs/finetune-2" in capsys.readouterr().out
        assert contents(tmp_path / "runs/finetune") == before
        assert sorted(os.listdir("runs")) == ["finetune", "finetune-2"]
        assert [len(rows_of(tmp_path / "runs" / name)) for name in ("finetune", "finetune-2")] == [1, 2]

    @pytest.mark.slow
    def test_a_run_writes_its_record_before_it_trains(self, first_run, tmp_path, monkeypatch, capsys):
        class Killed(BaseException):
            pass

        def kill(*_):
            raise Killed

        monkeypatch.chdir(tmp_path)
        images = first_run / "colours"
        shutil.copytree(str(first_run / "out"), "runs/finetune")
        before = contents(tmp_path / "runs/finetune")
        with monkeypatch.context() as patch:
            patch.setattr(image_folder.ImageFolder, "__getitem__", kill)
            with pytest.raises(Killed):
                finetune(images, epochs=1)
        assert finetune(images, "--resume", epochs=1) == 0
        assert "the run in runs/finetune-2 has no whole epoch yet" in capsys.readouterr().out
        assert contents(tmp_path / "runs/finetune") == before
        assert len(rows_of(tmp_path / "runs/finetune-2")) == 1

    def test_overwrite_needs_a_named_folder(self, first_run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert finetune(first_run / "colours", "--overwrite") == 2
        assert "say which one with --out" in capsys.readouterr().err


class TestNamedFolder:
    """A folder that --out names is used only if it holds no run, or --resume or --overwrite says so."""

    def test_a_folder_with_a_run_is_refused(self, copied, capsys):
        before = contents(copied.out)
        for command in (
            lambda: finetune(copied.images, "--out", copied.out),
            lambda: main(["finetune", "--out", str(copied.out)]),
        ):
            assert command() == 2
            error = capsys.readouterr().err
            assert f"--out {copied.out} holds a run already" in error
            assert all(cure in error for cure in ("--resume", "--overwrite", "another --out"))
            assert contents(copied.out) == before

    @pytest.mark.parametrize("name", ["best.params", "classes.txt", "finetune.png", "run.json"])
    def test_a_file_of_the_user_is_not_replaced(self, first_run, tmp_path, capsys, name):
        (tmp_path / name).write_text("mine")
        assert finetune(first_run / "colours", "--out", tmp_path) == 2
        assert f"holds {name}, in whose place a run would write" in capsys.readouterr().err
        assert contents(tmp_path) == {tmp_path / name: b"mine"}

    @pytest.mark.slow
    def test_a_folder_in_use_is_refused_until_its_process_ends(self, first_run, tmp_path, capsys):
        options = [
            "--data",
            first_run / "colours",
            "--model",
            MODEL,
            "--batch-size",
            8,
            "--lr",
            0.02,
            "--out",
            tmp_path,
        ]
        with start(*options, "--epochs", 10000, "--workers", 2, start_new_session=True) as process:
            try:
                assert any("epoch 1/" in line for line in iter(process.stdout.readline, ""))
                for how in ([], ["--resume"], ["--overwrite"]):
                    assert finetune(first_run / "colours", "--out", tmp_path, *how) == 2
                    assert "another process is training there" in capsys.readouterr().err
                process.kill()  # the processes that load its images live on
                process.wait()
                done = len(rows_of(tmp_path))
                assert finetune(first_run / "colours", "--out", tmp_path, "--resume", epochs=done + 1) == 0
                assert len(rows_of(tmp_path)) == done + 1
            finally:
                with contextlib.suppress(ProcessLookupError):  # they, too, have ended
                    os.killpg(process.pid, signal.SIGKILL)


class TestOverwrite:
    """--overwrite replaces a run as soon as an epoch of the new one has ended, and not before."""

    @pytest.mark.slow
    def test_the_run_is_replaced_and_other_files_stay(self, copied):
        (copied.out / "notes.txt").write_text("mine")
        (copied.out / "checkpoint/notes.txt").write_text("mine")
        assert finetune(copied.images, "--out", copied.out, "--overwrite", "--lr", 0.03, epochs=1) == 0
        assert sorted(path.name for path in copied.out.iterdir()) == sorted([*FILES, "notes.txt"])
        assert [row["learning_rates"] for row in rows_of(copied.out)] == [{"net": 0.03}]
        kept = ["000001.json", "000001.npz", "000001.params", "notes.txt"]
        assert sorted(path.name for path in (copied.out / "checkpoint").iterdir()) == kept

    @pytest.mark.parametrize(
        ("options", "status"),
        [(["--freeze", "nothing"], 2), (["--lr", 1e30], 2), (["--resume"], 2), (["--ctx", "tpu"], 2)],
        ids=["a wrong path", "divergence", "--resume too", "a wrong device"],
    )
    def test_a_run_without_an_epoch_replaces_nothing(self, copied, options, status):
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--overwrite", *options) == status
        assert contents(copied.out) == before

    def test_what_cannot_be_removed_is_refused_before_work(self, copied, capsys):
        (copied.out / "finetune.png").unlink()
        (copied.out / "finetune.png").mkdir()
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--overwrite") == 2
        error = capsys.readouterr()
        assert f"{copied.out / 'finetune.png'} is a folder, not a file of a run" in error.err
        assert error.out == ""
        assert contents(copied.out) == before

    def test_a_folder_of_its_files_that_cannot_be_written_to_is_refused(self, tmp_path, monkeypatch):
        train(tmp_path, 1, 0)
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard/events.out.tfevents.1.host.multitrainer").write_text("")
        before, temporary_file = contents(tmp_path), tempfile.TemporaryFile

        def refuse(dir):
            if dir.endswith("tensorboard"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return temporary_file(dir=dir)

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        error = r"tensorboard: Permission denied; choose a"
        with pytest.raises(UserError, match=error), claim(tmp_path, overwrite=True):
            pass
        assert contents(tmp_path) == before

    def test_a_run_interrupted_in_its_first_epoch_replaces_nothing(self, copied, monkeypatch, capsys):
        def interrupt(image):
            press()
            monkeypatch.undo()
            return batches.validation_transform(32)(image)

        before = contents(copied.out)
        monkeypatch.setattr(batches, "_augmentation", lambda size: interrupt)
        with default_sigint() as press:
            assert finetune(copied.images, "--out", copied.out, "--overwrite") == 130
        assert f"the run in {copied.out} is as it was" in capsys.readouterr().err
        assert contents(copied.out) == before
