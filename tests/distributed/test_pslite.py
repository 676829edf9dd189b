"""Parameter servers know the multipliers, and all ranks agree, whether servers or workers update."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
from cluster import run

import preloaded
from support import PATIENCE, mlp, snapshot

pytestmark = pytest.mark.slow
WORKER = pathlib.Path(__file__).parent / "pslite_worker.py"
RUNS = int(os.environ.get("MULTITRAINER_RUNS", "3"))
BOUND = 1e-6  # float32: two ranks sum in another order than one process with the whole batch

SERVERS = {"kvstore": "dist_sync", "update_on_kvstore": True}
FIRST, SECOND = {"net_dense0_weight", "net_dense0_bias"}, {"net_dense1_weight", "net_dense1_bias"}


class Result:
    """What the workers of one run wrote."""

    def __init__(self, folder, workers):
        self.ranks = []
        for rank in range(workers):
            with np.load(folder / f"rank{rank}.npz") as arrays:
                self.ranks.append(dict(arrays))
        self.folder = folder
        self.about = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(workers)]

    def assert_ranks_agree(self):
        for other in self.ranks[1:]:
            for key, array in self.ranks[0].items():
                assert (array == other[key]).all(), key

    def distance(self, other):
        """Return the largest difference to the first rank of another run, over all steps."""
        assert self.ranks[0].keys() == other.ranks[0].keys()
        return max(float(abs(array - other.ranks[0][key]).max()) for key, array in self.ranks[0].items())

    def moved(self, one, two):
        """Return the names whose arrays differ between two steps."""
        first = self.ranks[0]
        names = {key.split("/")[1] for key in first}
        return {name for name in names if (first[f"{one}/{name}"] != first[f"{two}/{name}"]).any()}

    @property
    def errors(self):
        return [error for about in self.about for error in about["errors"]]


@pytest.fixture
def train(tmp_path_factory):
    def run_case(workers=2, servers=2, fresh=False, **case):
        folder = tmp_path_factory.mktemp("run")
        if "dist" in case["kvstore"]:
            run(WORKER, json.dumps(case), folder, workers=workers, servers=servers, fresh=fresh)
        else:
            command = [*preloaded.command("worker0"), str(WORKER), json.dumps(case), str(folder)]
            subprocess.run(command, check=True, timeout=PATIENCE)
        return Result(folder, workers)

    return run_case


def train_alone(train, **case):
    """Train the same case in one process without a distributed kvstore."""
    return train(**{**case, "kvstore": "local", "update_on_kvstore": None}, workers=1)


class TestWorkersUpdate:
    """The workers update by default on a synchronous store with dense gradients."""

    @pytest.mark.parametrize("kvstore", ["dist_sync", "dist_device_sync"])
    def test_all_ranks_agree_run_after_run(self, train, kvstore):
        servers = train(**{**SERVERS, "kvstore": kvstore})
        servers.assert_ranks_agree()
        for _ in range(RUNS):
            workers = train(kvstore=kvstore, fresh=True)
            assert [about["update_on_kvstore"] for about in workers.about] == [False, False]
            workers.assert_ranks_agree()
            assert workers.distance(servers) == 0
        assert workers.distance(train_alone(train)) < BOUND

    @pytest.mark.parametrize("update_on_kvstore", [None, True])
    def test_weights_that_predict_while_the_store_is_begun(self, train, update_on_kvstore):
        case = {"kvstore": "dist_sync", "convolution": True, "groups": {1: 0.1}, "update_on_kvstore": update_on_kvstore}
        result = train(**case, predicting=True)
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case)) < BOUND

    def test_everything_can_change_in_mid_training(self, train):
        case = {
            "steps": 6,
            "optimizer_params": {"momentum": 0.9, "wd": 0.01},
            "groups": {"1": 2},
            "changes": [
                [1, "set_lr_mult", 0, 0.5],
                [2, "set_learning_rate", None, 0.01],
                [3, "assign", 0, 0],
                [4, "set_wd_mult", 1, 0],
                [5, "schedule", 1, 0.25],
            ],
        }
        result = train(kvstore="dist_sync", **case)
        assert result.errors == []
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case)) < BOUND
        assert result.moved(2, 5) == SECOND

    @pytest.mark.parametrize("at", [0, 2])
    def test_parameters_are_added(self, train, at):
        changes = [[at, "add", 1, 0.5], [4, "set_lr_mult", 0, 0], [5, "set_lr_mult", 0, 1]]
        case = {"steps": 7, "built_on": 0, "optimizer_params": {"momentum": 0.9}, "changes": changes}
        result = train(kvstore="dist_sync", **case)
        assert result.errors == []
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case)) < BOUND
        assert result.moved(at, at + 1) == FIRST | SECOND
        assert result.moved(3, 4) == SECOND

    @pytest.mark.parametrize("contexts", [1, 2])
    def test_added_parameters_have_the_values_of_rank_0_in_the_next_forward_pass(self, train, contexts):
        case = {"kvstore": "dist_sync", "steps": 2, "built_on": 0, "changes": [[1, "add", 1, 1]]}
        one, two = train(**case, contexts=contexts, ready=True).ranks
        rng = np.random.RandomState(1)
        x, y = rng.randn(8, 3), rng.randn(8, 2)
        hidden = x @ one["0/net_dense0_weight"].T + one["0/net_dense0_bias"]
        weight = one["0/net_dense1_weight"]  # of rank 0; rank 1 has others until they are added
        assert (weight != two["0/net_dense1_weight"]).all()
        gradient = (hidden @ weight.T + one["0/net_dense1_bias"] - y).T @ hidden / 2
        for rank in (one, two):
            assert abs(rank["1/net_dense1_weight"] - (weight - 0.05 / 8 * gradient)).max() < BOUND

    @pytest.mark.parametrize("late", [0, 1])
    def test_if_some_ranks_add_nothing_all_ranks_raise(self, train, late):
        changes = [[1, "add", 1, 1, 1 - late], [2, "add", 1, 1]]
        case = {"kvstore": "dist_sync", "steps": 4, "built_on": 0, "changes": changes}
        result = train(**case, ready=True, no_step_after_errors=True)
        assert len(result.errors) == 2
        for _, kind, text in result.errors:
            assert kind == "RuntimeError"
            assert "some of the 2 ranks only: call trainer.add on every rank" in text
        for step in (2, 3):
            for name in FIRST | SECOND:
                one, two = (ranks[f"{step}/{name}"] for ranks in result.ranks)
                assert (one == two).all()

    def test_unfrozen_in_mid_training(self, train):
        result = train(kvstore="dist_sync", steps=4, groups={"0": 0}, changes=[[2, "set_lr_mult", 0, 1]])
        result.assert_ranks_agree()
        assert result.moved(0, 1) == SECOND
        assert result.moved(1, 3) == FIRST | SECOND

    def test_adamw(self, train):
        """With an epsilon larger than rounding errors of gradients."""
        case = {"optimizer": "adamw", "optimizer_params": {"epsilon": 0.01}, "groups": {"0": 0.5}, "steps": 4}
        result = train(kvstore="dist_sync", **case, changes=[[2, "set_lr_mult", 0, 0]])
        assert result.errors == []
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case, changes=[[2, "set_lr_mult", 0, 0]])) < BOUND
        assert result.moved(1, 3) == SECOND

    def test_schedule(self, train):
        result = train(kvstore="dist_sync", schedule=0)
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, schedule=0)) < BOUND

    @pytest.mark.parametrize("contexts", [1, 2])
    def test_groups_with_optimizers_of_their_own(self, train, contexts):
        case = {
            "own": {"1": ["nag", {"learning_rate": 0.02, "momentum": 0.5}]},
            "optimizer_params": {"momentum": 0.9},
            "changes": [[1, "set_lr_mult", 1, 0], [3, "set_lr_mult", 1, 0.5], [4, "set_lr_mult", 0, 0]],
            "steps": 6,
            "contexts": contexts,
        }
        result = train(kvstore="dist_sync", **case)
        assert result.errors == []
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case)) < BOUND
        assert (result.moved(0, 2), result.moved(3, 5)) == (FIRST, SECOND)

    def test_two_contexts_a_worker(self, train):
        case = {"contexts": 2, "groups": {"0": 0.5}, "batchnorm": True}
        result = train(kvstore="dist_sync", **case)
        for key, array in result.ranks[0].items():
            if "running" not in key:  # every rank keeps statistics of its own batches, as under stock
                assert (array == result.ranks[1][key]).all(), key

    def test_ready_kvstore_object_and_weights_that_differ_at_first(self, train):
        """Every rank begins with weights of its own; those of the first hold, as where servers update."""
        ready = train(kvstore="dist_sync", ready=True, fresh=True)
        ready.assert_ranks_agree()
        assert [about["update_on_kvstore"] for about in ready.about] == [False, False]

    @pytest.mark.parametrize("max_grad_norm", [None, 0.05])
    @pytest.mark.parametrize("contexts", [1, 2])
    def test_gradients_are_clipped_and_measured_as_in_one_process(self, train, contexts, max_grad_norm):
        case = {
            **{"figures": True, "max_grad_norm": max_grad_norm, "contexts": contexts, "groups": {"0": 0.5}, "steps": 4},
            "changes": [[2, "set_lr_mult", 0, 0]],
        }
        result = train(kvstore="dist_sync", **case)
        result.assert_ranks_agree()
        alone = train_alone(train, **{**case, "contexts": 1})
        assert result.distance(alone) < BOUND
        for step, expected in enumerate(alone.about[0]["figures"]):
            norms, ratios = expected
            assert norms["total"] > 0.05
            assert (norms["0"] == 0, ratios["0"] == 0) == (step >= 2, step >= 2)
            for about in result.about:
                assert about["figures"][step][0] == pytest.approx(norms, rel=1e-6)
                assert about["figures"][step][1] == pytest.approx(ratios, rel=1e-5)  # float32 weights, small updates

    @pytest.mark.parametrize("update_on_kvstore", [None, True])
    def test_gradient_compression_is_refused_before_it_reaches_the_connection(self, train, update_on_kvstore):
        """MXNet 1.9.1 has none for a distributed kvstore. Stock's error comes with the connection, for all trainers."""
        case = {"kvstore": "dist_sync", "compression_params": {"type": "2bit", "threshold": 0.5}}
        for stock, message in ((False, "Leave compression_params out"), (True, "Compression not supported")):
            result = train(**case, update_on_kvstore=update_on_kvstore, stock=stock, ready=True)
            assert len(result.errors) == 2 * 3
            assert all(message in text for _, _, text in result.errors)


class TestAccumulation:
    """A rank collects gradients by itself; one exchange and one update follow."""

    @pytest.mark.parametrize("update_on_kvstore", [None, True])
    def test_a_quarter_of_the_exchanges(self, train, update_on_kvstore):
        case = {"kvstore": "dist_sync", "update_on_kvstore": update_on_kvstore, "ready": "same weights", "steps": 8}
        every, fourth = train(**case), train(**case, accumulate=4)
        fourth.assert_ranks_agree()
        assert fourth.distance(train_alone(train, **case, accumulate=4)) < BOUND
        assert {step: bool(fourth.moved(step - 1, step)) for step in range(1, 8)} == {
            step: step in (3, 7) for step in range(1, 8)
        }
        for one, other in zip(every.about, fourth.about):
            assert sum(one["values"]) == 4 * sum(other["values"]) > 0

    @pytest.mark.parametrize("update_on_kvstore", [None, True])
    def test_weights_that_differ_at_first_agree_from_the_first_step_on(self, train, update_on_kvstore):
        case = {"kvstore": "dist_sync", "update_on_kvstore": update_on_kvstore, "ready": True, "steps": 5}
        result = train(**case, accumulate=4)
        result.assert_ranks_agree()
        assert result.errors == []

    def test_everything_can_change_between(self, train):
        case = {
            "steps": 10,
            "accumulate": 3,
            "optimizer_params": {"momentum": 0.9},
            "changes": [[1, "set_lr_mult", 0, 0], [4, "set_lr_mult", 0, 0.5], [5, "assign", 1, 2]],
            "schedule": 0,
            "flush_after": [[9]],
        }
        result = train(kvstore="dist_sync", **case)
        assert result.errors == []
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, **case)) < BOUND
        assert result.moved(0, 2) == SECOND
        assert result.moved(3, 5) == result.moved(8, 9) == FIRST | SECOND

    @pytest.mark.parametrize(
        "case",
        [
            {"accumulate_on": {"ranks": [1], "steps": 4}},
            {"flush_after": [[0, 1]]},
            {"flush_after": [[1, 0]]},  # as many steps were collected before, but the other rank adds one
        ],
        ids=str,
    )
    def test_ranks_that_differ(self, train, case):
        result = train(kvstore="dist_sync", accumulate=3, steps=4, ends_at_error=True, **case)
        for about in result.about:
            assert ["the 2 ranks collected" in text for _, _, text in about["errors"]] == [True]

    def test_states_can_be_saved_after_an_update(self, train):
        case = {"kvstore": "dist_sync", "servers": 1, "optimizer": "adam", "accumulate": 2, "steps": 6}
        first = train(**case, save_at=4)
        assert first.errors == []
        again = train(**case, resume=str(first.folder), first=4)
        assert all((array == first.ranks[0][key]).all() for key, array in again.ranks[0].items())
        refused = train(**case, save_at=3)
        saves = [text for what, _, text in refused.errors if what == "save"]
        assert len(saves) == 3  # rank 0 tries twice
        assert all("each of the 2 ranks has collected gradients of its own in 1 of 2 steps" in text for text in saves)
        assert not list(refused.folder.glob("states*"))
        assert refused.distance(first) == 0


class TestRanksThatDiffer:
    """If one rank trains other Parameters than the others, all get an error, and none waits forever."""

    @pytest.mark.parametrize(("setter", "steps"), [("set_lr_mult", {1}), ("assign", {1, 2})])
    def test_one_freezes_alone(self, train, setter, steps):
        """A step notices an assigned multiplier, and leaves its Parameters out."""
        result = train(kvstore="dist_sync", changes=[[1, setter, 0, 0, 1], [2, setter, 0, 1, 1]], steps=4)
        self.assert_all_got_an_error(result, steps)
        result.assert_ranks_agree()

    def test_one_makes_no_backward_pass_for_what_was_unfrozen(self, train):
        changes = {"changes": [[0, "set_lr_mult", 0, 0]], "changes_after_backward": [[1, "set_lr_mult", 0, 1]]}
        result = train(kvstore="dist_sync", **changes, without_backward=[[1, 0]], steps=3)
        self.assert_all_got_an_error(result, {1})
        result.assert_ranks_agree()

    def test_one_makes_no_backward_pass(self, train):
        result = train(kvstore="dist_sync", without_backward=[[1, 0]], steps=3)
        self.assert_all_got_an_error(result, {1})
        result.assert_ranks_agree()

    def assert_all_got_an_error(self, result, steps):
        for about in result.about:
            assert {step for step, kind, text in about["errors"] if kind == "RuntimeError"} == steps
            assert all("the ranks train different Parameters: net_dense" in text for _, _, text in about["errors"])


class TestStates:
    def test_saved_and_resumed_bit_for_bit(self, train):
        """Rank 0 writes, called on all ranks or on itself alone; every rank loads."""
        case = {
            "kvstore": "dist_sync",
            "servers": 1,
            "optimizer": "adam",
            "steps": 5,
            "changes": [[1, "set_lr_mult", 0, 0.5], [2, "set_lr_mult", 1, 0]],
        }
        first = train(**case, save_at=3)
        assert sorted(path.name for path in first.folder.glob("states*")) == ["states", "states of rank 0 alone"]
        again = train(**{**case, "changes": []}, resume=str(first.folder), first=3)
        again.assert_ranks_agree()
        assert again.ranks[0].keys() == {key for key in first.ranks[0] if key[0] in "34"}
        assert all((array == first.ranks[0][key]).all() for key, array in again.ranks[0].items())
        assert again.moved(3, 4) == FIRST

    def test_of_groups_with_optimizers_of_their_own(self, train):
        case = {"kvstore": "dist_sync", "servers": 1, "own": {"1": ["adam", {}]}, "steps": 5}
        first = train(**case, save_at=3)
        again = train(**case, resume=str(first.folder), first=3)
        again.assert_ranks_agree()
        assert all((array == first.ranks[0][key]).all() for key, array in again.ranks[0].items())
        assert again.moved(3, 4) == FIRST | SECOND

    def test_states_on_servers_are_refused(self, train):
        result = train(**SERVERS, servers=1, optimizer_params={"momentum": 0.9}, save_at=1, steps=2)
        kinds = sorted([error[:2] for error in about["errors"]] for about in result.about)
        each = [["save", "RuntimeError"], ["load", "RuntimeError"]]
        assert kinds == [each, [*each, each[0]]]  # the scheduler decides which worker is rank 0, which saves once more
        assert all("update_on_kvstore=False" in error[2] for error in result.errors)
        assert not list(result.folder.glob("states*"))

    def test_a_refused_save_before_the_first_step_ships_nothing(self, train):
        """Multipliers that are set between the refusal and the first step reach the servers."""
        case = {"optimizer_params": {"momentum": 0.9}, "steps": 2}
        changes = [[0, "set_lr_mult", 0, 0.5]]
        refused = train(**SERVERS, **case, changes=changes, save_at=0)
        assert {kind for _, kind, _ in refused.errors} == {"RuntimeError"}
        assert refused.distance(train(**SERVERS, **case, changes=changes)) == 0


class TestServersUpdate:
    """The servers update if asked to, and always under dist_async."""

    @pytest.mark.parametrize("kvstore", ["dist_sync", "dist_async"])
    def test_parameters_are_added_before_the_first_step_only(self, train, kvstore):
        changes = [[0, "add", 1, 0.5], [1, "add", 2, 1]]
        case = {"kvstore": kvstore, "update_on_kvstore": True, "built_on": 0, "layers": 3, "changes": changes}
        result = train(**case, workers=1)
        assert result.moved(0, 2) == FIRST | SECOND
        ((step, kind, text),) = result.errors
        assert (step, kind) == (1, "RuntimeError")
        assert "'net_dense2_bias' cannot be added any more" in text
        assert result.distance(train_alone(train, **{**case, "changes": changes[:1]})) < BOUND

    @pytest.mark.parametrize(
        "setter",
        [
            {"groups": {"0": 0.5, "1": 2}},
            {"on_parameters": {"0": 0.5, "1": 2}},
            {"optimizer_set_lr_mult": {**dict.fromkeys(FIRST, 0.5), **dict.fromkeys(SECOND, 2)}},
        ],
        ids=lambda setter: next(iter(setter)),
    )
    def test_multipliers_act_however_they_are_set(self, train, setter):
        result = train(**SERVERS, **setter)
        result.assert_ranks_agree()
        assert result.distance(train_alone(train, groups={"0": 0.5, "1": 2})) < BOUND

    @pytest.mark.parametrize("kvstore", ["dist_sync", "dist_async"])
    def test_frozen_layers_stay(self, train, kvstore):
        result = train(kvstore=kvstore, update_on_kvstore=True, groups={"0": 0}, optimizer_params={"momentum": 0.9})
        assert result.moved(0, 2) == SECOND

    def test_async_multipliers(self, train):
        """With one worker only, because the order of the updates of several is random."""
        case = {"groups": {"0": 0.5, "1": 2}}
        assert train(kvstore="dist_async", workers=1, **case).distance(train_alone(train, **case)) < BOUND

    def test_wd_multipliers(self, train):
        case = {"changes": [[0, "set_wd_mult", 0, 0]], "optimizer_params": {"wd": 0.5}}
        assert train(**SERVERS, **case).distance(train_alone(train, **case)) < BOUND

    def test_updates_are_measured_and_gradients_are_not(self, train):
        """Every worker pulls the weights, and only the servers have the sums of gradients."""
        case = {"figures": True, "groups": {"0": 0.5}}
        result = train(**SERVERS, **case)
        assert result.errors
        for error in result.errors:
            assert error[:2] == ["norms", "RuntimeError"]
            assert "parameter servers have the sums. Let the workers update" in error[2]
        alone = train_alone(train, **case)
        for about in result.about:
            for (_, ratios), (_, expected) in zip(about["figures"], alone.about[0]["figures"]):
                assert ratios == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("stock", [False, True])
    @pytest.mark.parametrize("kvstore", ["dist_sync", "dist_async"])
    def test_adamw_is_refused_before_it_is_sent(self, train, kvstore, stock):
        """A server could not import it, and a synchronous one would give back gradients in place of weights."""
        # `ready`: the servers wait for workers that end before they have a kvstore, and so would this test.
        result = train(kvstore=kvstore, update_on_kvstore=True, optimizer="adamw", stock=stock, ready=True)
        assert len(result.errors) == 2 * 3
        assert all("AdamW cannot run on parameter servers" in text for _, _, text in result.errors)
        assert result.moved(0, 2) == set()

    def test_lars_keeps_the_trajectory_of_stock(self, train):
        # `ready` gives each worker the share of its rank: all begin with the statistics of rank 0.
        case = {**SERVERS, "optimizer": "lars", "optimizer_params": {"momentum": 0.9, "wd": 0.01}}
        case.update(batchnorm=True, ready=True)
        assert train(**case).distance(train(**case, stock=True)) == 0

    def test_stock_loses_the_multipliers(self, train):
        """Under stock Trainer, the same case moves the frozen layer."""
        result = train(**SERVERS, on_parameters={"0": 0}, stock=True)
        assert result.moved(0, 2) == FIRST | SECOND

    def test_freezing_works_after_the_optimizer_was_shipped(self, train):
        changes = [[1, "set_lr_mult", 0, 0], [3, "set_lr_mult", 0, 0.5]]
        result = train(**SERVERS, steps=5, groups={"0": 0.5}, optimizer_params={"momentum": 0.9}, changes=changes)
        assert result.errors == []
        assert result.moved(0, 2) == SECOND
        assert result.moved(2, 4) == FIRST | SECOND
        result.assert_ranks_agree()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["set_lr_mult", 0, 0.25], "lr_mult 0.25 of Parameter 'net_dense0_"),
            (["set_wd_mult", 0, 0], "wd_mult 0.0 of Parameter 'net_dense0_"),
            (["assign", 0, 3], "lr_mult 3.0 of Parameter 'net_dense0_"),
            (["set_learning_rate", None, 0.5], "lr 0.5 of the optimizer"),
            (["optimizer.lr", None, 0.5], "lr 0.5 of the optimizer"),
            (["schedule", 0, 1], "the schedule of Parameter 'net_dense0_"),
            (["optimizer.set", "momentum", 0.5], "momentum 0.5 of the optimizer"),
            (["optimizer.set", "clip_gradient", 0.1], "clip_gradient 0.1 of the optimizer"),
            (["lr_scheduler", None, 0.5], "lr_scheduler <"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_a_change_that_cannot_reach_the_servers_is_refused(self, train, change, message):
        result = train(**SERVERS, changes=[[1, *change]])
        assert len(result.errors) >= 2  # on both ranks
        for step, kind, text in result.errors:
            assert (kind, step >= 1) == ("RuntimeError", True)
            assert message in text
            assert "update_on_kvstore=False" in text

    def test_an_lr_scheduler_that_would_fall_behind_is_refused(self, train):
        """The scheduler on a server counts the updates of each Parameter alone."""
        in_turn = [[1, "set_lr_mult", 0, 0], [3, "set_lr_mult", 0, 1], [3, "set_lr_mult", 1, 0]]
        result = train(**SERVERS, lr_scheduler=0.1, changes=in_turn, steps=4)
        assert {(step, kind) for step, kind, _ in result.errors} == {(3, "RuntimeError")}
        assert all("would fall behind" in text for _, _, text in result.errors)
        one_alone = train(**SERVERS, lr_scheduler=0.1, changes=[[1, "set_lr_mult", 0, 0]], steps=4)
        assert one_alone.errors == []

    def test_schedule_from_the_start_is_refused_at_the_first_step(self, train):
        result = train(**SERVERS, schedule=0, steps=1)
        assert {(step, kind) for step, kind, _ in result.errors} == {(0, "RuntimeError")}

    def test_changed_batch_size_is_refused_as_under_stock(self, train):
        case = {**SERVERS, "batch_sizes": {"1": 4}}
        ours, stock = train(**case), train(**case, stock=True)
        assert ours.errors == stock.errors
        assert {(step, kind) for step, kind, _ in ours.errors} == {(1, "UserWarning")}


class TestWeightAverage:
    @pytest.mark.parametrize("update_on_kvstore", [None, True])
    def test_is_the_same_on_all_ranks(self, train, update_on_kvstore):
        changes = [[1, "set_lr_mult", 0, 0], [3, "set_lr_mult", 0, 1]]
        result = train(
            kvstore="dist_sync",
            update_on_kvstore=update_on_kvstore,
            ready=True,  # the ranks begin with other weights
            average=0.5,
            steps=5,
            changes=changes,
        )
        assert result.errors == []
        result.assert_ranks_agree()
        expected = snapshot(mlp(batchnorm=False))
        for step in range(5):
            for name in FIRST | SECOND:
                expected[name] = 0.5 * expected[name] + 0.5 * result.ranks[0][f"{step}/{name}"]
                found = result.ranks[0][f"{step}/average {name}"]
                assert abs(found - expected[name]).max() <= 1e-6 * abs(expected[name]).max()
        assert {path.name for path in result.folder.glob("average*")} == {"average"}
