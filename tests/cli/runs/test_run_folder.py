"""A process can be killed between any two files: what it leaves can be resumed, or is refused as incomplete."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from pathlib import Path

import mxnet as mx
import pytest

from cli_support import rows_of
from multitrainer import MultiLRTrainer
from multitrainer.cli.errors import UserError
from multitrainer.cli.ranks.exchange import Ranks
from multitrainer.cli.runs import artifacts, run_folder
from multitrainer.cli.runs.checkpoints import Checkpoints
from multitrainer.cli.runs.claim import claim_folder

IMAGES = {"classes": ["a", "b"], "train": ["a/1.jpg", "b/1.jpg"], "val": ["a/2.jpg", "b/2.jpg"]}
IMAGES["contents"] = {name: [1, 2] for name in (*IMAGES["train"], *IMAGES["val"])}
CHANGES = ("os.rename", "os.remove", "os.mkdir")  # os.replace is a rename to the audit


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer:
    """Ends what runs under `at` in place of the so many-th change to a file."""

    def __init__(self):
        self._left = None
        sys.addaudithook(self._look)

    def _look(self, event, _):
        if self._left is not None and event in CHANGES:
            self._left -= 1
            if self._left < 0:
                self._left = None
                raise Killed

    @contextlib.contextmanager
    def at(self, moment):
        self._left = moment
        try:
            yield
        finally:
            self._left = None

    def moments(self, folder, work):
        """Give a folder for each moment at which `work` could be killed, as that leaves it."""
        for moment in itertools.count():
            out = folder / str(moment)
            out.mkdir()
            try:
                work(out, self.at(moment))
            except Killed:
                yield out
            else:
                assert moment > 20
                return


@pytest.fixture(scope="module")
def killer():
    return Killer()  # a process keeps its audit hooks


def files_after(rows):
    return ["best.params", "last.params"]


def train(folder, epochs, value, resume=False, overwrite=False):
    """Do what the command does with the files of a run, whose one weight and metric is `value` plus the epoch."""
    net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False, prefix="net_")
    net.initialize()
    trainer = MultiLRTrainer(net, "sgd")
    checkpoints = Checkpoints(folder, {"value": str(value)}, resume, overwrite, Ranks())
    before = checkpoints.find_earlier(Path("data"), files_after)
    checkpoints.write_record(IMAGES)
    assert before.images == (IMAGES if before.rows else None)
    if before.rows:
        checkpoints.restore(net, trainer, [mx.cpu()], len(before.rows))
        assert net.weight.data().asscalar() == value + len(before.rows)
    for epoch in range(len(before.rows) + 1, epochs + 1):
        net.weight.set_data(mx.nd.full((1, 1), value + epoch))
        checkpoints.begin_run(IMAGES)
        for name in files_after([]):
            artifacts.save_parameters(net, folder / name)
        checkpoints.save(net, trainer, epoch)
        checkpoints.metrics.add({"epoch": epoch, "val_accuracy": value + epoch})
        checkpoints.remove_before(epoch)


def check_run(folder, epochs, value):
    assert [row["val_accuracy"] for row in rows_of(folder)] == [value + epoch for epoch in range(1, epochs + 1)]
    for name in (*files_after([]), f"checkpoint/{epochs:06}.params"):
        assert mx.nd.load(str(folder / name))["weight"].asscalar() == value + epochs


def test_a_killed_run_is_resumed_from_any_moment(killer, tmp_path):
    def work(folder, killed):
        with killed:
            train(folder, 3, value=0)

    for folder in killer.moments(tmp_path, work):
        if run_folder.has_record(folder):
            with pytest.raises(UserError, match="had --value 0"):  # even if it has no epoch yet
                train(folder, 5, value=1, resume=True)
        with pytest.raises(Killed), killer.at(2):  # and so is what resumes it
            train(folder, 5, value=0, resume=True)
        train(folder, 5, value=0, resume=True)
        check_run(folder, 5, value=0)


def test_overwriting_that_is_killed_mixes_nothing(killer, tmp_path):
    def work(folder, killed):
        train(folder, 3, value=0)
        with killed:
            train(folder, 2, value=10, overwrite=True)

    seen = []
    for folder in killer.moments(tmp_path, work):
        for value in (0, 10):
            try:
                train(folder, 4, value, resume=True)
            except UserError as error:
                seen.append("incomplete" if "is incomplete" in str(error) else "of other options")
            else:
                check_run(folder, 4, value)
                seen.append(f"resumed {value}")
                break
        train(folder, 1, 20, overwrite=True)
        check_run(folder, 1, 20)
    assert {*seen} == {"resumed 0", "incomplete", "of other options", "resumed 10"}


def claim(out=None, resume=False, overwrite=False):
    return claim_folder(out, resume, overwrite, Ranks())


def test_runs_that_start_at_once_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claim() as one, claim() as two:
        assert [str(one), str(two)] == ["runs/finetune", "runs/finetune-2"]
        with pytest.raises(UserError, match="another process is training there"), claim(one):
            pass
    assert os.listdir("runs") == []  # neither has written anything


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
    train(run_folder.DEFAULT, 1, 0)
    with claim() as out:
        begun = Checkpoints(out, {"value": "1"}, False, False, Ranks())
        begun.find_earlier(Path("data"), files_after)
        begun.write_record(IMAGES)
    capsys.readouterr()
    with claim(resume=True) as out:
        assert str(out) == "runs/finetune-2"
        train(out, 2, 1, resume=True)
    assert capsys.readouterr().out == f"the run in {out} has no whole epoch yet; it begins from the start\n"
    check_run(out, 2, 1)
    check_run(run_folder.DEFAULT, 1, 0)


def test_a_run_to_be_overwritten_keeps_its_record_until_then(tmp_path):
    train(tmp_path, 2, 0)
    Checkpoints(tmp_path, {"value": "1"}, False, True, Ranks()).write_record(IMAGES)
    train(tmp_path, 3, 0, resume=True)
    check_run(tmp_path, 3, 0)


def test_a_run_that_has_written_its_record_alone_is_none(tmp_path):
    Checkpoints(tmp_path, {}, False, False, Ranks()).write_record()
    assert not run_folder.holds_run(tmp_path)
    with claim(tmp_path) as out:
        train(out, 1, 0)
    check_run(tmp_path, 1, 0)


def test_a_run_that_began_here_meanwhile_is_not_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path, {}, False, False, Ranks())
    train(tmp_path, 1, 0)
    for write in (checkpoints.write_record, checkpoints.begin_run):
        with pytest.raises(UserError, match="another process has begun a run there"):
            write()
    check_run(tmp_path, 1, 0)
