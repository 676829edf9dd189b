"""Which dicts could be by index, which Parameters were updated, and which loss scales are valid."""

import pytest

from multitrainer import MultiLRTrainer
from multitrainer.checkpoint.trainer_state import NOT_SAVED, check_loss_scale, has_index_keys
from support import batches, mlp, train


@pytest.mark.parametrize(
    ("value", "expected"),
    [({}, True), ({0: "a", 2: "b"}, True), ({3: 1}, False), ({-1: 1}, False), ({True: 1}, False), ([0], False)],
    ids=str,
)
def test_keys_that_could_be_indices(value, expected):
    assert has_index_keys(value, 3) is expected


def updated(trainer):
    return trainer._training().updated_indices(trainer._partition.main)


def test_updated_indices():
    net = mlp()
    trainer = MultiLRTrainer([net, (net[0], 0)], "sgd", {"momentum": 0.9})
    assert updated(trainer) == (set(), set())
    train(net, trainer, batches(1))
    trains = {i for i, param in enumerate(trainer._params) if param.lr_mult != 0 and "running" not in param.name}
    assert len(trains) == 4
    assert updated(trainer) == (trains, trains)


def test_loss_scales():
    check_loss_scale({"_loss_scale": 0.0, "_unskipped": 3, "name": "any"})
    for value in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"_loss_scale of AMP's loss scaler is {value}"):
            check_loss_scale({"_loss_scale": value})


def test_attributes_that_are_not_saved_with_the_others():
    """Counts and the lr_scheduler are saved separately, and the trainer fills the table of multipliers itself."""
    assert {"num_update", "lr_scheduler", "lr_mult", "_multitrainer_filled"} <= NOT_SAVED
    assert not {"lr", "wd", "momentum"} & NOT_SAVED
