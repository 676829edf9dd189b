"""`DistributedMultiLRTrainer` under `horovodrun`: all ranks hold the same weights, and multipliers act on each."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import gan
import horovod_worker
import numpy as np
import pytest

import preloaded
from multitrainer import MultiLRTrainer
from support import PATIENCE, moved

HERE = pathlib.Path(__file__).parent
BOUND = 1e-6  # float32: two ranks sum in another order than one process with the whole batch
FP16 = 1e-3  # rounding of the gradients, times a learning rate of 0.05 and a few steps
FIRST, SECOND = {"net_dense0_weight", "net_dense0_bias"}, {"net_dense1_weight", "net_dense1_bias"}
BATCHNORM = {"net_batchnorm0_" + name for name in ("gamma", "beta", "running_mean", "running_var")}

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed: `tox -e horovod` builds it"
)


@needs_horovod
def test_pillow_reads_jpeg_beside_horovod(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (64, 64), (200, 40, 40)).save(str(tmp_path / "red.jpg"))
    code = "import sys, multitrainer.horovod; from PIL import Image; print(Image.open(sys.argv[1]).getpixel((9, 9)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "red.jpg")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "(200")


class Result:
    """What the ranks of one job wrote."""

    def __init__(self, folder, ranks):
        self.ranks = []
        for rank in ranks:
            with np.load(folder / f"rank{rank}.npz") as arrays:
                self.ranks.append(_by_step(arrays))
        about = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in ranks]
        assert all(one["reduced"] == about[0]["reduced"] for one in about), "the ranks reduced different gradients"
        self.reduced, self.states = about[0]["reduced"], about[0]["states"]
        self.figures = [one["figures"] for one in about]

    @property
    def history(self):
        """The weights of the first rank after every step."""
        return self.ranks[0]

    def assert_ranks_agree(self, but=()):
        for other in self.ranks[1:]:
            for step, (one, two) in enumerate(zip(self.ranks[0], other)):
                assert not moved(one, two) - set(but), f"after step {step}"

    def distance(self, history):
        """Return the largest difference to another history, over all steps."""
        assert len(self.history) == len(history)
        pairs = [(one[name], two[name]) for one, two in zip(self.history, history) for name in one]
        return max(float(abs(one - two).max()) for one, two in pairs)

    def names(self, step):
        """Return the names under which gradients were reduced at ``step``."""
        return [name for name, *_ in self.reduced[step]]


@pytest.fixture
def train(tmp_path_factory):
    """Return a function that runs a case on ``np`` ranks, and checks that they agree bit for bit after every step."""

    def run_case(np=2, differ=(), **case):
        folder = tmp_path_factory.mktemp("run")
        code, output = horovodrun(folder, case, np)
        assert code == 0, f"horovodrun ended with {code}\n{output}"
        result = Result(folder, case.get("process_set", range(np)))
        result.folder = folder
        result.assert_ranks_agree(differ)
        return result

    return run_case


def horovodrun(folder, case, np=2, timeout=PATIENCE, script="horovod_worker.py", **env):
    """Return the exit code and the output of one job, and end all of its processes in any case."""
    command = [*preloaded.horovodrun(np), str(HERE / script), json.dumps(case), str(folder)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # horovodrun then ends its ranks
        output, _ = process.communicate(timeout=PATIENCE)
        pytest.fail(f"timed out after {timeout} s: {' '.join(command)}\n{output}")
    finally:
        if process.poll() is None:
            process.kill()
        left = _end([int(file.read_text()) for file in folder.glob("pid*")])
    assert not left, f"horovodrun left ranks behind, by process id: {left}\n{output}"
    return process.returncode, output


def _end(pids, patience=60):
    """Wait for processes to end; kill and return those that do not."""
    deadline = time.monotonic() + patience
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in pids if _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _by_step(arrays):
    history = {}
    for key, array in arrays.items():
        step, name = key.split("/")
        history.setdefault(int(step), {})[name] = array
    return [history[step] for step in sorted(history)]


def first_weights(**case):
    """Return the first weights of a case."""
    return {name: param.data().asnumpy() for name, param in horovod_worker.make_net(case, 0).collect_params().items()}


@needs_horovod
@pytest.mark.slow
class TestAllRanksAgree:
    """All ranks agree: they begin with other weights, and the `train` fixture compares them after every step."""

    @pytest.mark.parametrize(
        "optimizer", [("sgd", {"momentum": 0.9, "wd": 0.01}), ("adam", {})], ids=["sgd with momentum", "adam"]
    )
    def test_as_one_process_on_the_whole_batch(self, train, optimizer):
        name, params = optimizer
        case = {"optimizer": name, "optimizer_params": params, "groups": {0: 0.1, 1: 3}, "steps": 5}
        assert train(**case).distance(horovod_worker.train_alone(case)) < (BOUND if name == "sgd" else 1e-4)

    @pytest.mark.parametrize("options", [{}, {"num_groups": 2}, {"gradient_predivide_factor": 2.0}], ids=str)
    def test_groups_with_optimizers_of_their_own(self, train, options):
        case = {
            "own": {1: ["nag", {"learning_rate": 0.02, "momentum": 0.5, "rescale_grad": 0.5}]},
            "optimizer_params": {"momentum": 0.9},
            "changes": [[1, "set_lr_mult", 1, 0], [3, "set_lr_mult", 1, 0.5], [4, "set_lr_mult", 0, 0]],
            "steps": 6,
            **options,
        }
        result = train(**case)
        assert result.distance(horovod_worker.train_alone(case)) < BOUND
        assert moved(*result.history[3:5]) == SECOND

    def test_weights_that_are_initialized_by_the_first_forward(self, train):
        case = {"deferred": True, "groups": {0: 0.1}}
        assert train(**case).distance(horovod_worker.train_alone(case)) < BOUND

    def test_weights_that_have_predicted_before(self, train):
        case = {"convolution": True, "groups": {1: 0.1}}
        assert train(**case).distance(horovod_worker.train_alone(case)) < BOUND

    @pytest.mark.parametrize("hybridize", [False, True])
    def test_a_frozen_batchnorm_does_not_move(self, train, hybridize):
        case = {"batchnorm": True, "hybridize": hybridize, "groups": {1: 0}}
        result = train(**case)
        assert result.distance(horovod_worker.train_alone(case)) < BOUND
        assert moved(first_weights(**case), result.history[-1]) == FIRST | SECOND

    def test_running_statistics_stay_those_of_each_rank(self, train):
        result = train(batchnorm=True, differ={"net_batchnorm0_running_mean", "net_batchnorm0_running_var"})
        assert moved(*[rank[-1] for rank in result.ranks]) <= BATCHNORM

    def test_a_weight_average(self, train):
        """The ranks begin with other weights, and `train` checks that they agree on the averages."""
        result = train(average=0.5, steps=5, changes=[[0, "set_lr_mult", 0, 0], [2, "set_lr_mult", 0, 1]])
        expected = first_weights()
        for arrays in result.history:
            for name in FIRST | SECOND:
                expected[name] = 0.5 * expected[name] + 0.5 * arrays[name]
                assert abs(arrays[f"average {name}"] - expected[name]).max() <= 1e-6 * abs(expected[name]).max()
        assert {path.name for path in result.folder.glob("average*")} == {"average of rank 0"}


@needs_horovod
@pytest.mark.slow
class TestGradients:
    @pytest.mark.parametrize("max_grad_norm", [None, 0.05])
    @pytest.mark.parametrize("options", [{}, {"gradient_predivide_factor": 2}], ids=str)
    def test_are_clipped_and_measured_as_in_one_process(self, train, options, max_grad_norm):
        case = {"max_grad_norm": max_grad_norm, "groups": {0: 0.5}, "steps": 4, "changes": [[2, "set_lr_mult", 0, 0]]}
        result, alone = train(**case, **options), []
        assert result.distance(horovod_worker.train_alone(case, alone)) < BOUND
        for figures in result.figures:
            for step, ((norms, ratios), expected) in enumerate(zip(figures, alone)):
                assert norms["total"] > 0.05
                assert norms == pytest.approx(expected[0], rel=1e-6)
                assert ratios == pytest.approx(expected[1], rel=1e-5)  # float32 weights, small updates
                assert (norms["0"] == 0, ratios["0"] == 0) == (step >= 2, step >= 2)


@needs_horovod
@pytest.mark.slow
class TestMultipliers:
    def test_m_means_m(self, train):
        multiplied = train(groups={0: 0.5, 1: 0.5})
        assert multiplied.distance(train(optimizer_params={"learning_rate": 0.025}).history) == 0

    def test_setters_and_schedules(self, train):
        case = {
            "schedule": 1,  # frozen at the first update
            "changes": [[2, "set_lr_mult", 0, 0.1], [3, "set_learning_rate", None, 0.01], [3, "set_wd_mult", 0, 0]],
            "optimizer_params": {"wd": 0.01, "momentum": 0.9},
            "steps": 5,
        }
        result = train(**case)
        assert result.distance(horovod_worker.train_alone(case)) < BOUND
        assert moved(first_weights(), result.history[0]) == FIRST
        assert [len(names) for names in map(result.names, range(5))] == [2, 4, 4, 4, 4]


@needs_horovod
@pytest.mark.slow
class TestFrozen:
    def test_a_frozen_layer_stays_and_is_not_reduced(self, train):
        result = train(groups={0: 0}, optimizer_params={"momentum": 0.9})
        assert moved(first_weights(), result.history[-1]) == SECOND
        assert result.names(0) == ["2", "3"]  # by index in the sorted Parameters
        assert result.states[-1] == [2, 3]

    @pytest.mark.parametrize("options", [{}, {"num_groups": 2}, {"compression": "fp16"}], ids=str)
    def test_freezing_and_unfreezing_in_mid_training(self, train, options):
        case = {
            "changes": [[2, "set_lr_mult", 0, 0], [4, "set_lr_mult", 0, 0.5], [4, "set_lr_mult", 1, 0]],
            "optimizer_params": {"momentum": 0.9, "wd": 0.01},
            "hybridize": True,
            "steps": 6,
            **options,
        }
        result = train(**case)
        assert result.distance(horovod_worker.train_alone(case)) < (FP16 if "compression" in options else BOUND)
        trained = [moved(one, two) for one, two in zip([first_weights(), *result.history], result.history)]
        assert trained == [FIRST | SECOND] * 2 + [SECOND] * 2 + [FIRST] * 2
        assert [sum(call[1] for call in calls) for calls in result.reduced] == [4, 4, 2, 2, 2, 2]

    def test_a_network_that_is_all_frozen(self, train):
        result = train(groups={0: 0, 1: 0}, changes=[[1, "set_lr_mult", 1, 1]], num_groups=2)
        assert not moved(first_weights(), result.history[0])
        assert [len(calls) for calls in result.reduced] == [0, 2, 2]

    def test_ranks_that_freeze_differently_get_an_error(self, tmp_path):
        """Rank 1 alone freezes the first layer before the second step, for which plain Horovod would wait forever."""
        code, output = horovodrun(tmp_path, {"changes": [[1, "set_lr_mult", 0, 0, 1]]})
        assert code != 0
        for rank in (0, 1):
            errors = [
                line
                for line in output.splitlines()
                if f"[{rank}]<stderr>:RuntimeError: the ranks train different" in line
            ]
            assert errors, output
            assert "net_dense0_bias, net_dense0_weight (2 of 4)" in errors[0]


@needs_horovod
@pytest.mark.slow
class TestAccumulation:
    @pytest.mark.parametrize("options", [{}, {"num_groups": 2}], ids=str)
    def test_one_exchange_for_several_steps(self, train, options):
        case = {
            "accumulate": 3,
            "steps": 9,
            "optimizer_params": {"momentum": 0.9},
            "changes": [[1, "set_lr_mult", 0, 0], [4, "set_lr_mult", 0, 0.5], [7, "set_lr_mult", 1, 2]],
            **options,
        }
        result = train(**case)
        assert result.distance(horovod_worker.train_alone(case)) < BOUND
        assert [sum(call[1] for call in calls) for calls in result.reduced] == [0, 0, 2, 0, 0, 4, 0, 0, 4]

    def test_states_between_two_updates_are_refused(self, tmp_path):
        code, output = horovodrun(tmp_path, {"accumulate": 3, "save_at": 2})
        assert code != 0
        assert "each of the 2 ranks has collected gradients of its own in 2 of 3 steps" in output
        assert not list(tmp_path.glob("states*"))


@needs_horovod
@pytest.mark.slow
class TestAdd:
    @pytest.mark.parametrize("options", [{}, {"np": 3, "process_set": [1, 2]}], ids=["all", "process set"])
    def test_before_the_first_step_as_one_process(self, train, options):
        case = {"built_on": 0, "changes": [[0, "add", 1, 0.5]], "optimizer_params": {"momentum": 0.9}}
        assert train(**case, **options).distance(horovod_worker.train_alone(case)) < BOUND

    def test_in_mid_training_ranks_agree_from_then_on(self, train):
        """Until it is added, the second layer has other weights on rank 1."""
        result = train(differ=SECOND, built_on=0, steps=4, changes=[[1, "add", 1, 0.5], [3, "set_lr_mult", 1, 0]])
        one, two = result.ranks
        assert moved(one[0], two[0]) == SECOND
        for step in (1, 2, 3):
            assert not moved(one[step], two[step])
        assert moved(one[0], one[1]) == FIRST | SECOND
        assert moved(one[2], one[3]) == FIRST
        assert [len(calls) for calls in result.reduced] == [2, 4, 4, 2]

    def test_ranks_that_do_not_all_add_get_an_error(self, tmp_path):
        """Rank 1 alone adds the second layer, where Horovod would wait for its broadcast forever."""
        code, output = horovodrun(tmp_path, {"built_on": 0, "changes": [[1, "add", 1, 1, 1]]})
        assert code != 0
        for rank in (0, 1):
            assert f"[{rank}]<stderr>:RuntimeError: Parameters were added to the trainers of some" in output


@needs_horovod
@pytest.mark.slow
class TestStates:
    @pytest.mark.parametrize("options", [{}, {"np": 3, "process_set": [1, 2]}], ids=["all", "process set"])
    def test_saved_and_resumed_bit_for_bit(self, train, options):
        """The first rank writes, every rank loads."""
        case = {"optimizer": "adam", "steps": 5, "hybridize": True, **options}
        first = train(**case, save_at=3, changes=[[1, "set_lr_mult", 0, 0.5], [2, "set_lr_mult", 1, 0]])
        assert [path.name for path in first.folder.glob("states*")] == ["states"]
        again = train(**case, resume=str(first.folder), first=3)
        assert not any(moved(one, two) for one, two in zip(first.history[3:], again.history))
        assert len(again.history) == 2
        assert moved(*again.history) == FIRST

    def test_of_groups_with_optimizers_of_their_own(self, train):
        case = {"own": {1: ["adam", {}]}, "steps": 5}
        first = train(**case, save_at=3)
        again = train(**case, resume=str(first.folder), first=3)
        assert not any(moved(one, two) for one, two in zip(first.history[3:], again.history))
        assert moved(*again.history) == FIRST | SECOND


@needs_horovod
@pytest.mark.slow
class TestHorovodsOwnArguments:
    def test_num_groups(self, train):
        result = train(num_groups=2)
        assert result.distance(horovod_worker.train_alone({})) < BOUND
        assert [call[:2] for call in result.reduced[0]] == [["0:1", 2], ["2:3", 2]]

    def test_compression(self, train):
        result = train(compression="fp16")
        assert 0 < result.distance(horovod_worker.train_alone({})) < FP16
        assert {call[2] for calls in result.reduced for call in calls} == {"float16"}

    def test_gradient_predivide_factor_and_prefix(self, train):
        result = train(gradient_predivide_factor=2.0, prefix="head.")
        assert result.distance(horovod_worker.train_alone({})) < BOUND
        assert result.reduced[0] == [[f"head.{index}", 1, "float32", 0.5] for index in range(4)]

    def test_process_set(self, train):
        case = {"groups": {0: 0.1}}
        assert train(np=3, process_set=[1, 2], **case).distance(horovod_worker.train_alone(case)) < BOUND


@needs_horovod
@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefixes", "names"),
    [([None, None], ["", "trainer1."]), (["G.", "D."], ["G.", "D."])],
    ids=["by default", "of the user"],
)
def test_a_gan_equals_one_process(tmp_path, prefixes, names):
    """Two trainers exchange gradients under names of their own, in turn and at the same time."""
    case = {"prefixes": prefixes, "names": names}
    code, output = horovodrun(tmp_path, case, timeout=180, script="horovod_gan_worker.py")
    assert code == 0, output
    networks = gan.make_networks()
    trainers = {name: MultiLRTrainer(net, *gan.OPTIMIZER) for name, net in networks.items()}
    expected = gan.train(networks, trainers, 5, change=gan.freeze_and_unfreeze(networks, trainers))
    gan.assert_equal_to_one_process(tmp_path, expected)


@needs_horovod
class TestOneProcess:
    """Without `horovodrun` Horovod is a job of one rank; it is initialized in a process of its own."""

    @pytest.fixture
    def python(self):
        def run(code):
            path = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
            command = [sys.executable, "-W", "ignore", "-c", PREAMBLE + code]
            env = {**os.environ, "PYTHONPATH": path}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        return run

    def test_init_must_come_first(self, python):
        out = python(
            "try: make(net)\n"
            "except ValueError as error: print(error)\n"
            "print(all(param._trainer is None for param in net.collect_params().values()))\n"
        )
        assert out == "Horovod has not been initialized; use hvd.init().\nTrue\n"

    def test_two_contexts_of_one_process_are_refused(self, python):
        out = python("hvd.init()\ntry: make(mlp(CONTEXTS))\nexcept ValueError as error: print(error)\n")
        assert "on 2 contexts" in out
        assert "one process for each device" in out

    def test_a_distributed_optimizer_is_refused(self, python):
        out = python(
            "hvd.init()\n"
            "try: make(net, hvd.DistributedOptimizer(mx.optimizer.SGD()))\n"
            "except TypeError as error: print(error)\n"
        )
        assert "not a DistributedOptimizer around it" in out

    def test_a_distributed_optimizer_of_a_group_is_refused(self, python):
        out = python(
            "from multitrainer import ParamGroup\n"
            "hvd.init()\n"
            "try: make([net, ParamGroup(net[1], optimizer=hvd.DistributedOptimizer(mx.optimizer.SGD()))])\n"
            "except TypeError as error: print(error)\n"
        )
        assert "not a DistributedOptimizer around it" in out

    def test_a_list_of_parameters_keeps_its_order(self, python):
        out = python(
            "hvd.init()\n"
            "params = list(net.collect_params().values())[::-1]\n"
            "trainer = make(params)\n"
            "print(trainer._params == params, repr(trainer))\n"
        )
        assert out == "True DistributedMultiLRTrainer(SGD, learning_rate=0.01, 1 groups, 4 parameters, 0 frozen)\n"

    def test_examples(self, python):
        assert python("print(doctest.testmod(multitrainer.horovod))\n") == "TestResults(failed=0, attempted=8)\n"


PREAMBLE = """
import doctest
import multitrainer.horovod
import horovod.mxnet as hvd
import mxnet as mx
from multitrainer.horovod import DistributedMultiLRTrainer as make_trainer
from support import CONTEXTS, mlp
net = mlp(batchnorm=False)
make = lambda params, optimizer="sgd": make_trainer(params, optimizer)
"""


def test_without_horovod_it_says_how_to_build_it():
    code = "import sys; sys.modules['horovod'] = None; import multitrainer; import multitrainer.horovod"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "ImportError: multitrainer.horovod needs Horovod" in done.stderr
    assert "pip install --no-build-isolation 'multitrainer[horovod]'" in done.stderr
