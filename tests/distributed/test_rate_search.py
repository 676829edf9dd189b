"""All ranks search together: they stop at the same rate, get the same losses, and go on as if they had not searched."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from cluster import run

import preloaded
from support import PATIENCE

pytestmark = pytest.mark.slow
WORKER = pathlib.Path(__file__).parent / "search_worker.py"
needs_horovod = pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="needs Horovod: tox -e horovod")
KINDS = ["dist_sync", "dist_device_sync", pytest.param("horovod", marks=needs_horovod)]


@pytest.fixture
def search(tmp_path_factory):
    def run_case(kind, how="equal"):
        folder = tmp_path_factory.mktemp("run")
        if "horovod" in kind:
            horovodrun(kind, folder, how)
        else:
            run(WORKER, kind, folder, how)
        about = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
        weights = []
        for rank in range(2):
            with np.load(folder / f"rank{rank}.npz") as arrays:
                weights.append({name: array.tobytes() for name, array in arrays.items()})
        assert weights[0] == weights[1]
        return about, weights[0]

    return run_case


def horovodrun(*arguments):
    command = [*preloaded.horovodrun(2), str(WORKER), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_they_stop_together_and_go_on_as_without(search, kind):
    about, weights = search(kind)
    assert about[0]["rates"] == about[1]["rates"]
    assert about[0]["losses"] == about[1]["losses"]
    assert about[0]["made"] == about[1]["made"] == len(about[0]["rates"])
    assert 40 < len(about[0]["rates"]) < 60  # rank 0 alone would not have stopped
    assert [each["same"] for each in about] == [True, True]
    assert weights == search(kind, "without")[1]


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:])
def test_the_search_ends_if_one_of_them_has_no_batches_left(search, kind):
    about, _ = search(kind, "unequal")
    assert [len(each["rates"]) for each in about] == [12, 12]
    assert [each["made"] for each in about] == [12, 12]
    assert [each["same"] for each in about] == [True, True]


@needs_horovod
def test_horovods_own_trainer_is_refused(search):
    about, _ = search("stock-horovod")
    assert all("use multitrainer.horovod.DistributedMultiLRTrainer" in each["error"] for each in about)
