from __future__ import annotations

import subprocess

import pytest

import preloaded
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.launch import run_distributed
from support import PATIENCE


@pytest.fixture(autouse=True)
def _started_alone(monkeypatch):
    for name in ("DMLC_ROLE", "DMLC_NUM_WORKER", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("kvstore", "used"), [(None, "device"), ("device", "device"), ("local", "local")])
def test_without_other_ranks_the_work_is_done_here(kvstore, used, capsys):
    def work(ranks):
        print("working")
        assert (ranks.size, ranks.kvstore) == (1, used)
        return 7

    assert run_distributed(kvstore, work) == 7
    assert capsys.readouterr().out == "working\n"


def test_an_error_of_the_work_is_raised_if_there_are_no_other_ranks():
    def work(ranks):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_distributed(None, work)


@pytest.mark.parametrize(
    ("environment", "kvstore", "message"),
    [
        (
            {"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2"},
            None,
            r"DMLC_NUM_WORKER says .* one of 2 .* dist_sync",
        ),
        ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "3"}, "device", r"one of 3 processes; add --kvstore dist_sync"),
        ({"HOROVOD_SIZE": "2"}, "device", r"HOROVOD_SIZE says .* one of 2 processes; add --kvstore horovod"),
        ({"HOROVOD_SIZE": "2"}, "dist_sync", r"add --kvstore horovod"),
    ],
)
def test_one_of_several_processes_does_not_work_alone(monkeypatch, environment, kvstore, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        run_distributed(kvstore, lambda ranks: pytest.fail("it worked"))


@pytest.mark.parametrize(
    "environment",
    [{"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "1"}, {"DMLC_NUM_WORKER": "2"}, {"HOROVOD_SIZE": "1"}],
    ids=["one worker", "not a worker", "one process of Horovod"],
)
def test_a_process_that_is_the_only_worker_works_alone(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_distributed(None, lambda ranks: ranks.size) == 1


RANK = """
import sys
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks import launch
from multitrainer_cli.ranks.exchange import Ranks

class Rank(Ranks):  # in place of a connection to servers
    rank, size = int(sys.argv[1]), int(sys.argv[2])

    def finish(self):
        print("finished", flush=True)

    def fail(self):
        print("failing", flush=True)

def work(ranks):
    print("working", flush=True)
    if sys.argv[3] == "error":
        raise UserError("--lr 0")
    return int(sys.argv[3])

launch.ServerRanks = Rank
try:
    print("returned", launch.run_distributed("dist_sync", work), flush=True)
except UserError as error:
    print("raised", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "size", "outcome", "status", "printed", "error"),
    [
        (0, 2, "0", 0, ["working", "finished", "returned 0"], ""),
        (1, 2, "0", 0, ["finished", "returned 0"], ""),
        (1, 2, "3", 3, ["failing"], ""),
        (1, 2, "error", 2, ["failing"], "multitrainer: error: rank 1: --lr 0\n"),
        (0, 1, "3", 0, ["working", "finished", "returned 3"], ""),
        (0, 1, "error", 0, ["working", "raised --lr 0"], ""),
    ],
)
def test_a_rank_that_fails_ends_its_process_if_there_are_others(tmp_path, rank, size, outcome, status, printed, error):
    (tmp_path / "rank.py").write_text(RANK)
    command = [*preloaded.command("worker0"), str(tmp_path / "rank.py"), str(rank), str(size), outcome]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (status, printed, error)
