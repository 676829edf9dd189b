"""What groups say about optimizers is read and checked before anything is created or changed."""

import copy

import mxnet as mx
import pytest
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.groups import resolve
from multitrainer.optimizers.group_optimizers import optimizer_class, read_group_optimizers
from support import bits, mlp


def read(*entries, optimizer="sgd", **settings):
    return read_group_optimizers(resolve(list(entries)), optimizer, settings)


def test_optimizer_class():
    assert optimizer_class(mx.optimizer.Adam()) is mx.optimizer.Adam
    assert optimizer_class("adam") is optimizer_class("Adam") is mx.optimizer.Adam
    assert optimizer_class("unknown") is Optimizer


def test_without_own_optimizers_there_are_none():
    net = mlp()
    assert read(net, (net[0], 0.5), ParamGroup(net[2], lr_mult=2)) == []


def test_by_name():
    net = mlp()
    (own,) = read(net, ParamGroup(net[2], name="head", optimizer="Adam", optimizer_params={"beta1": 0.8}))
    assert (own.group, own.kind, own.settings) == ("head", mx.optimizer.Adam, {"beta1": 0.8})
    assert set(own.params) == {net[2].weight, net[2].bias}
    optimizer = own.create(list(net.collect_params().values()))
    assert type(optimizer) is mx.optimizer.Adam
    assert optimizer.beta1 == 0.8


def test_by_object():
    net, adam = mlp(), mx.optimizer.Adam()
    (own,) = read(net, ParamGroup(net[2], optimizer=adam))
    assert own.kind is mx.optimizer.Adam
    assert own.create([]) is adam


def test_settings_alone_replace_some_of_the_trainers():
    net = mlp()
    (own,) = read(net, ParamGroup(net[2], optimizer_params={"momentum": 0.5}), optimizer="NAG", wd=0.1, momentum=0.9)
    assert (own.kind, own.settings) == (mx.optimizer.NAG, {"wd": 0.1, "momentum": 0.5})


def test_no_settings_are_those_of_the_trainer():
    net = mlp()
    (own,) = read(net, ParamGroup(net[2], optimizer_params={}), wd=0.1)
    assert (own.kind, own.settings) == (mx.optimizer.SGD, {"wd": 0.1})


def test_a_later_group_refines_an_earlier_one():
    net = mlp()
    body = ParamGroup(net, name="body", optimizer="adam")
    head = ParamGroup(net[2], name="head", optimizer="nag")
    found = read(body, (net[2], 0.5), head)
    assert [own.group for own in found] == ["body", "head"]
    assert net[2].weight in found[1].params
    assert not set(found[0].params) & set(found[1].params)


def test_a_group_whose_parameters_all_went_to_later_ones_needs_no_optimizer():
    net = mlp()
    parts = [ParamGroup(net[i], optimizer="adam") for i in range(3)]
    assert [own.group for own in read(ParamGroup(net, optimizer="nag"), *parts)] == ["0", "1", "2"]


def test_the_trainers_lr_scheduler_is_copied():
    net, scheduler = mlp(), mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.1)
    (own,) = read(net, ParamGroup(net[2], optimizer_params={"momentum": 0.5}), lr_scheduler=scheduler)
    assert own.lr_scheduler is not scheduler
    assert bits(vars(own.lr_scheduler)) == bits(vars(scheduler))


def test_a_scheduler_of_the_group_keeps_its_base_rate():
    net, scheduler = mlp(), mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.25)
    (own,) = read(net, ParamGroup(net[2], optimizer_params={"lr_scheduler": scheduler}), learning_rate=0.1)
    assert own.create([]).learning_rate == 0.25
    (own,) = read(net, ParamGroup(net[2], optimizer_params={"lr_scheduler": None}), learning_rate=0.1)
    assert own.create([]).learning_rate == 0.1


def test_a_function_may_schedule_several_optimizers():
    net = mlp()

    def schedule(num_update):
        return 1 / num_update

    group = ParamGroup(net[2], optimizer="adam", optimizer_params={"lr_scheduler": schedule})
    (own,) = read(net, group, lr_scheduler=schedule)
    assert own.lr_scheduler is schedule


class Uncopyable(mx.lr_scheduler.LRScheduler):
    def __deepcopy__(self, memo):
        raise OSError("a handle")


SHARED_SCHEDULER = mx.lr_scheduler.FactorScheduler(2, 0.5)
SHARED_OPTIMIZER = mx.optimizer.Adam()


def own(net, i, optimizer=None, **settings):
    return ParamGroup(net[i], optimizer=optimizer, optimizer_params=settings or None)


@pytest.mark.parametrize(
    ("entries", "optimizer", "settings", "message"),
    [
        (lambda net: [own(net, 2, "adan")], "sgd", {}, r"group '2': there is no optimizer 'adan'; .*'adam'"),
        (lambda net: [own(net, 2, momentum=0.5)], "sgdd", {}, r"group '2': there is no optimizer 'sgdd'"),
        (
            lambda net: [own(net, 2, momentum=0.5)],
            mx.optimizer.SGD(),
            {},
            r"optimizer_params of group '2': the settings of the trainer's optimizer are not known.*name the optimizer",
        ),
        (
            lambda net: [own(net, 2, learning_rate=0.5)],
            "sgd",
            {"lr_scheduler": mx.lr_scheduler.FactorScheduler(2)},
            r"group '2' set a learning_rate, but the lr_scheduler of the trainer's.*None for a constant",
        ),
        (
            lambda net: [own(net, 2, momentum=0.5)],
            "sgd",
            {"lr_scheduler": Uncopyable()},
            r"group '2' takes over the lr_scheduler .* cannot be copied \(a handle\)",
        ),
        (
            lambda net: [own(net, 2, SHARED_OPTIMIZER)],
            SHARED_OPTIMIZER,
            {},
            r"the optimizer of group '2' is the object that the trainer has too",
        ),
        (
            lambda net: [own(net, 0, SHARED_OPTIMIZER), own(net, 2, SHARED_OPTIMIZER)],
            "sgd",
            {},
            r"the optimizer of group '2' is the object that group '0' has too",
        ),
        (
            lambda net: [own(net, 2, "adam", lr_scheduler=SHARED_SCHEDULER)],
            "sgd",
            {"lr_scheduler": SHARED_SCHEDULER},
            r"the lr_scheduler of group '2' is the object that the trainer has too.*copy\.deepcopy",
        ),
        (
            lambda net: [own(net, i, mx.optimizer.Adam(lr_scheduler=SHARED_SCHEDULER)) for i in (0, 2)],
            "sgd",
            {},
            r"the lr_scheduler of group '2' is the object that group '0' has too",
        ),
        (
            lambda net: [ParamGroup(net[:2], optimizer="adam"), ParamGroup([net[1], net[2]], optimizer="nag")],
            "sgd",
            {},
            r"'net_batchnorm0_\w+' gets the optimizer 'adam' from entry 1 .*and 'nag' from entry 2",
        ),
        (
            lambda net: [ParamGroup(net[2], optimizer="adam"), own(net, 2, "adam", beta1=0.5)],
            "sgd",
            {},
            r"gets the optimizer 'adam' from entry 1 .*and 'adam' with \{'beta1': 0.5\} from entry 2",
        ),
        (lambda net: [own(net, 2, "adam", beta3=1)], "sgd", {}, r"'adam' of group '2' cannot be created .*beta3"),
        (lambda net: [ParamGroup([], optimizer="adam")], "sgd", {}, "the target holds no Parameter"),
        (lambda net: [ParamGroup(net[1].running_mean, optimizer="adam")], "sgd", {}, "only statistics or constants"),
    ],
)
def test_errors_come_before_anything_has_changed(entries, optimizer, settings, message):
    net = mlp()
    written = [net, *entries(net)]
    owners = [param._trainer for param in net.collect_params().values()]
    vars_before = bits(copy.copy(vars(SHARED_SCHEDULER)))
    with pytest.raises(ValueError, match=message):
        MultiLRTrainer(written, optimizer, settings or None)
    assert [param._trainer for param in net.collect_params().values()] == owners
    assert bits(vars(SHARED_SCHEDULER)) == vars_before


def test_groups_that_agree_may_overlap():
    net = mlp()
    found = read(net, ParamGroup(net[2], optimizer="adam"), ParamGroup(net[2], lr_mult=2, optimizer="Adam"))
    assert [len(own.params) for own in found] == [2]
