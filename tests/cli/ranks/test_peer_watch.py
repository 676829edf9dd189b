"""If one rank ends early, all end; each rank here is a process of its own that holds nothing but a `PeerWatch`."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multitrainer_cli.ranks import peer_watch
from support import PATIENCE

# The module is loaded by its path, for the package around it takes seconds to import.
RANK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("peer_watch", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
rank, size, port = map(int, sys.argv[2:])
watch = module.PeerWatch(rank, size)
if rank == 0:
    print(watch.listen("127.0.0.1"), flush=True)
    watch.accept()
else:
    watch.connect("127.0.0.1", port)
print("watching", flush=True)
for line in sys.stdin:
    if line == "finish\\n":
        watch.finish()
        print("finished", flush=True)
    elif line == "fail\\n":
        import os
        send = watch._send
        watch._send = lambda message: (send(message), print("failing", flush=True))
        watch.fail()
        os._exit(2)
"""


class Rank:
    def __init__(self, rank, size, port=0):
        command = [sys.executable, "-c", RANK, str(Path(peer_watch.__file__)), str(rank), str(size), str(port)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, universal_newlines=True)

    def line(self):
        return self.process.stdout.readline().strip()

    def tell(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def fail(self):
        """Return when it has told the others that it fails."""
        self.tell("fail")
        assert self.line() == "failing"

    def finish(self):
        self.tell("finish")
        assert self.line() == "finished"

    def end(self):
        """Close its input, on which it ends by itself; return its exit status and what it said of an error."""
        _, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, error.strip()

    def wait(self):
        """Wait for it to be ended; return its exit status and what it said of an error."""
        self.process.wait(PATIENCE)
        return self.process.returncode, self.process.stderr.read().strip()


@pytest.fixture
def ranks():
    started = [Rank(0, 3)]
    port = started[0].line()
    started += [Rank(rank, 3, port) for rank in (1, 2)]
    assert [rank.line() for rank in started] == ["watching"] * 3
    yield started
    for rank in started:
        rank.process.kill()
        rank.process.communicate()


@pytest.mark.parametrize("first_to_end", [0, 1, 2])
@pytest.mark.parametrize("how", ["killed", "without having finished"])
def test_one_that_ends_early_ends_all(ranks, first_to_end, how):
    ended = ranks.pop(first_to_end)
    if how == "killed":
        ended.process.send_signal(signal.SIGKILL)
    else:
        ended.end()
    for number, other in zip([number for number in range(3) if number != first_to_end], ranks):
        status, error = other.wait()
        assert status == 1
        # Rank 0 may also learn it from the other ranks before it ends, and then says it again.
        message = f"multitrainer: error: rank {first_to_end} has ended; rank {number} ends with it"
        assert set(error.splitlines()) == {message}
    ended.process.communicate()


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_ranks_that_all_fail_end_with_their_own_status(ranks, order):
    for number in order:
        ranks[number].fail()
    assert [rank.wait() for rank in ranks] == [(2, "")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_alone_ends_the_others(ranks, failing):
    ranks[failing].fail()
    outcomes = [rank.wait() for rank in ranks]
    assert outcomes.pop(failing) == (2, "")
    for status, error in outcomes:
        assert status == 1
        assert f"rank {failing} has ended" in error


def test_one_that_fails_does_not_wait_for_one_that_was_killed(ranks):
    ranks[0].fail()
    for rank in ranks[1:]:
        rank.process.kill()
    assert ranks[0].wait() == (2, "")


def test_ranks_that_have_finished_may_end_one_by_one(ranks):
    for rank in ranks:
        rank.finish()
    assert [rank.end() for rank in (ranks[1], ranks[0], ranks[2])] == [(0, "")] * 3


def test_the_address_is_the_one_that_other_machines_reach():
    assert peer_watch.own_address("127.0.0.1") == "127.0.0.1"
