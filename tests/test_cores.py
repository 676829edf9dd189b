"""All cores are used if asked for, and a trainer says it if some are idle, once and only where it is true."""

import os

import pytest

from multitrainer import cores
from support import run_python

joblib = pytest.importorskip("joblib")

CORES = joblib.cpu_count(only_physical_cores=True)
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
import mxnet, joblib
from multitrainer.cores import count_threads
joblib.cpu_count = lambda **_: count_threads() + 6  # as on a machine with more cores
try:
    multitrainer.use_all_cores()
except RuntimeError as error:
    print(str(error).partition(":")[2])
joblib.cpu_count = lambda **_: count_threads()
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


@pytest.mark.parametrize("value", ["0", "-1", "two", "2,1", "1.5"])
@pytest.mark.parametrize("name", cores.VARIABLES)
def test_what_mxnet_cannot_read_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number of at least 1"):
        cores.use_all_cores()


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
        ],
        ids=str,
    )
    def test_are_those_of_the_launcher(self, monkeypatch, environment, ranks):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert cores._count_local_ranks() == ranks

    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
    def test_share_no_cores_if_each_is_bound_to_its_own(self):
        """This process is the launcher, and has more CPUs than the rank that it binds to one of them."""
        cpu = min(os.sched_getaffinity(0))
        code = "from multitrainer.cores import _count_ranks_on_cpus; print(_count_ranks_on_cpus())"
        cpus = len(os.sched_getaffinity(0))
        assert run(code, HOROVOD_LOCAL_SIZE=str(cpus)).stdout == f"{cpus}\n"
        assert run(f"os.sched_setaffinity(0, [{cpu}])\n{code}", HOROVOD_LOCAL_SIZE=str(cpus)).stdout == "1\n"


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
        ],
        ids=["level", "OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS", "no joblib"],
    )
    def test_are_not_noted(self, code, environment):
        assert run(code, **environment).stdout == "done\n"

    def test_are_not_noted_in_a_process_that_shares_them_with_others(self):
        """A worker of a DataLoader is one; a forked one."""
        code = "import multiprocessing\ndef work():\n"
        code += "".join(f"    {line}\n" for line in TRAINER.format(level="INFO").splitlines())
        code += "process = multiprocessing.get_context('fork').Process(target=work); process.start(); process.join()"
        assert run(code).stdout == "done\n"
