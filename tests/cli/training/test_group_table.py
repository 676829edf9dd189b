"""The table that finetune and groups print before training."""

from __future__ import annotations

import mxnet as mx
import pytest

from multitrainer import MultiLRTrainer, ParamGroup, unfreeze_at
from multitrainer_cli.training.group_table import describe_changes, describe_groups
from multitrainer_cli.training.schedule import TrainingLength

LENGTH = TrainingLength(images=27, batch_size=8, epochs=10)  # updates 1 to 3, 4 to 6, 7 to 10, ...


def make(*multipliers, **settings):
    net = mx.gluon.nn.HybridSequential(prefix="net_")
    for _ in multipliers:
        net.add(mx.gluon.nn.Dense(2, in_units=2))
    net.initialize()
    groups = [ParamGroup(layer, mult, name=f"layer{i}") for i, (layer, mult) in enumerate(zip(net, multipliers))]
    return MultiLRTrainer(groups, "sgd", {"learning_rate": 0.4, **settings})


def learning_rates(text):
    lines = text.splitlines()
    column = lines[0].replace("learning rate", "learning_rate").split().index("learning_rate")
    return [float(line.split()[column]) for line in lines[1:] if line.startswith("layer")]


def test_the_rates_are_those_of_the_summary_without_a_scheduler():
    trainer = make(0.1, 1, 0)
    assert describe_groups(trainer, LENGTH, 0) == f"{trainer.summary()}\n"
    assert learning_rates(trainer.summary()) == pytest.approx([0.04, 0.4, 0])


def test_the_rates_are_those_at_the_end_of_the_warmup_which_the_table_tells():
    scheduler = mx.lr_scheduler.CosineScheduler(LENGTH.updates + 1, 0.4, warmup_steps=LENGTH.updates_in(2))
    trainer = make(0.1, unfreeze_at(7, 0.5), lr_scheduler=scheduler)
    text = describe_groups(trainer, LENGTH, 2)
    assert learning_rates(text) == pytest.approx([0.04, 0])
    assert text.splitlines()[-2:] == [
        "epoch 2, update 6, ends the warm-up: the learning rates are those above",
        "epoch 3, update 7, unfreezes layer1 (0.5)",
    ]
    assert trainer.learning_rates["layer0"] == pytest.approx(0.04 / 6)  # the table leaves the scheduler alone
    assert scheduler(6) == pytest.approx(0.4)


def test_a_schedule_does_not_change_the_rates_of_the_table():
    trainer = make(1, lr_scheduler=mx.lr_scheduler.PolyScheduler(4, 0.4))
    assert learning_rates(describe_groups(trainer, LENGTH, 0)) == pytest.approx([0.4])


def test_many_groups_that_are_unfrozen_at_once_are_one_line():
    trainer = make(*[unfreeze_at(4, 0.5)] * 5, 1)
    assert describe_changes(trainer, LENGTH) == "epoch 2, update 4, unfreezes layer0 (0.5) to layer4 (0.5), 5 groups\n"


def test_a_warmup_of_one_update_is_not_told():
    assert describe_changes(make(1), LENGTH, 0.4) == ""
