"""Promise 5, either door; schedules and their clock; what freezes and unfreezes, and when."""

import warnings

import mxnet as mx
import pytest
from mxnet.gluon import Trainer

from multitrainer import MultiLRTrainer, ParamGroup, freeze, unfreeze
from support import CONTEXTS, Overflow, backward, batches, mlp, moved, same, snapshot, train, weights

STORES = [None, {"update_on_kvstore": True}, {"update_on_kvstore": False}]


def build(spec=lambda net: net, optimizer="sgd", store=None, **params):
    net = mlp(CONTEXTS if store else None)
    trainer = MultiLRTrainer(spec(net), optimizer, {"learning_rate": 0.1, **params}, **(store or {}))
    return net, trainer


def changed_by(net, trainer, store=None, count=1):
    before = snapshot(net)
    train(net, trainer, batches(count), CONTEXTS if store else None)
    return weights(moved(before, snapshot(net)))


FIRST = {"net_dense0_weight", "net_dense0_bias"}
ALL = FIRST | {"net_batchnorm0_gamma", "net_batchnorm0_beta", "net_dense1_weight", "net_dense1_bias"}

# Each door sets the multiplier of the first layer; the trainer has been stepped before.
DOORS = {
    "trainer.set_lr_mult by Block": lambda net, trainer, x: trainer.set_lr_mult({net[0]: x}),
    "trainer.set_lr_mult by name": lambda net, trainer, x: trainer.set_lr_mult(dict.fromkeys(FIRST, x)),
    "param.lr_mult": lambda net, trainer, x: [setattr(p, "lr_mult", x) for p in (net[0].weight, net[0].bias)],
    "setattr": lambda net, trainer, x: net[0].collect_params().setattr("lr_mult", x),
    "optimizer.set_lr_mult": lambda net, trainer, x: trainer.optimizer.set_lr_mult(dict.fromkeys(FIRST, x)),
    "optimizer.set_lr_mult by index": lambda net, trainer, x: trainer.optimizer.set_lr_mult(
        {trainer._param2idx[name]: x for name in FIRST}
    ),
    "optimizer.lr_mult": lambda net, trainer, x: trainer.optimizer.lr_mult.update(dict.fromkeys(FIRST, x)),
}


class TestDoors:
    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("door", DOORS)
    def test_each_takes_effect_at_the_next_step(self, door, store):
        """As the same multiplier written on the Parameters does under stock Trainer."""
        net, trainer = build(store=store, momentum=0.9)
        twin = mlp(CONTEXTS if store else None)
        stock = Trainer(twin.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9}, **(store or {}))
        for multiplier in (1.0, 0.25, 3.0):
            DOORS[door](net, trainer, multiplier)
            twin[0].collect_params().setattr("lr_mult", multiplier)
            ctx = CONTEXTS if store else None
            assert same(train(net, trainer, batches(2), ctx), train(twin, stock, batches(2), ctx))
        assert trainer.learning_rates == pytest.approx({"net lr_mult=3": 0.3, "net lr_mult=1": 0.1})

    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("door", DOORS)
    def test_0_freezes_and_more_unfreezes(self, door, store):
        net, trainer = build(store=store, momentum=0.9, wd=0.1)
        assert changed_by(net, trainer, store) == ALL
        DOORS[door](net, trainer, 0)
        assert changed_by(net, trainer, store, count=3) == ALL - FIRST
        assert net[0].weight.grad_req == "null"
        DOORS[door](net, trainer, 0.5)
        if "trainer" not in door:  # noticed at the next step, whose backward has already run without it
            assert changed_by(net, trainer, store) == ALL - FIRST
        assert changed_by(net, trainer, store) == ALL
        assert net[0].weight.grad_req == "write"

    @pytest.mark.parametrize("door", DOORS)
    def test_what_a_call_does_not_name_keeps_its_own(self, door):
        net, trainer = build(lambda net: [net, (net[2], 5)])
        DOORS[door](net, trainer, 0.5)
        train(net, trainer, batches(1))
        assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (0.5, 1, 5)

    def test_one_parameter_at_a_time(self):
        """The first experiment of the note, under Gluon: each call adds to those before it."""
        net, trainer = build()
        trainer.set_lr_mult({"net_dense0_weight": 0})
        trainer.set_lr_mult({"net_dense0_bias": 0})
        trainer.optimizer.set_lr_mult({"net_dense1_bias": 0})
        assert changed_by(net, trainer) == ALL - FIRST - {"net_dense1_bias"}

    def test_a_call_loses_nothing_that_another_door_took_in(self):
        net, trainer = build()
        trainer.optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        net[0].bias.lr_mult = 0
        trainer.set_lr_mult({net[2]: 2})
        assert (net[0].weight.lr_mult, net[0].bias.lr_mult, net[2].bias.lr_mult) == (0.5, 0, 2)
        net[1].gamma.lr_mult = "x"
        with pytest.raises(TypeError, match="'net_batchnorm0_gamma'"):
            trainer.set_lr_mult({net[2]: 3})
        assert net[2].bias.lr_mult == 2

    def test_wd_mult_by_its_doors(self):
        net, trainer = build(wd=0.5)
        trainer.set_wd_mult({net[0]: 0.5})
        net[2].weight.wd_mult = 3
        train(net, trainer, batches(1))
        assert trainer.optimizer.wd_mult["net_dense0_bias"] == 0.5
        assert trainer.optimizer.wd_mult["net_dense1_weight"] == 3
        assert trainer.optimizer._get_wd(trainer._param2idx["net_dense1_weight"]) == 1.5

    def test_optimizer_set_wd_mult_is_refused_where_it_would_take_what_it_was_not_given(self):
        net, trainer = build(wd=0.5)
        trainer.optimizer.set_wd_mult({"net_dense0_weight": 0.5})
        with pytest.raises(ValueError, match=r"weight decay of 'net_batchnorm0_beta' too.*trainer.set_wd_mult"):
            trainer.step(1)
        assert {param.wd_mult for param in net.collect_params().values()} == {1.0}
        assert changed_by(net, trainer) == ALL

    @pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "0.1", None])
    def test_nonsense_on_a_parameter_is_named_at_the_next_step(self, bad):
        net, trainer = build()
        net[0].bias.lr_mult = bad
        before = snapshot(net)
        backward(net, *batches(1)[0])
        with pytest.raises((TypeError, ValueError), match=f"lr_mult of Parameter 'net_dense0_bias' .*got {bad!r}"):
            trainer.step(4)
        assert not weights(moved(before, snapshot(net)))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"net_dense0_wieght": 1}, "optimizer.set_lr_mult.*closest are 'net_dense0_weight'"),
            ({"net_dense0_weight": -1}, "finite number >= 0, got -1"),
            ({99: 1}, "no parameter 99"),
        ],
    )
    def test_nonsense_in_the_optimizers_table_is_refused_and_taken_out(self, table, message):
        net, trainer = build()
        trainer.optimizer.set_lr_mult({"net_dense1_weight": 0.5, **table})
        backward(net, *batches(1)[0])
        with pytest.raises(ValueError, match=message):
            trainer.step(4)
        assert net[2].weight.lr_mult == 1
        trainer.step(4)

    def test_schedule_in_the_optimizers_table(self):
        _, trainer = build()
        trainer.optimizer.set_lr_mult({"net_dense1_weight": lambda t: 1})
        with pytest.raises(TypeError, match="must be a number; a schedule goes to"):
            trainer.step(4)

    def test_ready_optimizer_brings_its_multipliers_along(self):
        """Under stock Gluon they are lost; a group still has the last word."""
        net = mlp()
        optimizer = mx.optimizer.SGD(learning_rate=0.1)
        optimizer.set_lr_mult({"net_dense0_weight": 0.5, "net_dense1_weight": 0.5})
        MultiLRTrainer([net, (net[2], 3)], optimizer)
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (0.5, 3)
        optimizer = mx.optimizer.SGD()
        optimizer.set_lr_mult({"conv0_weight": 0.5})
        with pytest.raises(ValueError, match=r"optimizer.lr_mult.*'conv0_weight'"):
            MultiLRTrainer(net, optimizer)

    def test_statistics_have_no_multiplier(self):
        _, trainer = build()
        trainer.optimizer.set_lr_mult({"net_batchnorm0_running_mean": 0})
        with pytest.raises(ValueError, match="'net_batchnorm0_running_mean' is a statistic"):
            trainer.step(1)

    def test_a_call_mends_what_an_error_was_raised_for(self):
        net, trainer = build()
        net[0].weight.lr_mult = -2
        with pytest.raises(ValueError, match="got -2"):
            trainer.set_lr_mult({net[2]: 1})
        trainer.set_lr_mult({net[0].weight: 1})
        assert changed_by(net, trainer) == ALL
        net, trainer = build(optimizer="adadelta")
        trainer.optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        with pytest.raises(ValueError, match="would have no effect"):
            trainer.step(1)
        assert net[0].weight.lr_mult == 1
        trainer.set_lr_mult({"net_dense0_weight": 1})
        assert changed_by(net, trainer) == ALL

    def test_one_optimizer_object_for_two_trainers(self):
        optimizer = mx.optimizer.SGD(learning_rate=0.1)
        one, two = mlp(prefix="one_"), mlp(prefix="two_")
        first = MultiLRTrainer([(one, 0.5)], optimizer)
        second = MultiLRTrainer([(two, 2)], optimizer)
        backward(one, *batches(1)[0])
        with pytest.raises(RuntimeError, match="given to another Trainer since"):
            first.step(4)
        train(two, second, batches(1))

    def test_new_trainer_for_the_same_network_and_optimizer(self):
        optimizer = mx.optimizer.SGD(learning_rate=0.1)
        net = mlp()
        MultiLRTrainer([net, (net[0], 0.5)], optimizer)
        net[0].weight.lr_mult = 0.25
        train(net, MultiLRTrainer(net, optimizer), batches(1))
        assert net[0].weight.lr_mult == 0.25


class TestUnfreezing:
    @pytest.mark.parametrize("request_", ["write", "add"])
    def test_gradient_request_comes_back(self, request_):
        net, trainer = build()
        net[0].collect_params().setattr("grad_req", request_)
        trainer.set_lr_mult({net[0]: 0})
        trainer.set_lr_mult({net[0]: 0})
        assert net[0].weight.grad_req == "null"
        trainer.set_lr_mult({net[0]: 2})
        assert net[0].weight.grad_req == request_

    def test_multiplier_by_name_asks_for_a_gradient_that_was_turned_off_by_hand(self):
        net = mlp()
        net[0].collect_params().setattr("grad_req", "null")
        trainer = MultiLRTrainer([net, (net[2], 2)], "sgd", {"learning_rate": 0.1})
        assert changed_by(net, trainer) == ALL - FIRST
        net[0].collect_params().setattr("lr_mult", 0.5)  # as under stock: no multiplier turns it on unasked
        assert changed_by(net, trainer) == ALL - FIRST
        trainer.set_lr_mult({net[0]: 0.5})
        assert changed_by(net, trainer) == ALL

    def test_statistics_and_constants_are_never_touched(self):
        net = mlp()
        trainer = MultiLRTrainer([(net, 0)], "sgd")
        trainer.set_lr_mult({net: 3})
        assert {param.grad_req for param in net.collect_params(".*running.*").values()} == {"null"}
        assert {param.lr_mult for param in net.collect_params(".*running.*").values()} == {1.0}

    def test_unfrozen_between_backward_and_step_waits_for_the_next_backward(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        (x, y), (x2, y2) = batches(2)
        backward(net, x, y)
        trainer.set_lr_mult({net[0]: 1})
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL - FIRST
        backward(net, x2, y2)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL

    def test_unfrozen_by_assignment_while_everything_is_frozen(self):
        net, trainer = build(lambda net: [(net, 0)])
        trainer.step(1)
        net[2].collect_params().setattr("lr_mult", 1)
        trainer.step(1)
        assert changed_by(net, trainer) == {"net_dense1_weight", "net_dense1_bias"}

    def test_unfrozen_but_unused_is_stale_as_under_stock(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        trainer.set_lr_mult({net[0]: 1})
        with mx.autograd.record():
            loss = (net[2](net[1](mx.nd.ones((4, 4)))) ** 2).sum()
        loss.backward()
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)

    def test_failed_step_between(self):
        net, trainer = build(lambda net: [net, (net[0], 0.2)])
        trainer.set_lr_mult({net[0]: 0})
        net[0].collect_params().setattr("lr_mult", 0.2)
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)
        trainer.set_lr_mult({net[0]: 0})
        assert changed_by(net, trainer) == ALL - FIRST
        assert changed_by(net, trainer) == ALL - FIRST

    def test_request_turned_off_by_hand_comes_back_as_that(self):
        net, trainer = build()
        net[0].collect_params().setattr("grad_req", "null")
        net[0].collect_params().setattr("lr_mult", 0)
        assert changed_by(net, trainer) == ALL - FIRST
        net[0].collect_params().setattr("lr_mult", 1)
        assert changed_by(net, trainer, count=3) == ALL - FIRST

    def test_frozen_between_backward_and_step(self):
        net, trainer = build(momentum=0.9)
        train(net, trainer, batches(2))
        backward(net, *batches(1)[0])
        trainer.set_lr_mult({net[0]: 0})
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL - FIRST

    def test_gradient_turned_on_by_hand_while_frozen_is_turned_off_again(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        net[0].weight.grad_req = "write"
        assert changed_by(net, trainer) == ALL - FIRST
        assert net[0].weight.grad_req == "null"

    def test_failed_step_changes_no_clock(self):
        net, trainer = build(lambda net: [net, (net[0], 0)], lr_scheduler=mx.lr_scheduler.FactorScheduler(100))
        train(net, trainer, batches(2))
        trainer.set_lr_mult({net[0]: 1})
        train(net, trainer, batches(1))
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)
        assert trainer.optimizer.num_update == 3


class TestSchedules:
    def test_goes_by_the_update_that_comes(self):
        seen = []

        def schedule(num_update):
            seen.append(num_update)
            return 1 / num_update

        net, trainer = build(lambda net: [net, (net[0], schedule)])
        for t in range(1, 4):
            assert net[0].weight.lr_mult == 1 / t
            assert trainer.learning_rates == pytest.approx({"0": 0.1 / t, "net": 0.1})
            train(net, trainer, batches(1))
        assert seen[-1] == 4

    @pytest.mark.parametrize("store", STORES, ids=str)
    def test_moves_weights_as_the_same_numbers_set_by_hand(self, store):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 0.5**t)], store=store)
        twin, by_hand = build(store=store)
        for t, batch in enumerate(batches(4), 1):
            by_hand.set_lr_mult({twin[0]: 0.5**t})
            ctx = CONTEXTS if store else None
            assert same(train(net, trainer, [batch], ctx), train(twin, by_hand, [batch], ctx))

    def test_in_step_with_the_lr_scheduler(self):
        asked = []

        class Scheduler(mx.lr_scheduler.LRScheduler):
            def __call__(self, num_update):
                asked.append(num_update)
                return 0.1

        multiplied = []
        net, trainer = build(
            lambda net: [net, (net[0], lambda t: multiplied.append(t) or 1)], lr_scheduler=Scheduler(base_lr=0.1)
        )
        train(net, trainer, batches(3))
        assert sorted(set(asked)) == [1, 2, 3]
        assert sorted(set(multiplied)) == [1, 2, 3, 4]

    def test_lr_scheduler_as_multiplier(self):
        halves = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1)
        net, trainer = build(lambda net: [net, (net[0], halves)])
        multipliers = []
        for _ in range(6):
            multipliers.append(net[0].weight.lr_mult)
            train(net, trainer, batches(1))
        assert multipliers == [1, 1, 0.5, 0.5, 0.25, 0.25]

    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    def test_unfreezes_at_the_update_it_says(self, store, hybridize):
        net, trainer = build(lambda net: [net, (net[:2], lambda t: 0 if t < 3 else 0.5)], store=store)
        if hybridize is not None:
            net.hybridize(**hybridize)
        first = FIRST | {"net_batchnorm0_gamma", "net_batchnorm0_beta"}
        assert [changed_by(net, trainer, store) for _ in range(4)] == [ALL - first, ALL - first, ALL, ALL]

    def test_time_goes_on_while_everything_is_frozen(self):
        net, trainer = build(lambda net: [(net, lambda t: 0 if t < 3 else 1)])
        before = snapshot(net)
        trainer.step(1)
        trainer.step(1)
        assert not moved(before, snapshot(net))
        assert changed_by(net, trainer) == ALL

    def test_time_goes_on_when_what_has_trained_longest_is_frozen(self):
        """MXNet's num_update is the largest count of any one Parameter: it would stand still for the rest."""
        net, trainer = build(
            lambda net: [net, (net[0], lambda t: 1 if t < 3 else 0), (net[1:], lambda t: 0 if t < 3 else 1)],
            lr_scheduler=mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1),
        )
        rates = []
        for _ in range(5):
            train(net, trainer, batches(1))
            rates.append(trainer.learning_rate)
        assert trainer.optimizer.num_update == 5
        assert rates == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])

    def test_loading_states_moves_schedules_to_the_count_in_the_file(self, tmp_path):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        train(net, trainer, batches(3))
        trainer.save_states(str(tmp_path / "states"))
        other, fresh = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        fresh.load_states(str(tmp_path / "states"))
        assert other[0].weight.lr_mult == 0.25

    def test_assignment_by_hand_ends_a_schedule(self):
        for door in DOORS:
            net, trainer = build(lambda net: [net, (net[0], lambda t: 0.5)])
            DOORS[door](net, trainer, 0.25)
            train(net, trainer, batches(2))
            assert net[0].weight.lr_mult == 0.25, door

    def test_set_replaces_a_number_by_a_schedule_and_back(self):
        net, trainer = build()
        trainer.set_lr_mult({net[0]: lambda t: t})
        train(net, trainer, batches(2))
        assert net[0].weight.lr_mult == 3
        trainer.set_lr_mult({net[0]: 2})
        train(net, trainer, batches(2))
        assert net[0].weight.lr_mult == 2

    def test_wd_mult_schedule(self):
        net, trainer = build(lambda net: [net, ParamGroup(net[0], wd_mult=lambda t: 1 / t)], wd=0.1)
        train(net, trainer, batches(3))
        assert net[0].weight.wd_mult == 0.25

    def test_nonsense_in_mid_training_is_named(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1 if t < 3 else -1)])
        with pytest.raises(ValueError, match=r"'net_dense0_\w+', from its schedule at update 3, .*got -1"):
            train(net, trainer, batches(3))

    def test_one_that_fails_is_named_before_the_update_it_was_asked_for(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: {1: 1, 2: 2}[t])])
        train(net, trainer, batches(2))
        before = snapshot(net)
        with pytest.raises(RuntimeError, match=r"'net_dense0_\w+', from its schedule at update 3, .*KeyError\(3\)"):
            train(net, trainer, batches(1))
        assert not weights(moved(before, snapshot(net)))
        trainer.set_lr_mult({net[0]: 1})
        assert changed_by(net, trainer) == ALL

    def test_loading_states_loses_nothing_that_was_assigned_before(self, tmp_path):
        net, trainer = build(lambda net: [net, (net[0], 0), (net[2], lambda t: 1)])
        train(net, trainer, batches(1))
        Trainer.save_states(trainer, str(tmp_path / "states"))  # stock's file knows no multipliers
        net[0].collect_params().setattr("lr_mult", 1)
        net[2].collect_params().setattr("lr_mult", 0.25)
        trainer.optimizer.set_lr_mult({"net_batchnorm0_gamma": 0.5})
        trainer.load_states(str(tmp_path / "states"), allow_pickle=True)
        assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (1, 0.5, 0.25)
        assert changed_by(net, trainer) == ALL

    def test_survives_the_updates_that_amp_skips(self):
        """An update skipped for its overflow is no update: neither scheduler moves."""
        net, trainer = build(
            lambda net: [net, (net[0], lambda t: 0 if t < 2 else 1)], lr_scheduler=mx.lr_scheduler.FactorScheduler(100)
        )
        trainer._amp_loss_scaler = Overflow([2, 4])
        rounds = [(trainer.optimizer.num_update, changed_by(net, trainer)) for _ in range(5)]
        assert rounds == [(0, ALL - FIRST), (1, set()), (1, ALL), (2, set()), (2, ALL)]

    def test_unfrozen_late_still_gets_the_learning_rate_of_the_update(self):
        """Stock goes by the update before for a Parameter that comes first and has had fewer updates."""
        rates = {}

        class Spy(mx.optimizer.SGD):
            def _get_lrs(self, indices):
                lrs = super()._get_lrs(indices)
                rates.setdefault(self.num_update, []).extend(lrs)
                return lrs

        scheduler = mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1)
        net = mlp()
        optimizer = Spy(lr_scheduler=scheduler)
        optimizer.aggregate_num = 0
        trainer = MultiLRTrainer([net, (net[1], lambda t: 0 if t < 3 else 1)], optimizer)
        train(net, trainer, batches(4))
        assert {t: set(lrs) for t, lrs in rates.items()} == {t: {scheduler(t)} for t in (1, 2, 3, 4)}


class TestStatisticsOutOfReach:
    def test_parameters_alone_warn_that_statistics_still_move(self):
        net = mlp()
        with pytest.warns(UserWarning, match="net_batchnorm0_running_mean.*Name the Block that holds"):
            MultiLRTrainer([(net.collect_params(), 0)], "sgd")

    def test_known_blocks_do_not_warn(self):
        net = mlp()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer = MultiLRTrainer([net, (net[:2].collect_params(), 0)], "sgd")
            trainer.set_lr_mult({"net_dense1_weight": 0})
        assert net[1]._kwargs["use_global_stats"]


def poly():
    return mx.lr_scheduler.PolyScheduler(20, base_lr=1.0, pwr=1)


@pytest.mark.parametrize("door", ["functions", "another trainer"])
def test_the_clock_counts_updates_whoever_freezes_in_turn(door, tmp_path):
    """MXNet's count is that of the Parameter with the most updates, which each layer in turn is not."""
    net, trainer = build(lambda net: [net, (net[1], 1)], lr_scheduler=poly())
    other = MultiLRTrainer(net, "sgd")
    turn = {
        "functions": (lambda layer: freeze(layer, within=net), lambda layer: unfreeze(layer, within=net)),
        "another trainer": (lambda layer: other.set_lr_mult({layer: 0}), lambda layer: other.set_lr_mult({layer: 1})),
    }
    frozen, unfrozen = turn[door]
    rates = []
    for layer in (net[0], net[1:], None, net[0], None):
        if layer is not None:
            frozen(layer)
        train(net, trainer, batches(2))
        if layer is not None:
            unfrozen(layer)
        rates.append(trainer.learning_rate)
    assert trainer.optimizer.num_update == 10
    assert rates == pytest.approx([poly()(t) for t in (2, 4, 6, 8, 10)])
    trainer.save_states(tmp_path / "states")
    trainer.load_states(tmp_path / "states")
    assert trainer.optimizer.num_update == 10


class TestTwoTrainersWithSchedules:
    def build(self):
        net, first = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        second = MultiLRTrainer([net, (net[0], lambda t: 2 / t)], "sgd", {"learning_rate": 0.1})
        return net, first, second

    def test_the_first_says_that_its_schedule_has_ended(self):
        net, first, second = self.build()
        train(net, second, batches(2))
        before = snapshot(net)
        backward(net, *batches(1)[0])
        with pytest.raises(RuntimeError, match=r"'net_dense0_\w+' has a schedule in this trainer.*second trainer"):
            first.step(4)
        assert not weights(moved(before, snapshot(net)))

    def test_a_number_in_either_is_the_cure(self):
        net, first, second = self.build()
        first.set_lr_mult({net[0]: 0.5})
        train(net, first, batches(1))
        train(net, second, batches(1))
        assert net[0].weight.lr_mult == 0.5
        net, first, second = self.build()
        second.set_lr_mult({net[0]: 0.5})
        train(net, second, batches(1))
        train(net, first, batches(1))
        assert net[0].weight.lr_mult == 0.5

    def test_a_trainer_that_is_no_longer_used_does_not_matter(self):
        net, _, second = self.build()
        train(net, second, batches(3))
        assert net[0].weight.lr_mult == 2 / 4


def test_two_doors_that_say_different_things_are_refused():
    net, trainer = build(lambda net: [net, (net[0], 0)])
    train(net, trainer, batches(1))
    net[0].weight.lr_mult = 1
    trainer.optimizer.set_lr_mult({"net_dense0_weight": 0})  # what the table says already
    backward(net, *batches(1)[0])
    with pytest.raises(ValueError, match=r"set to 1 on the Parameter and to 0.*trainer.set_lr_mult"):
        trainer.step(4)
    trainer.set_lr_mult({net[0].weight: 0.5})
    assert changed_by(net, trainer) == ALL - {"net_dense0_bias"}
