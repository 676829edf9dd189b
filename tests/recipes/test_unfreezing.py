"""Gradual unfreezing: which stage trains at which update, and what is refused."""

import copy
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer import (
    MultiLRTrainer,
    ParamGroup,
    discriminative,
    gradual_unfreezing,
    no_weight_decay,
    unfreeze_at,
)
from recipe_support import covers, deep, multipliers, names, resnet
from support import Overflow, backward, batches, mlp, moved, same, snapshot, train, weights


class TestUnfreezeAt:
    def test_it_is_0_before_the_update_and_the_multiplier_from_it_on(self):
        assert [unfreeze_at(3, 0.5)(t) for t in range(1, 6)] == [0, 0, 0.5, 0.5, 0.5]
        assert [unfreeze_at(np.int64(2))(t) for t in (1, 2)] == [0, 1]
        assert [unfreeze_at(3, lambda t: t / 10)(t) for t in (2, 3, 4)] == [0, 0.3, 0.4]

    def test_it_is_shown_compared_copied_and_pickled(self):
        schedule = unfreeze_at(3, 0.5)
        assert repr(schedule) == "unfreeze_at(3, lr_mult=0.5)"
        assert repr(unfreeze_at(3)) == "unfreeze_at(3)"
        assert schedule == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
        assert len({schedule, unfreeze_at(3, 0.5), unfreeze_at(3), unfreeze_at(4, 0.5)}) == 3
        assert hash(schedule) == hash(unfreeze_at(3, 0.5))
        assert schedule != 3

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0,), ValueError, "num_update of unfreeze_at must be at least 1.*got 0"),
            ((1.5,), TypeError, "must be a whole number of updates, got 1.5"),
            ((True,), TypeError, "must be a whole number of updates, got True"),
            ((2, -1), ValueError, "lr_mult of unfreeze_at must be a finite number >= 0, got -1"),
            ((2, "x"), TypeError, "lr_mult of unfreeze_at must be a number"),
        ],
    )
    def test_misuse_is_refused(self, arguments, error, message):
        with pytest.raises(error, match=message):
            unfreeze_at(*arguments)


STAGES = [
    {"net_dense0_weight", "net_dense0_bias", "net_batchnorm0_gamma", "net_batchnorm0_beta"},
    {"net_dense1_weight", "net_dense1_bias", "net_batchnorm1_gamma", "net_batchnorm1_beta"},
    {"net_dense2_weight", "net_dense2_bias"},
]


def stages_moved(net, trainer, count):
    """Return, for each of ``count`` updates, how many of the last stages it moved, statistics among them."""
    found = []
    for x, y in batches(count):
        before = snapshot(net)
        train(net, trainer, [(x, y)])
        changed = moved(before, snapshot(net))
        found.append(next(i for i in range(3) if weights(changed) == set().union(*STAGES[2 - i :])) + 1)
        statistics = {name for name in changed if "running" in name}
        frozen = {f"batchnorm{i}_running_{what}" for i in range(3 - found[-1]) for what in ("mean", "var")}
        assert not {name for name in statistics if name[len("net_") :] in frozen}
    return found


def train_and_predict_agree(net):
    """Whether every BatchNorm runs on its running statistics, in the trace too."""
    x = batches(1)[0][0]
    with mx.autograd.record(train_mode=True):
        trained = net(x)
    return np.allclose(trained.asnumpy(), net(x).asnumpy(), atol=1e-5)


class TestGradualUnfreezing:
    def test_stages_are_unfrozen_from_the_output_down(self):
        net = resnet()
        groups = gradual_unfreezing(net, 100, lr_mult=0.5)
        assert multipliers(groups) == [*(unfreeze_at(t, 0.5) for t in (501, 401, 301, 201, 101)), 0.5]
        assert covers(groups, net)
        assert multipliers(gradual_unfreezing(deep(), [5, 5])) == [unfreeze_at(5), unfreeze_at(5), 1]
        assert multipliers(gradual_unfreezing(nn.Dense(2), 5)) == [1]
        assert multipliers(gradual_unfreezing(deep(), (1, 4))) == [unfreeze_at(4), 1, 1]

    def test_groups_keep_their_multipliers_and_names(self):
        net = deep()
        given = [*discriminative(net, 0.25, 1)]
        given[0].wd_mult = 0.5
        groups = gradual_unfreezing(given, 2)
        assert multipliers(groups) == [unfreeze_at(5, 0.25), unfreeze_at(3, 0.5), 1]
        assert names(groups) == names(given)
        assert groups[0].wd_mult == 0.5
        assert multipliers(given) == [0.25, 0.5, 1]
        assert {group.root for group in groups} == {net}

    def test_groups_without_a_name_or_a_multiplier(self):
        net = mlp()
        groups = gradual_unfreezing([ParamGroup(net[0]), ParamGroup(net[1]), ParamGroup(net[2], 3, name="head")], 2)
        assert names(groups) == ["stage1", "stage2", "head"]
        assert multipliers(groups) == [unfreeze_at(5), unfreeze_at(3), 3]
        assert {group.root for group in groups} == {None}

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    @pytest.mark.filterwarnings("error:.*has not been called since")
    def test_training_moves_one_stage_more_at_each_unfreezing(self, hybridize):
        """The recipe is enough: the network need not be named, whether or not it was traced before."""
        net = deep()
        if hybridize is not None:
            net.hybridize(**hybridize)
            net(mx.nd.ones((2, 3)))
        trainer = MultiLRTrainer(gradual_unfreezing(net, 2), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        assert [layer._kwargs["use_global_stats"] for layer in (net[1], net[3])] == [True, True]
        assert train_and_predict_agree(net)
        assert stages_moved(net, trainer, 6) == [1, 1, 2, 2, 3, 3]
        assert not train_and_predict_agree(net)
        assert [layer._kwargs["use_global_stats"] for layer in (net[1], net[3])] == [False, False]

    def test_it_trains_as_if_stages_were_unfrozen_by_hand(self):
        net, twin = deep(), deep()
        trainer = MultiLRTrainer(gradual_unfreezing(discriminative(net, 0.25, 1), [2, 4]), "adam")
        by_hand = MultiLRTrainer([twin, (twin[:4], 0)], "adam")
        for t, batch in enumerate(batches(5), 1):
            by_hand.set_lr_mult({twin[2:4]: 0.5} if t == 2 else {twin[:2]: 0.25} if t == 4 else {twin[4]: 1})
            assert same(train(net, trainer, [batch]), train(twin, by_hand, [batch]))

    def test_updates_that_amp_skips_do_not_count_as_for_the_lr_scheduler(self):
        net = deep()
        scheduler = mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1)
        trainer = MultiLRTrainer(gradual_unfreezing(net, [2, 3]), "sgd", {"lr_scheduler": scheduler})
        trainer._amp_loss_scaler = Overflow([2, 3])
        seen = []
        for batch in batches(5):
            rates = trainer.learning_rates
            before = snapshot(net)
            train(net, trainer, [batch])
            changed = bool(weights(moved(before, snapshot(net))))
            seen.append((trainer.optimizer.num_update, changed, [rates[f"stage{i}"] for i in (1, 2, 3)]))
        assert seen == [
            (1, True, pytest.approx([0, 0, 0.9])),
            (1, False, pytest.approx([0, 0.8, 0.8])),
            (1, False, pytest.approx([0, 0.8, 0.8])),
            (2, True, pytest.approx([0, 0.8, 0.8])),
            (3, True, pytest.approx([0.7, 0.7, 0.7])),
        ]

    def test_updates_count_while_everything_is_frozen(self):
        """At first nothing trains, so no gradient exists: `step` counts the updates alone."""
        net = deep()
        groups = [(net, 0), (net[2:4], unfreeze_at(3)), (net[4], unfreeze_at(4))]
        trainer = MultiLRTrainer(groups, "sgd", {"learning_rate": 0.1})
        before = snapshot(net)
        trainer.step(4)
        trainer.step(4)
        assert not moved(before, snapshot(net))
        changed = []
        for x, y in batches(2):
            before = snapshot(net)
            backward(net, x, y)
            trainer.step(4)
            changed.append(weights(moved(before, snapshot(net))))
        assert changed == [STAGES[1], STAGES[1] | STAGES[2]]

    @pytest.mark.parametrize(
        ("every", "error", "message"),
        [
            (0, ValueError, "every must be at least 1, the number of the first update, got 0"),
            (2.5, TypeError, "every must be a whole number of updates, got 2.5"),
            ("ab", TypeError, "every must be a whole number of updates, got 'ab'"),
            ([5], ValueError, "every names 1 updates, but there are 2 stages before the last"),
            ([5, 3], ValueError, r"every must not decrease, got \[5, 3\]"),
            ([5, 0], ValueError, r"every\[1\] must be at least 1"),
            ([5, None], TypeError, r"every\[1\] must be a whole number"),
        ],
    )
    def test_a_wrong_calendar_is_refused(self, every, error, message):
        with pytest.raises(error, match=message):
            gradual_unfreezing(deep(), every)

    def test_wrong_groups_are_refused(self):
        net = deep()
        groups = discriminative(net, 0.1, 1)
        with pytest.raises(ValueError, match=r"lr_mult 0.5 was given beside groups"):
            gradual_unfreezing(groups, 2, lr_mult=0.5)
        with pytest.raises(TypeError, match=r"groups\[3\] must be a ParamGroup like the others, got Dense"):
            gradual_unfreezing([*groups, net[0]], 2)
        with pytest.raises(ValueError, match=r"is in ParamGroup\(.*stage1.* and in ParamGroup\(.*no_weight_decay"):
            gradual_unfreezing([*groups, no_weight_decay(net)], 2)
