"""Whenever a run is stopped, --resume takes it to the files and metrics of a run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import mxnet as mx
import pytest

from cli_support import MODEL, assert_same, finetune, kill_again_and_again, start, write_images
from run_support import IMAGES, NETWORK, Killed, Killer, check_run, claim, required_files, row_of, train
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer import MultiLRTrainer, WeightAverage
from multitrainer_cli import main
from multitrainer_cli.data.loader import Loader
from multitrainer_cli.errors import UserError
from multitrainer_cli.interrupts import Interrupts
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs import run_folder
from multitrainer_cli.runs.checkpoints import Checkpoints
from multitrainer_cli.training.loop import fit


@pytest.fixture(scope="module")
def killer():
    return Killer()  # a process keeps its audit hooks


def begin(folder, options, **how):
    checkpoints = Checkpoints(folder, options, how.get("resume", False), how.get("overwrite", False), Ranks())
    checkpoints.find_earlier(None, required_files)
    return checkpoints


@pytest.mark.slow
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
        assert not list(folder.rglob("*.tmp"))
        numbered = sorted(path.name for path in (folder / "checkpoint").iterdir())
        assert numbered == ["000005.json", "000005.npz", "000005.params"]


def train_with_average(folder, epochs, resume=False):
    """Write the files of a run whose weight is the number of its epoch, with an average; return the averages."""
    net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False, prefix="net_")
    net.initialize(mx.init.Zero())
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1})
    average = WeightAverage(trainer, 0.5)
    checkpoints = Checkpoints(folder, {}, resume, False, Ranks())
    rows = checkpoints.find_earlier(Path("data"), lambda rows: [f"checkpoint/{len(rows):06}.average"]).rows
    checkpoints.write_record(NETWORK, IMAGES)
    if rows:
        checkpoints.restore(net, trainer, [mx.cpu()], len(rows), average)
    seen = []
    for epoch in range(len(rows) + 1, epochs + 1):
        with mx.autograd.record():
            loss = -net(mx.nd.ones((1, 1)))
        loss.backward()
        trainer.step(1)
        average.update()
        assert net.weight.data().asscalar() == epoch
        checkpoints.begin_run()
        checkpoints.save(net, trainer, epoch, average)
        with average.applied():
            seen.append(float(net.weight.data().asscalar()))
        checkpoints.metrics.add(row_of(epoch, 0.5))
        checkpoints.remove_before(epoch)
    return seen


@pytest.mark.slow
def test_a_run_with_an_average_is_resumed_from_any_moment(killer, tmp_path):
    def work(folder, killed):
        with killed:
            train_with_average(folder, 3)

    averages = [0.5, 1.25, 2.125, 3.0625, 4.03125]
    for folder in killer.moments(tmp_path, work):
        seen = train_with_average(folder, 5, resume=True)
        assert seen == averages[5 - len(seen) :]
        names = sorted(path.name for path in (folder / "checkpoint").iterdir() if path.stem.isdecimal())
        assert names == ["000005.average", "000005.json", "000005.npz", "000005.params"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_missing_or_damaged_average_is_refused(tmp_path, damage):
    train_with_average(tmp_path, 2)
    damage(tmp_path / "checkpoint/000002.average")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"is (incomplete: there is no |damaged .*)checkpoint/000002\.average"):
        train_with_average(tmp_path, 3, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_average_of_a_checkpoint_belongs_to_the_run(tmp_path):
    train_with_average(tmp_path, 1)
    assert tmp_path / "checkpoint/000001.average" in run_folder.files_of_run(tmp_path)


def test_what_a_killed_process_left_is_removed_when_its_run_is_resumed(tmp_path):
    train(tmp_path, 2, 0)
    before = sorted(tmp_path.rglob("*"))
    for name in (".best.params.0123456789abcdef.tmp", "checkpoint/.000003.npz.0123456789abcdef.tmp"):
        (tmp_path / name).write_text("half")
    for suffix in run_folder.CHECKPOINT_SUFFIXES:
        (tmp_path / f"checkpoint/000001{suffix}").write_text("old")
    (tmp_path / "checkpoint/000001.txt").write_text("mine")
    train(tmp_path, 2, 0, resume=True)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "checkpoint/000001.txt"])


@pytest.mark.slow
def test_a_killed_overwrite_mixes_no_runs(killer, tmp_path):
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


def test_a_run_to_be_overwritten_keeps_its_record_until_then(tmp_path):
    train(tmp_path, 2, 0)
    begin(tmp_path, {"value": "1"}, overwrite=True).write_record(NETWORK, IMAGES)
    train(tmp_path, 3, 0, resume=True)
    check_run(tmp_path, 3, 0)


def test_a_record_alone_does_not_stop_another_run(tmp_path):
    begin(tmp_path, {}).write_record(NETWORK)
    assert not run_folder.holds_run(tmp_path)
    with claim(tmp_path) as out:
        train(out, 1, 0)
    check_run(tmp_path, 1, 0)


def test_a_run_that_another_process_began_is_not_replaced(tmp_path):
    checkpoints = begin(tmp_path, {})
    train(tmp_path, 1, 0)
    for write in (lambda: checkpoints.write_record(NETWORK, IMAGES), checkpoints.begin_run):
        with pytest.raises(UserError, match="another process has begun a run there"):
            write()
    check_run(tmp_path, 1, 0)


class TestClassesFile:
    """classes.txt is the user's to edit, and is written again only if it is gone."""

    @pytest.mark.slow
    def test_an_edited_file_stays(self, copied, capsys):
        (copied.out / "classes.txt").write_text("sky\ngrass\nfire\n")
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        assert (copied.out / "classes.txt").read_text() == "sky\ngrass\nfire\n"
        assert "classes.txt is not as this run wrote it; it stays as it is" in capsys.readouterr().out

    @pytest.mark.slow
    def test_a_missing_file_is_written_again(self, copied, capsys):
        (copied.out / "classes.txt").unlink()
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        assert "classes.txt was gone and is written again" in capsys.readouterr().out
        assert (copied.out / "classes.txt").read_text() == "blue\ngreen\nred\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 27 to train on by eights: what is left over of an epoch begins the next one.
    return write_images(tmp_path_factory.mktemp("images") / "colours", 11)


def run(images, out, *options):
    common = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", out]
    return main(["finetune", *map(str, [*common, *options])])


@pytest.mark.parametrize(
    "options", [[], ["--optimizer", "adam", "--lr-mult", "features=0.5", "--freeze", "features.0"]]
)
def test_a_resumed_run_ends_as_one_that_never_stopped(images, tmp_path, capsys, options):
    assert run(images, tmp_path / "whole", *options, "--epochs", 4) == 0
    for epochs in (1, 3, 4):
        assert run(images, tmp_path / "parts", *options, "--epochs", epochs, "--resume") == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")
    printed = capsys.readouterr().out
    assert f"nothing to resume in {tmp_path / 'parts'}; a new run begins" in printed
    assert "continuing after 3 epochs" in printed
    kept = sorted(path.name for path in (tmp_path / "parts/checkpoint").iterdir())
    assert kept == ["000004.json", "000004.npz", "000004.params"]


def test_random_numbers_of_layers_do_not_depend_on_earlier_epochs():
    def train(upto, done=0):
        with Interrupts() as interrupts:
            rows = list(fit(net, trainer, batches, batches, [mx.cpu()], upto, interrupts, seed=3, epochs_done=done))
        return [row["train_loss"] for row in rows]

    def begin():
        mx.random.seed(1)
        net = mx.gluon.nn.HybridSequential()
        net.add(mx.gluon.nn.Dense(8, in_units=4), mx.gluon.nn.Dropout(0.5), mx.gluon.nn.Dense(2, in_units=8))
        net.initialize()
        return net, MultiLRTrainer(net, "sgd")

    data = mx.gluon.data.ArrayDataset(mx.nd.random.normal(shape=(8, 4)), mx.nd.array([0, 1] * 4))
    batches = Loader(data, mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(8), 4))
    net, trainer = begin()
    whole = train(4)
    net, trainer = begin()
    first = train(2)
    mx.nd.random.normal(shape=(100,)).wait_to_read()  # what else happened meanwhile
    assert first + train(4, done=2) == whole


@pytest.mark.slow
def test_a_process_killed_at_any_moment_can_be_resumed(images, tmp_path):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 12]
    with start(*options, "--out", tmp_path / "whole") as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert kill_again_and_again(options, tmp_path / "parts", total=12) >= 1
    assert_same(tmp_path / "whole", tmp_path / "parts")
