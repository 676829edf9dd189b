"""All cores are used if asked for, and a trainer says it if some are idle, once and only where it is true."""

import os
import subprocess
import sys

import pytest

from multitrainer import cores
from support import PATIENCE, run_python

pytest.importorskip("joblib")

CORES = cores.count_cores()
IDLE_BY_DEFAULT = len(os.sched_getaffinity(0)) // 2 < CORES > 1
LAUNCHER = ("DMLC_ROLE", "DMLC_NUM_WORKER", "DMLC_PS_ROOT_URI", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in (*cores.VARIABLES, *cores._LOCAL_SIZES, *LAUNCHER):
        monkeypatch.delenv(name, raising=False)


def run(code, **environment):
    return run_python(f"import os\nos.environ.update({environment})\nimport multitrainer\n{code}")


USED = "from multitrainer.cores import count_threads; print(count_threads())"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, CORES),
        ({"OMP_NUM_THREADS": "3", "MXNET_OMP_MAX_THREADS": "1"}, 3),
        ({"MXNET_OMP_MAX_THREADS": "1"}, 1),
        ({"MXNET_OMP_MAX_THREADS": "4096"}, len(os.sched_getaffinity(0))),
        ({"OMP_NUM_THREADS": ""}, CORES),
        ({"HOROVOD_LOCAL_SIZE": "2"}, max(1, CORES // 2)),
    ],
    ids=str,
)
def test_mxnet_uses_the_number_that_is_returned(environment, expected):
    done = run(f"print(multitrainer.use_all_cores())\nimport mxnet\n{USED}\n", **environment)
    assert done.stdout == f"{expected}\n{expected}\n", done.stderr


def test_it_comes_before_mxnet_in_every_way_to_import_it():
    done = run(
        """
from multitrainer import use_all_cores
import sys
print(use_all_cores() == use_all_cores(), "mxnet" in sys.modules, os.environ["MXNET_OMP_MAX_THREADS"])
"""
    )
    assert done.stdout == f"True False {CORES}\n", done.stderr


def test_after_mxnet_it_raises_unless_the_number_is_right():
    done = run(
        """
import mxnet
from multitrainer import cores
from multitrainer.cores import count_threads
cores.count_cores = lambda: count_threads() + 6  # as on a machine with more cores
try:
    multitrainer.use_all_cores()
except RuntimeError as error:
    print(str(error).partition(":")[2])
cores.count_cores = count_threads
print(multitrainer.use_all_cores() == count_threads(), "MXNET_OMP_MAX_THREADS" in os.environ)
os.environ["OMP_NUM_THREADS"] = str(count_threads())
print(multitrainer.use_all_cores() == count_threads())
"""
    )
    cure, *rest = done.stdout.splitlines()
    assert cure.startswith(" call multitrainer.use_all_cores() before `import mxnet`, or start the process with MXNET_")
    assert rest == ["True False", "True"]


def test_without_joblib_it_says_how_to_install_it():
    blocked = "import sys\nsys.modules['joblib'] = None\n"
    done = run(blocked + "multitrainer.use_all_cores()")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: joblib, which counts the cores, cannot be imported")
    assert "pip install 'multitrainer[fast]'" in last
    assert run(blocked + "print(multitrainer.use_all_cores())", OMP_NUM_THREADS="5").stdout == "5\n"


@pytest.mark.parametrize("value", ["0", "-1", "two", "2,1", "1.5", "²", "٢", "2147483648", "9" * 5000])
@pytest.mark.parametrize("name", cores.VARIABLES)
def test_what_mxnet_cannot_read_is_refused(monkeypatch, name, value):
    for other in cores.VARIABLES:
        monkeypatch.setenv(other, "2")  # MXNet reads both
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number from 1 to 2147483647"):
        cores.use_all_cores()


@pytest.mark.parametrize("value", ["", "two", "1.5"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", value)
    with pytest.raises(ValueError, match=f"LOKY_MAX_CPU_COUNT={value}: expected a whole number; unset it"):
        cores.use_all_cores()


class TestPhysicalCores:
    """Eight CPUs, of which N and N + 4 are on one core; joblib counts what it may use of the machine's."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch, tmp_path):
        for cpu in range(8):
            topology = tmp_path / f"cpu{cpu}" / "topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
        monkeypatch.setattr(cores, "_CPUS", tmp_path)

    @pytest.mark.parametrize(
        ("affinity", "of_joblib", "expected"),
        [
            ({0, 1, 4, 5}, 4, 2),
            ({0, 1, 2, 3}, 4, 4),
            ({0, 4}, 2, 1),
            (set(range(8)), 4, 4),
            (set(range(8)), 3, 3),  # a quota
            ({0, 8, 9}, 3, 3),  # no file about CPU 8
        ],
    )
    def test_are_counted_under_an_affinity_or_a_quota(self, monkeypatch, affinity, of_joblib, expected):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: affinity)
        monkeypatch.setattr("joblib.cpu_count", lambda **_: of_joblib)
        assert cores.count_cores() == expected


class TestLocalRanks:
    @pytest.mark.parametrize(
        ("environment", "ranks"),
        [
            ({}, 1),
            ({"HOROVOD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 4),
            ({"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 3),
            ({"MPI_LOCALNRANKS": "2"}, 2),
            ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),5", "SLURM_NODEID": "2"}, 2),
            ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),5", "SLURM_NODEID": "3"}, 5),
            ({"SLURM_STEP_TASKS_PER_NODE": "8"}, 8),
            ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2", "DMLC_PS_ROOT_URI": "127.0.0.1"}, 2),
            ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2", "DMLC_PS_ROOT_URI": "localhost"}, 2),
            ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2", "DMLC_PS_ROOT_URI": "10.0.0.5"}, 1),
            ({"DMLC_ROLE": "server", "DMLC_NUM_WORKER": "2", "DMLC_PS_ROOT_URI": "127.0.0.1"}, 1),
            ({"HOROVOD_LOCAL_SIZE": "many"}, 1),
            ({"HOROVOD_LOCAL_SIZE": "0", "MPI_LOCALNRANKS": "2"}, 2),
            ({"HOROVOD_LOCAL_SIZE": "٢"}, 1),
            ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),5", "SLURM_NODEID": "4"}, 1),
            ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "n1"}, 1),
            ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": ""}, 1),
            ({"SLURM_STEP_TASKS_PER_NODE": "two"}, 1),
            ({"SLURM_STEP_TASKS_PER_NODE": "2(x999999999)", "SLURM_NODEID": "7"}, 2),
            ({"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "", "DMLC_PS_ROOT_URI": "localhost"}, 1),
        ],
        ids=str,
    )
    def test_are_those_of_the_launcher(self, monkeypatch, environment, ranks):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert cores._local_ranks()[1] == ranks

    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
    @pytest.mark.parametrize("start", [[], ["bash", "-c", '"$@"; true', "run.sh"]], ids=["directly", "script"])
    @pytest.mark.parametrize(
        ("places", "sharing"),
        [([0, 1], [1, 1]), ([0, 0], [2, 2]), ([None, None], [2, 2]), ([0, 0, 1, 1], [2, 2, 2, 2]), ([0, None], [2, 2])],
        ids=str,
    )
    def test_share_the_cores_unless_they_are_bound_to_others(self, start, places, sharing):
        """This process is the launcher: each rank is bound to one of two CPUs, or to none."""
        cpus = sorted(os.sched_getaffinity(0))
        code = (
            "import sys, multitrainer; from multitrainer import cores; cores.count_cores = lambda: 840\n"
            "print('up', flush=True); sys.stdin.readline(); print(multitrainer.use_all_cores(), flush=True)\n"
            "sys.stdin.readline()"
        )
        environment = {**os.environ, "HOROVOD_LOCAL_SIZE": str(len(places))}
        ranks = []
        try:
            for place in places:
                allowed = cpus if place is None else [cpus[place]]
                ranks.append(
                    subprocess.Popen(
                        [*start, sys.executable, "-W", "ignore", "-c", code],
                        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment},
                        preexec_fn=lambda allowed=allowed: os.sched_setaffinity(0, allowed),
                    )
                )
            assert [rank.stdout.readline() for rank in ranks] == ["up\n"] * len(ranks)
            for rank in ranks:
                print(file=rank.stdin, flush=True)
            assert [840 // int(rank.stdout.readline()) for rank in ranks] == sharing
        finally:
            for rank in ranks:
                rank.communicate("\n", timeout=PATIENCE)


TRAINER = """
import logging, sys
logging.basicConfig(level=logging.{level}, format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
import mxnet as mx
net = mx.gluon.nn.Dense(1, in_units=2)
net.initialize()
for _ in range(2):
    multitrainer.MultiLRTrainer(net, "sgd")
print("done")
"""


@pytest.mark.skipif(not IDLE_BY_DEFAULT, reason="MXNet uses all cores of this machine by itself")
class TestIdleCores:
    def test_are_noted_once_with_the_cure(self):
        note, done = run(TRAINER.format(level="INFO")).stdout.splitlines()
        assert note.startswith("multitrainer INFO MXNet computes with ")
        assert f"of the {CORES} threads that this process has cores for; call multitrainer.use_all_cores()" in note
        assert done == "done"

    def test_the_cure_works(self):
        assert run("multitrainer.use_all_cores()" + TRAINER.format(level="INFO")).stdout == "done\n"

    @pytest.mark.parametrize(
        ("code", "environment"),
        [
            (TRAINER.format(level="WARNING"), {}),
            (TRAINER.format(level="INFO"), {"OMP_NUM_THREADS": "1"}),
            (TRAINER.format(level="INFO"), {"MXNET_OMP_MAX_THREADS": "1"}),
            ("import sys; sys.modules['joblib'] = None" + TRAINER.format(level="INFO"), {}),
            (TRAINER.format(level="INFO"), {"LOKY_MAX_CPU_COUNT": "two"}),
            (TRAINER.format(level="INFO"), {"LOKY_MAX_CPU_COUNT": ""}),
            ("import mxnet, sys\nif os.fork(): sys.exit(os.wait()[1])" + TRAINER.format(level="INFO"), {}),
        ],
        ids=["level", "OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS", "no joblib", "limit", "empty limit", "fork"],
    )
    def test_are_not_noted(self, code, environment):
        assert run(code, **environment).stdout == "done\n"

    def test_are_not_noted_in_a_process_that_shares_them_with_others(self):
        """A worker of a DataLoader is one; a forked one."""
        code = "import multiprocessing\ndef work():\n"
        code += "".join(f"    {line}\n" for line in TRAINER.format(level="INFO").splitlines())
        code += "process = multiprocessing.get_context('fork').Process(target=work); process.start(); process.join()"
        assert run(code).stdout == "done\n"
