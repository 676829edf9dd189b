"""Several trainers in one process on parameter servers: a GAN, cross-validation, and what cannot work raises."""

import json
import pathlib

import gan
import pytest
from cluster import run

from multitrainer import MultiLRTrainer

pytestmark = pytest.mark.slow
WORKER = pathlib.Path(__file__).parent / "two_trainers_worker.py"
PATIENCE = 180  # seconds; a hang fails


def train_alone(steps, changes=True):
    networks = gan.make_networks()
    trainers = {name: MultiLRTrainer(net, *gan.OPTIMIZER) for name, net in networks.items()}
    change = gan.freeze_and_unfreeze(networks, trainers) if changes else lambda step: None
    return gan.train(networks, trainers, steps, change=change)


@pytest.mark.parametrize(
    "scenario", ["two names", "one object", "a name beside an object", "the store of another trainer"]
)
def test_a_gan_equals_one_process(tmp_path, scenario):
    run(WORKER, scenario, tmp_path, servers=2, timeout=PATIENCE)
    gan.assert_equal_to_one_process(tmp_path, train_alone(5))


@pytest.mark.parametrize("scenario", ["stock first", "stock second"])
def test_a_stock_trainer_beside(tmp_path, scenario):
    run(WORKER, scenario, tmp_path, timeout=PATIENCE)
    gan.assert_equal_to_one_process(tmp_path, train_alone(5, changes=False))


def test_a_gan_resumes_in_the_same_process(tmp_path):
    run(WORKER, "states", tmp_path, timeout=PATIENCE)
    networks = gan.make_networks()
    trainers = {name: MultiLRTrainer(net, *gan.OPTIMIZER) for name, net in networks.items()}
    expected = [*gan.train(networks, trainers, 3), *gan.train(networks, trainers, 2)]
    gan.assert_equal_to_one_process(tmp_path, expected)


def test_trainers_one_after_another_begin_from_their_own_weights(tmp_path):
    run(WORKER, "one after another", tmp_path, servers=2, timeout=PATIENCE)
    expected = train_alone(2, changes=False)
    for fold in range(3):
        folder = tmp_path / str(fold)
        folder.mkdir()
        for rank in range(2):
            (tmp_path / f"fold{fold}rank{rank}.npz").rename(folder / f"rank{rank}.npz")
        gan.assert_equal_to_one_process(folder, expected)


@pytest.mark.parametrize("scenario", ["other order of steps", "other order of creation"])
def test_ranks_that_begin_different_trainers_get_an_error(tmp_path, scenario):
    for error in outcome(tmp_path, scenario):
        assert error.startswith("RuntimeError: the ranks begin different trainers: this one begins the trainer of ")


def test_ranks_may_have_other_numbers_in_names(tmp_path):
    assert outcome(tmp_path, "other names") == [None, None]


@pytest.mark.parametrize("scenario", ["servers, servers", "servers, workers", "workers, servers", "async"])
def test_servers_that_update_are_refused_to_a_second_trainer(tmp_path, scenario):
    one, two = ("servers", "servers") if scenario == "async" else scenario.split(", ")
    for before, second, again, after in outcome(tmp_path, scenario):
        assert before is None
        assert after is None  # the first trainer goes on
        assert second == again
        assert f"the trainer of second_bias, second_weight (2 Parameters), for which the {two} update, " in second
        assert f"beside the trainer of first_bias, first_weight (2 Parameters), for which the {one} update" in second
        assert "update_on_kvstore=False; or give all Parameters to one trainer, as groups" in second


def test_servers_that_update_for_a_stock_trainer_are_noticed(tmp_path):
    for error in outcome(tmp_path, "servers update for stock"):
        assert "the servers have the optimizer of another trainer" in error
        assert "second_bias" in error


def test_two_types_of_kvstore_are_refused(tmp_path):
    for error in outcome(tmp_path, "two types"):
        assert error.startswith("ValueError: kvstore 'dist_device_sync' cannot be created beside 'dist_sync'")


def outcome(folder, scenario):
    """Return what every rank reported."""
    run(WORKER, scenario, folder, timeout=PATIENCE)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
