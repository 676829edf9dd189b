from __future__ import annotations

import argparse
import math

import mxnet as mx
import numpy as np
import pytest

from multitrainer_cli.arguments.training import add_schedule_arguments
from multitrainer_cli.errors import UserError
from multitrainer_cli.training import schedule
from multitrainer_cli.training.optimizer import OptimizerChoice, parse_optimizer

LENGTH = schedule.TrainingLength(images=27, batch_size=8, epochs=10)


def parse(*options):
    parser = argparse.ArgumentParser()
    add_schedule_arguments(parser)
    return parser.parse_args([*map(str, options)])


def scheduler_of(*options, optimizer="sgd", lr=None, length=LENGTH):
    """Return the scheduler that the options add to an optimizer."""
    args = parse(*options)
    return schedule.add_scheduler(parse_optimizer(optimizer, lr, None), args, length).settings["lr_scheduler"]


def rates(*options):
    scheduler = scheduler_of(*options, lr=0.4)
    return [scheduler(update) for update in range(1, LENGTH.updates + 1)]


class TestTrainingLength:
    @pytest.mark.parametrize("remainder", [0, 3, 5])
    def test_counts_the_batches_of_a_loader(self, remainder):
        sampler = mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(24 + remainder), 8, "rollover")
        length, updates = schedule.TrainingLength(24 + remainder, 8, 6), 0
        for epoch in range(1, 7):
            assert length.first_update(epoch) == updates + 1
            updates += sum(1 for _ in sampler)
            assert length.updates_in(epoch) == updates
        assert length.updates == updates

    @pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 5, 100])
    @pytest.mark.parametrize("remainder", [0, 3, 5])
    def test_counts_the_updates_of_several_batches_and_those_at_the_end_of_an_epoch(self, remainder, accumulate):
        sampler = mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(24 + remainder), 8, "rollover")
        length, updates = schedule.TrainingLength(24 + remainder, 8, 6, accumulate), 0
        for epoch in range(1, 7):
            assert length.first_update(epoch) == updates + 1
            updates += math.ceil(sum(1 for _ in sampler) / accumulate)
            assert length.updates_in(epoch) == updates
        assert length.updates == updates

    def test_counts_the_complete_updates_in_part_of_an_epoch(self):
        length = schedule.TrainingLength(images=80, batch_size=8, epochs=2, accumulate=4)
        counts = [length.updates_in(epochs) for epochs in (0.3, 0.4, 0.8, 0.9, 1, 1.3, 1.4)]
        assert counts == [0, 1, 2, 2, 3, 3, 4]

    def test_counts_the_updates_of_many_epochs_at_once(self):
        length = schedule.TrainingLength(27, 8, 10**9, 2)
        assert length.updates == 2 * 10**9  # three or four batches an epoch

    def test_finds_the_epoch_of_an_update_of_a_very_long_run(self):
        length = schedule.TrainingLength(25, 10, 10**9, 2)
        for epoch in (1, 2, 3, 123_456_789, 10**9):
            assert length.epoch_of(length.first_update(epoch)) == epoch
            assert length.epoch_of(length.updates_in(epoch)) == epoch

    def test_finds_the_epoch_of_an_update(self):
        for epoch in range(1, 11):
            updates = range(LENGTH.first_update(epoch), LENGTH.updates_in(epoch) + 1)
            assert {LENGTH.epoch_of(update) for update in updates} == {epoch}

    def test_counts_part_of_an_epoch(self):
        assert [LENGTH.updates_in(epochs) for epochs in (0, 0.25, 0.5, 1)] == [0, 0, 1, 3]


class TestSchedules:
    updates = np.arange(1, LENGTH.updates + 1)

    def test_cosine_and_poly_reach_0_after_the_last_update(self):
        share = self.updates / (LENGTH.updates + 1)
        np.testing.assert_allclose(rates("--lr-schedule", "cosine"), 0.2 * (1 + np.cos(np.pi * share)), atol=1e-12)
        np.testing.assert_allclose(rates("--lr-schedule", "poly"), 0.4 * (1 - share) ** 2, atol=1e-12)

    def test_step_divides_by_ten_after_half_and_three_quarters(self):
        half, three_quarters = LENGTH.updates_in(5), LENGTH.updates_in(7.5)
        assert (half, three_quarters) == (16, 25)
        expected = np.where(self.updates > three_quarters, 0.004, np.where(self.updates > half, 0.04, 0.4))
        np.testing.assert_allclose(rates("--lr-schedule", "step"), expected, rtol=1e-12)

    def test_step_works_for_a_run_of_one_update(self):
        scheduler = scheduler_of("--lr-schedule", "step", lr=1, length=schedule.TrainingLength(8, 8, 1))
        assert [scheduler(update) for update in (1, 2)] == [1, 0.1]

    def test_warmup_rises_from_0_to_the_rate(self):
        count = LENGTH.updates_in(2)
        warm = rates("--warmup", 2)
        np.testing.assert_allclose(warm[: count - 1], [0.4 * update / count for update in range(1, count)], rtol=1e-12)
        assert set(warm[count:]) == {0.4}

    def test_warmup_comes_before_a_schedule(self):
        count = LENGTH.updates_in(2)
        warm = rates("--warmup", 2, "--lr-schedule", "poly")
        assert warm[0] == pytest.approx(0.4 / count)
        rest = LENGTH.updates + 1 - count
        assert warm[-1] == pytest.approx(0.4 / rest**2)

    @pytest.mark.parametrize("name", ["cosine", "poly"])
    @pytest.mark.parametrize("optimizer", ["sgld", "ftrl", "ftml", "sgd"])
    def test_every_update_trains_even_if_there_is_only_one(self, name, optimizer):
        weight = mx.gluon.Parameter("weight", shape=(3,))
        weight.initialize(mx.init.One())
        one = schedule.TrainingLength(8, 8, 1)
        choice = schedule.add_scheduler(parse_optimizer(optimizer, None, 0), parse("--lr-schedule", name), one)
        trainer = mx.gluon.Trainer([weight], *choice, kvstore=None)
        with mx.autograd.record():
            (weight.data() ** 2).sum().backward()
        trainer.step(1)
        values = weight.data().asnumpy()
        assert np.isfinite(values).all()
        assert not np.array_equal(values, np.ones(3))

    @pytest.mark.parametrize("options", [[], ["--lr-schedule", "constant"], ["--warmup", 0]])
    def test_constant_adds_no_scheduler(self, options):
        optimizer = OptimizerChoice("sgd", {"wd": 0.1})
        assert schedule.add_scheduler(optimizer, parse(*options), LENGTH) == optimizer

    def test_the_other_settings_stay(self):
        optimizer = OptimizerChoice("sgd", {"wd": 0.1, "learning_rate": 0.5})
        added = schedule.add_scheduler(optimizer, parse("--lr-schedule", "cosine"), LENGTH)
        scheduler = added.settings["lr_scheduler"]
        assert added == ("sgd", {"wd": 0.1, "learning_rate": 0.5, "lr_scheduler": scheduler})
        assert scheduler.base_lr == 0.5

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nag", "rmsprop", "ftml"])
    def test_without_lr_they_start_at_the_rate_of_the_optimizer(self, name):
        stock = mx.optimizer.create(name).learning_rate
        assert scheduler_of("--lr-schedule", "cosine", optimizer=name).base_lr == stock


@pytest.mark.parametrize(("name", "expected"), [(None, False), ("constant", False), ("step", True), ("cosine", True)])
def test_a_schedule_depends_on_the_epochs_and_a_constant_rate_does_not(name, expected):
    assert schedule.depends_on_epochs(argparse.Namespace(lr_schedule=name)) is expected


@pytest.mark.parametrize(
    ("optimizer", "options", "error"),
    [
        ("sgd", ["--warmup", 10], "--warmup 10: expected fewer than the 10 --epochs"),
        ("sgd", ["--warmup", 1e308], r"--warmup 1e\+308: expected fewer than the 10 --epochs"),
        ("sgd", ["--warmup", 11, "--lr-schedule", "step"], "expected fewer than the 10 --epochs"),
        ("adadelta", ["--lr-schedule", "cosine"], "--lr-schedule cosine: AdaDelta has no learning rate"),
        ("adadelta", ["--warmup", 1.5], "--warmup 1.5: AdaDelta has no learning rate"),
    ],
)
def test_what_cannot_work_is_refused(optimizer, options, error):
    with pytest.raises(UserError, match=error):
        scheduler_of(*options, optimizer=optimizer)


def test_an_unknown_schedule_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--lr-schedule", "linear")
    assert "invalid choice: 'linear'" in capsys.readouterr().err
