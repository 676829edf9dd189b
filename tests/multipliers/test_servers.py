"""What cannot reach parameter servers raises; they have the optimizer as it was before the first step."""

import mxnet as mx
import pytest

from multiplier_support import build
from multitrainer.multipliers.servers import NoServers, ServerSnapshot
from support import mlp


def sent(lr_scheduler=None):
    net = mlp(batchnorm=False)
    net[0].weight.lr_mult, net[0].weight.wd_mult = 0.5, 0
    params = list(net.collect_params().values())
    optimizer = mx.optimizer.SGD(learning_rate=0.1, wd=0.01, momentum=0.9, lr_scheduler=lr_scheduler)
    return net, optimizer, ServerSnapshot(params, optimizer)


class TestMultipliers:
    def test_as_sent_are_accepted(self):
        net, _, servers = sent()
        servers.check("lr_mult", {net[0].weight: 0.5, net[1].weight: 1})
        servers.check("wd_mult", {net[0].weight: 0, net[1].weight: 1.0})

    def test_0_is_accepted_because_frozen_parameters_are_not_pushed(self):
        net, _, servers = sent()
        servers.check("lr_mult", {net[1].weight: 0})

    @pytest.mark.parametrize(("field", "value"), [("lr_mult", 1), ("lr_mult", 0.25), ("wd_mult", 1)])
    def test_other_ones_raise(self, field, value):
        net, _, servers = sent()
        number = 0.5 if field == "lr_mult" else 0
        message = (
            rf"{field} {value} of Parameter 'net_dense0_weight' cannot reach .*, with {number}\. .*let the workers"
        )
        with pytest.raises(RuntimeError, match=message):
            servers.check(field, {net[1].weight: 1, net[0].weight: value})

    def test_0_as_weight_decay_raises(self):
        net, _, servers = sent()
        with pytest.raises(RuntimeError, match="wd_mult 0 of Parameter 'net_dense1_weight' cannot reach"):
            servers.check("wd_mult", {net[1].weight: 0})

    def test_schedules_raise(self):
        net, _, servers = sent()
        servers.check_schedules({net[0].weight: 0.5})
        with pytest.raises(
            RuntimeError, match=r"schedule of Parameter 'net_dense1_weight' cannot act .* Let the workers"
        ):
            servers.check_schedules({net[0].weight: 0.5, net[1].weight: lambda num_update: 1})


class TestSettings:
    def test_unchanged_ones_are_accepted(self):
        _, optimizer, servers = sent(mx.lr_scheduler.FactorScheduler(1))
        optimizer.num_update, optimizer.rescale_grad = 5, 0.25  # the workers' own
        optimizer.lr_mult = {"net_dense0_weight": 1}
        optimizer.wd = float("0.01")
        servers.check_optimizer(optimizer)
        servers.check_learning_rate(0.1)

    @pytest.mark.parametrize(("name", "value"), [("lr", 0.2), ("wd", 0), ("momentum", 0.5), ("clip_gradient", 1)])
    def test_changed_ones_raise(self, name, value):
        _, optimizer, servers = sent()
        was = getattr(optimizer, name)
        setattr(optimizer, name, value)
        with pytest.raises(RuntimeError, match=f"{name} {value} of the optimizer cannot reach .*with {was}"):
            servers.check_optimizer(optimizer)

    def test_another_learning_rate_raises(self):
        _, _, servers = sent()
        with pytest.raises(RuntimeError, match=r"lr 0\.2 of the optimizer cannot reach .*with 0\.1"):
            servers.check_learning_rate(0.2)

    def test_a_replaced_scheduler_raises_even_if_it_is_equal(self):
        _, optimizer, servers = sent(mx.lr_scheduler.FactorScheduler(1))
        optimizer.lr_scheduler = mx.lr_scheduler.FactorScheduler(1)
        with pytest.raises(RuntimeError, match=r"lr_scheduler .* cannot reach"):
            servers.check_optimizer(optimizer)

    def test_an_added_or_deleted_one_raises(self):
        _, optimizer, servers = sent()
        optimizer.extra = 3
        with pytest.raises(RuntimeError, match=r"extra 3 of the optimizer cannot reach .*with None"):
            servers.check_optimizer(optimizer)
        del optimizer.extra, optimizer.momentum
        with pytest.raises(RuntimeError, match=r"momentum None of the optimizer cannot reach .*with 0\.9"):
            servers.check_optimizer(optimizer)


class TestLrScheduler:
    """The servers' lr_scheduler uses the largest count of updates of any one Parameter."""

    def test_is_in_step_while_one_parameter_trains_all_the_time(self):
        net, _, servers = sent(mx.lr_scheduler.FactorScheduler(1))
        for other in (net[1].weight, net[1].bias, net[1].weight):
            servers.count_update([net[0].weight, other])

    def test_would_fall_behind_if_every_parameter_was_frozen_in_some_update(self):
        net, _, servers = sent(mx.lr_scheduler.FactorScheduler(1))
        servers.count_update([net[0].weight, net[1].weight])
        servers.count_update([net[0].weight])
        for _ in range(2):
            with pytest.raises(RuntimeError, match="would fall behind at update 3"):
                servers.count_update([net[1].weight])
        servers.count_update([net[0].weight])

    def test_would_fall_behind_if_nothing_trains(self):
        _, _, servers = sent(mx.lr_scheduler.FactorScheduler(1))
        with pytest.raises(RuntimeError, match="would fall behind at update 1"):
            servers.count_update([])

    def test_matters_only_if_there_is_one(self):
        net, _, servers = sent()
        servers.count_update([])
        servers.count_update([net[0].weight])


def test_without_servers_everything_is_accepted():
    net, optimizer, _ = sent()
    servers = NoServers()
    servers.check("lr_mult", {net[0].weight: 3})
    servers.check_schedules({net[0].weight: lambda num_update: 1})
    servers.check_learning_rate(7)
    servers.check_optimizer(optimizer)
    servers.count_update([])


class TestTrainer:
    """As if its kvstore had just sent the optimizer to servers."""

    def test_every_way_of_setting_raises_before_anything_changes(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        trainer._multipliers.sent_to_servers()
        trainer.set_lr_mult({net[0]: 0})
        trainer.set_lr_mult({net[0]: 0.5})
        with pytest.raises(RuntimeError, match=r"lr_mult 1.0 of Parameter .* cannot reach"):
            trainer.set_lr_mult({net[0]: 1})
        with pytest.raises(RuntimeError, match=r"wd_mult 0.0 of Parameter .* cannot reach"):
            trainer.set_wd_mult({net[0]: 0})
        with pytest.raises(RuntimeError, match=r"schedule of Parameter .* cannot act"):
            trainer.set_lr_mult({net[0]: lambda num_update: 0.5})
        with pytest.raises(RuntimeError, match=r"lr 0.3 of the optimizer cannot reach"):
            trainer.set_learning_rate(0.3)
        assert (net[0].weight.lr_mult, net[0].weight.wd_mult, trainer.learning_rate) == (0.5, 1, 0.1)
        net[0].weight.lr_mult = 2
        with pytest.raises(RuntimeError, match=r"lr_mult 2\.0 of Parameter 'net_dense0_weight' cannot reach"):
            trainer.step(1)
        net[0].weight.lr_mult = 0.5
        trainer.optimizer.momentum = 0.5
        with pytest.raises(RuntimeError, match=r"momentum 0.5 of the optimizer cannot reach"):
            trainer.step(1)

    def test_a_schedule_that_was_set_before_raises(self):
        _, trainer = build(lambda net: [net, (net[0], lambda num_update: 1)])
        with pytest.raises(RuntimeError, match=r"schedule of Parameter .* cannot act"):
            trainer._multipliers.sent_to_servers()
        with pytest.raises(RuntimeError, match=r"schedule of Parameter .* cannot act"):
            trainer.step(1)

    def test_updates_are_counted(self):
        net, trainer = build(lr_scheduler=mx.lr_scheduler.FactorScheduler(1))
        trainer._multipliers.sent_to_servers()
        trainer.set_lr_mult({net[0]: 0})
        trainer.step(1, ignore_stale_grad=True)
        trainer.set_lr_mult({net[0]: 1, net[1]: 0, net[2]: 0})
        with pytest.raises(RuntimeError, match="would fall behind at update 2"):
            trainer.step(1, ignore_stale_grad=True)
