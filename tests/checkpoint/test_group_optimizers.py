"""A checkpoint holds the optimizers of the groups, and restores each to the same Parameters or raises."""

import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import nn

from checkpoint_support import SCHEDULERS, replace_entry
from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.checkpoint.archive import Reader
from multitrainer.checkpoint.header import read_header
from support import CONTEXTS, NOT_COMPARED, Overflow, batches, bits, fingerprint, mlp, same, train

SGD = ("sgd", {"learning_rate": 0.1, "momentum": 0.9})
ADAM = ("adam", {"learning_rate": 0.01, "wd": 1e-3})


def group(net, i, optimizer, name=None):
    return ParamGroup(net[i], name=name, optimizer=optimizer[0], optimizer_params=optimizer[1])


def build(*own, one=SGD, ctx=None, frozen=None, **options):
    """Return a network and its trainer; each of ``own`` is the number of a layer and its optimizer."""
    net = mlp(ctx, batchnorm=ctx is None)
    groups = [group(net, i, optimizer, f"layer {i}") for i, optimizer in own]
    trainer = MultiLRTrainer([net, *groups], *one, **options)
    if frozen is not None:
        trainer.set_lr_mult({net[frozen]: 0})
    return net, trainer


def state(net, trainer):
    """Return everything on which further training depends, of all optimizers."""
    own = {}
    for name, optimizer in trainer.optimizers.items():
        attributes = {key: value for key, value in vars(optimizer).items() if key not in NOT_COMPARED}
        scheduler = optimizer.lr_scheduler
        counts = [count for _, count in sorted(optimizer._all_index_update_counts.items())]
        scheduled = None if scheduler is None else bits(vars(scheduler))
        own[name] = optimizer.num_update, bits(attributes), counts[:1], scheduled
    return fingerprint(trainer, net), own


def save(folder, net, trainer):
    net.save_parameters(str(folder / "net"))
    trainer.save_states(folder / "states")


def load(folder, net, trainer, ctx=None, **options):
    net.load_parameters(str(folder / "net"), ctx=ctx)
    return trainer.load_states(folder / "states", **options)


def scheduled(kind):
    def make():
        one = ("sgd", {"momentum": 0.9, "lr_scheduler": SCHEDULERS[kind]()})
        return build((2, ("nag", {"momentum": 0.9, "lr_scheduler": SCHEDULERS["factor"]()})), one=one)

    return make


CASES = {
    "adam": lambda: build((2, ADAM)),
    "three": lambda: build((0, ADAM), (2, ("nadam", {}))),
    "the same class": lambda: build((2, ("sgd", {"momentum": 0.5}))),
    "settings alone": lambda: build((2, (None, {"momentum": 0.5}))),
    "nothing for the trainer's own": lambda: build((0, ADAM), (1, ADAM), (2, ADAM)),
    "two contexts": lambda: build((1, ADAM), ctx=CONTEXTS),
    "frozen": lambda: build((2, ADAM), (0, ("nag", {"momentum": 0.9})), frozen=2),
    **{f"{kind} scheduler": scheduled(kind) for kind in SCHEDULERS},
}


@pytest.mark.parametrize("case", CASES)
def test_resumes_bit_for_bit(case, tmp_path):
    ctx = CONTEXTS if case == "two contexts" else None
    net, trainer = CASES[case]()
    train(net, trainer, batches(3), ctx)
    save(tmp_path, net, trainer)
    other, fresh = CASES[case]()
    assert load(tmp_path, other, fresh, ctx) == {}
    assert state(other, fresh) == state(net, trainer)
    for each in (trainer, fresh):
        each.set_lr_mult({(net if each is trainer else other)[0]: 1})
    data = batches(3, seed=8)
    assert same(train(other, fresh, data, ctx), train(net, trainer, data, ctx))
    assert state(other, fresh) == state(net, trainer)


def test_settings_of_the_file_win(tmp_path):
    net, trainer = build((2, ADAM))
    trainer.optimizers["layer 2"].set_learning_rate(0.5)
    train(net, trainer, batches(1))
    save(tmp_path, net, trainer)
    other, fresh = build((2, ("adam", {"beta1": 0.5})))
    load(tmp_path, other, fresh)
    assert (fresh.optimizers["layer 2"].lr, fresh.optimizers["layer 2"].beta1) == (0.5, 0.9)


def test_names_and_order_of_groups_may_differ(tmp_path):
    """The Parameters tell which optimizer is which."""
    nag = ("nag", {"momentum": 0.9})
    net, trainer = build((0, ADAM), (2, nag))
    train(net, trainer, batches(3))
    save(tmp_path, net, trainer)
    other = mlp()
    fresh = MultiLRTrainer([other, group(other, 2, nag, "layer 0"), group(other, 0, ADAM, "x")], *SGD)
    load(tmp_path, other, fresh)
    data = batches(3, seed=8)
    assert same(train(other, fresh, data), train(net, trainer, data))


def test_contexts_may_differ(tmp_path):
    net, trainer = build((1, ADAM), ctx=CONTEXTS)
    train(net, trainer, batches(3), CONTEXTS)
    save(tmp_path, net, trainer)
    net, trainer = build((1, ADAM), ctx=[mx.cpu(0)])
    load(tmp_path, net, trainer, [mx.cpu(0)])
    assert trainer.optimizers["layer 1"].num_update == 3
    assert sorted(trainer._updaters[0].states) == list(range(4))
    train(net, trainer, batches(1))
    assert trainer.optimizers["layer 1"]._all_index_update_counts[0] == {2: 4, 3: 4}


def test_amp_loss_scale(tmp_path):
    net, trainer = build((2, ADAM))
    trainer._amp_loss_scaler = Overflow({2})
    trainer._amp_loss_scaler.at = 2
    save(tmp_path, net, trainer)
    other, fresh = build((2, ADAM))
    with pytest.raises(ValueError, match="saved under AMP"):
        load(tmp_path, other, fresh)
    fresh._amp_loss_scaler = Overflow({5})
    fresh._amp_loss_scaler.at = 5
    load(tmp_path, other, fresh)
    assert fresh._amp_loss_scaler.at == 2


def test_without_own_optimizers_the_file_is_that_of_earlier_versions(tmp_path):
    net, trainer = build()
    train(net, trainer, batches(1))
    save(tmp_path, net, trainer)
    with np.load(str(tmp_path / "states")) as file:
        header = json.loads(file["@header"].item())
    assert list(header) == [
        *("format", "version", "parameters", "groups", "num_update", "was_frozen", "optimizer", "lr_scheduler"),
        *("loss_scaler", "shared"),
    ]
    assert list(header["optimizer"]) == ["class", "attributes", "by_parameter"]
    keys = ["shape", "dtype", "lr_mult", "wd_mult", "grad_req", "before", "schedules", "frozen", "updates", "state"]
    assert list(header["parameters"]["net_dense0_weight"]) == keys


MISMATCHES = {
    "another class": (
        lambda: build((2, ("nag", {}))),
        r"holds states of Adam, but the optimizer of group 'layer 2' is NAG",
    ),
    "none here": (lambda: build(), r"'net_dense1_\w+' was updated by Adam, the optimizer of group 'layer 2', when"),
    "fewer Parameters": (
        lambda: split("net_dense1_bias"),
        r"'net_dense1_weight' was updated by Adam.*is updated by SGD, the optimizer of the trainer, here",
    ),
    "more Parameters": (
        lambda: build((1, ADAM), (2, ADAM)),
        r"'net_batchnorm0_\w+' was updated by SGD, the optimizer of the trainer, .*group 'layer 1'",
    ),
    "two instead of one": (
        lambda: split("net_dense1_bias", "net_dense1_weight"),
        r"'net_dense1_weight' was updated by.*\. In the file it shares its optimizer with 'net_dense1_bias', here",
    ),
    "another class of the trainer's own": (lambda: build((2, ADAM), one=("nag", {})), "holds states of SGD"),
    "a scheduler": (
        lambda: build((2, ("adam", {"lr_scheduler": SCHEDULERS["factor"]()}))),
        r"saved without an lr_scheduler, but group 'layer 2' has FactorScheduler.*keep='learning_rate'",
    ),
}


def split(*names):
    net = mlp()
    params = net.collect_params()
    groups = [ParamGroup(params[name], optimizer="adam") for name in names]
    return net, MultiLRTrainer([net, *groups], *SGD)


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_division_is_refused_before_anything_has_changed(case, tmp_path):
    make, message = MISMATCHES[case]
    net, trainer = build((2, ADAM))
    train(net, trainer, batches(2))
    trainer.save_states(tmp_path / "states")
    other, fresh = make()
    train(other, fresh, batches(1))
    before = state(other, fresh)
    with pytest.raises(ValueError, match=message):
        fresh.load_states(tmp_path / "states")
    assert state(other, fresh) == before


def test_one_optimizer_instead_of_two_is_refused(tmp_path):
    net, trainer = split("net_dense1_bias", "net_dense1_weight")
    train(net, trainer, batches(1))
    trainer.save_states(tmp_path / "states")
    _, fresh = build((2, ADAM))
    with pytest.raises(
        ValueError, match=r"weight' .*\. Here it shares its optimizer with 'net_dense1_bias', in the file"
    ):
        fresh.load_states(tmp_path / "states")


def test_a_file_of_one_optimizer_is_refused_by_groups_with_their_own(tmp_path):
    net, trainer = build()
    train(net, trainer, batches(2))
    trainer.save_states(tmp_path / "states")
    other, fresh = build((2, ADAM))
    before = state(other, fresh)
    with pytest.raises(ValueError, match=r"'net_dense1_\w+' was updated by SGD, the optimizer of the trainer, when"):
        fresh.load_states(tmp_path / "states")
    assert state(other, fresh) == before


def test_a_pickle_of_stock_is_refused(tmp_path):
    net = mlp()
    stock = gluon.Trainer(net.collect_params(), "sgd")
    stock.save_states(str(tmp_path / "states"))
    _, trainer = build((2, ADAM))
    with pytest.raises(ValueError, match="a file of stock Trainer holds one optimizer, and this trainer has 2"):
        trainer.load_states(tmp_path / "states", allow_pickle=True)


class TestKeep:
    def saved(self, tmp_path, **options):
        net, trainer = build((2, ADAM), **options)
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        return build((2, ("adam", {"learning_rate": 0.5, "wd": 0.25, "beta1": 0.5})), one=("sgd", {"momentum": 0.1}))

    def test_the_learning_rate_of_every_optimizer(self, tmp_path):
        _, trainer = self.saved(tmp_path)
        trainer.load_states(tmp_path / "states", keep="learning_rate")
        own = trainer.optimizers["layer 2"]
        assert (trainer.learning_rate, own.lr, own.wd, own.num_update) == (0.01, 0.5, 1e-3, 2)

    def test_an_attribute_of_the_optimizers_that_have_it(self, tmp_path):
        _, trainer = self.saved(tmp_path)
        trainer.load_states(tmp_path / "states", keep=["wd", "beta1"])
        own = trainer.optimizers["layer 2"]
        assert (own.wd, own.beta1, own.lr) == (0.25, 0.5, 0.01)
        assert (trainer.optimizer.wd, trainer.optimizer.momentum) == (0, 0.9)

    def test_schedulers(self, tmp_path):
        self.saved(tmp_path)
        _, trainer = build((2, ("adam", {"lr_scheduler": SCHEDULERS["factor"]()})))
        trainer.load_states(tmp_path / "states", keep="learning_rate")
        assert trainer.optimizers["layer 2"].lr_scheduler.count == 0

    def test_unknown(self, tmp_path):
        _, trainer = self.saved(tmp_path)
        with pytest.raises(ValueError, match=r"'gamma' cannot be kept; choose from .*beta1.*momentum"):
            trainer.load_states(tmp_path / "states", keep="gamma")


class TestPartial:
    def test_an_optimizer_without_a_loaded_parameter_stays_as_it_is(self, tmp_path):
        net, trainer = build((2, ADAM))
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        other = nn.HybridSequential()
        other.add(*list(mlp())[:2], nn.Dense(2, in_units=4, prefix="new_"))
        other[2].initialize()
        fresh = MultiLRTrainer([other, group(other, 2, ("nag", {"momentum": 0.5}), "2")], *SGD)
        train(other, fresh, batches(1))
        left_out = fresh.load_states(tmp_path / "states", partial=True)
        assert set(left_out) == {"net_dense1_weight", "net_dense1_bias", "new_weight", "new_bias"}
        own = fresh.optimizers["2"]
        assert (fresh.optimizer.num_update, own.num_update, own.momentum) == (3, 1, 0.5)
        assert [index for index, param in enumerate(fresh._params) if param.name.startswith("new")] == [6, 7]
        assert sorted(fresh._updaters[0].states) == [0, 1, 4, 5, 6, 7]
        train(other, fresh, batches(1))

    def test_an_optimizer_that_lost_some_parameters_is_loaded(self, tmp_path):
        net, trainer = build((2, ADAM))
        train(net, trainer, batches(3))
        trainer.save_states(tmp_path / "states")
        other = mlp()
        params = {name: param for name, param in other.collect_params().items() if name != "net_dense1_bias"}
        last = {"w": params["net_dense1_weight"]}
        fresh = MultiLRTrainer([params, ParamGroup(last, name="w", optimizer="adam")], *SGD)
        assert fresh.load_states(tmp_path / "states", partial=True) == {"net_dense1_bias": "not in this trainer"}
        assert fresh.optimizers["w"].num_update == 3
        assert fresh.optimizers["w"].wd == 1e-3


@pytest.fixture
def saved(tmp_path):
    net, trainer = build((2, ADAM))
    train(net, trainer, batches(2))
    trainer.save_states(tmp_path / "states")
    return net, trainer, tmp_path / "states", tmp_path / "changed"


def test_entries_of_a_good_file(saved):
    with Reader(saved[2]) as reader:
        header = read_header(reader)
    main, own = header.optimizers
    assert (main.group, main.kind, main.num_update, main.root) == (None, "SGD", 2, "@optimizer")
    assert (own.group, own.kind, own.num_update) == ("layer 2", "Adam", 2)
    assert own.attributes["beta1"] == 0.9
    assert own.root == "@group_optimizers/0/optimizer"
    assert (header.optimizer_of("net_dense0_weight"), header.optimizer_of("net_dense1_weight")) == (0, 1)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["group_optimizers"], {}, "its 'group_optimizers' is"),
        (["group_optimizers"], [], "the optimizer of 'net_dense1_bias' is 0"),
        (["group_optimizers", 0], None, "its 'group' is"),
        (["group_optimizers", 0, "group"], None, "its 'group' is"),
        (["group_optimizers", 0, "num_update"], -1, "its 'num_update' is -1"),
        (["group_optimizers", 0, "class"], 3, "its 'class' is"),
        (["group_optimizers", 0, "class"], "NAG", "holds states of NAG, but the optimizer of group 'layer 2' is Adam"),
        (["group_optimizers", 0, "attributes"], [], "its 'attributes' is"),
        (["group_optimizers", 0, "attributes", "lr"], "x", "lr"),
        (["group_optimizers", 0, "by_parameter"], None, "its 'by_parameter' is"),
        (["group_optimizers", 0, "lr_scheduler"], 3, "saved with an lr_scheduler, but group 'layer 2' has none"),
        (["parameters", "net_dense1_bias", "optimizer"], 1, "the optimizer of 'net_dense1_bias' is 1"),
        (["parameters", "net_dense1_bias", "optimizer"], -1, "the optimizer of 'net_dense1_bias' is -1"),
        (["parameters", "net_dense1_bias", "optimizer"], True, "its 'optimizer' is"),
        (["parameters", "net_dense0_bias", "optimizer"], 0, r"'net_dense0_\w+' was updated by"),
    ],
)
def test_a_file_with_another_entry_is_refused(saved, keys, value, reason):
    net, trainer, path, changed = saved
    replace_entry(path, changed, keys, value)
    before = state(net, trainer)
    with pytest.raises(ValueError, match=reason):
        trainer.load_states(changed)
    assert state(net, trainer) == before
