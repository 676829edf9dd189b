"""Stop between two updates and resume: the gradients that were collected are in the file."""

import mxnet as mx
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from checkpoint_support import replace_entry
from multitrainer import MultiLRTrainer
from multitrainer.checkpoint.archive import Reader
from support import CONTEXTS, batches, bits, fingerprint, mlp, same, train


def build(steps=4, ctx=None, optimizer="adam", **options):
    net = mlp(ctx, batchnorm=False)
    return net, MultiLRTrainer([net, (net[0], 0.5)], optimizer, accumulate=steps, **options)


def collected(trainer):
    steps, size, scale, gradients = trainer._accumulation.collected
    return steps, size, scale, {param.name: bits(list(arrays)) for param, arrays in gradients.items()}


@pytest.fixture
def saved(tmp_path):
    """Return a run that was saved after 3 of 4 steps, and the file."""
    net, trainer = build()
    train(net, trainer, batches(7))
    net.save_parameters(str(tmp_path / "net"))
    trainer.save_states(tmp_path / "states")
    return net, trainer, tmp_path / "states"


@pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_resumed_in_every_bit(steps, ctx, tmp_path):
    net, trainer = build(4, ctx)
    train(net, trainer, batches(steps), ctx)
    net.save_parameters(str(tmp_path / "net"))
    trainer.save_states(tmp_path / "states")
    other, fresh = build(4, ctx)
    other.load_parameters(str(tmp_path / "net"), ctx=ctx)
    assert fresh.load_states(tmp_path / "states") == {}
    assert collected(fresh) == collected(trainer)
    assert fresh.accumulated == steps % 4
    data = batches(6, seed=8)
    assert same(train(net, trainer, data, ctx), train(other, fresh, data, ctx))
    assert fingerprint(trainer, net) == fingerprint(fresh, other)


def test_sparse_gradients_and_layers_that_no_batch_used(tmp_path):
    def make():
        mx.random.seed(3)
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Embedding(10, 4, sparse_grad=True), nn.Dense(2, in_units=4), nn.Dense(2, in_units=4))
        net.initialize(mx.init.Xavier())
        return net, MultiLRTrainer(net, "sgd", {"learning_rate": 0.5}, accumulate=3)

    def step(net, trainer, rows):
        with autograd.record():
            loss = (net[1](net[0](mx.nd.array(rows))) ** 2).sum()
        loss.backward()
        trainer.step(2, ignore_stale_grad=True)

    net, trainer = make()
    step(net, trainer, [1, 3])
    step(net, trainer, [3, 9])
    net.save_parameters(str(tmp_path / "net"))
    trainer.save_states(tmp_path / "states")
    other, fresh = make()
    other.load_parameters(str(tmp_path / "net"))
    fresh.load_states(tmp_path / "states")
    for each in ((net, trainer), (other, fresh)):
        step(*each, [0, 1])
    assert fingerprint(trainer, net) == fingerprint(fresh, other)
    assert fresh.optimizer.num_update == 1


def test_between_updates_the_file_is_as_without(tmp_path):
    net, trainer = build(1)
    train(net, trainer, batches(2))
    trainer.save_states(tmp_path / "without")
    _, fresh = build(2)
    fresh.load_states(tmp_path / "without")
    fresh.save_states(tmp_path / "with")
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()
    with Reader(tmp_path / "with") as reader:
        assert "accumulated" not in reader.header


def test_loading_drops_what_was_collected(tmp_path):
    net, trainer = build()
    trainer.save_states(tmp_path / "states")
    train(net, trainer, batches(3))
    trainer.load_states(tmp_path / "states")
    assert trainer.accumulated == 0
    train(net, trainer, batches(2))
    trainer.save_states(tmp_path / "collected")
    train(net, trainer, batches(1))
    trainer.load_states(tmp_path / "collected")
    assert trainer.accumulated == 2


def test_loading_a_pickle_drops_what_was_collected(tmp_path):
    net = mlp(batchnorm=False)
    gluon.Trainer(net.collect_params(), "adam").save_states(str(tmp_path / "stock"))
    net, trainer = build()
    train(net, trainer, batches(2))
    trainer.load_states(tmp_path / "stock", allow_pickle=True)
    assert trainer.accumulated == 0


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_another_number_of_steps_is_refused(steps, saved):
    _, _, path = saved
    net, trainer = build(steps)
    before = fingerprint(trainer, net)
    with pytest.raises(
        ValueError, match=rf"3 of 4 steps .* has accumulate={steps}: build it with accumulate=4, or dro"
    ):
        trainer.load_states(path)
    assert fingerprint(trainer, net) == before
    trainer.load_states(path, keep="accumulated")
    assert (trainer.accumulated, trainer.optimizer.num_update) == (0, 1)


def test_another_number_of_contexts_is_refused(saved):
    _, _, path = saved
    _, trainer = build(4, CONTEXTS)
    with pytest.raises(ValueError, match=r"collected on 1 contexts, but this trainer has 2: .*keep='accumulated'"):
        trainer.load_states(path)
    trainer.load_states(path, keep=["accumulated"])
    assert trainer.accumulated == 0


def test_a_refused_file_leaves_what_was_collected(saved, tmp_path):
    _, trainer, path = saved
    replace_entry(path, tmp_path / "changed", ["num_update"], -1)
    before = collected(trainer)
    with pytest.raises(ValueError, match="num_update"):
        trainer.load_states(tmp_path / "changed")
    assert collected(trainer) == before


def test_partial(saved):
    _, _, path = saved
    other = nn.HybridSequential(prefix="net_")
    with other.name_scope():
        other.add(nn.Dense(4, in_units=3), nn.Dense(5, in_units=4))
    other.initialize()
    trainer = MultiLRTrainer(other, "adam", accumulate=4)
    left_out = trainer.load_states(path, partial=True)
    assert left_out.keys() == {"net_dense1_weight", "net_dense1_bias"}
    assert {param.name for param in trainer._accumulation.collected.gradients} == {
        "net_dense0_weight",
        "net_dense0_bias",
    }
    assert trainer.accumulated == 3


def test_a_layer_that_was_frozen_between(tmp_path):
    net, trainer = build()
    train(net, trainer, batches(2))
    trainer.set_lr_mult({net[0]: 0})
    net.save_parameters(str(tmp_path / "net"))
    trainer.save_states(tmp_path / "states")
    other, fresh = build()
    other.load_parameters(str(tmp_path / "net"))
    fresh.load_states(tmp_path / "states")
    histories = [train(*each, batches(2, seed=8)) for each in ((net, trainer), (other, fresh))]
    assert same(*histories)
    assert fingerprint(trainer, net) == fingerprint(fresh, other)


GRADIENTS = ["accumulated", "gradients"]


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["accumulated"], [], "its 'accumulated' is missing or of a wrong type"),
        (["accumulated", "steps"], 4, "it has collected 4 of 4 steps"),
        (["accumulated", "steps"], 0, "it has collected 0 of 4 steps"),
        (["accumulated", "steps"], True, "its 'steps' is missing or of a wrong type"),
        (["accumulated", "accumulate"], "4", "its 'accumulate' is missing or of a wrong type"),
        (["accumulated", "batch_size"], -1.0, "of batch size -1.0"),
        (["accumulated", "scale"], None, "its 'scale' is missing or of a wrong type"),
        (GRADIENTS, [], "its 'gradients' is missing or of a wrong type"),
        ([*GRADIENTS, "net_dense0_bias"], 3, "the gradients of 'net_dense0_bias' are of another kind"),
        ([*GRADIENTS, "net_dense0_bias"], {"tuple": [3]}, "the gradients of 'net_dense0_bias' are of another kind"),
        (
            [*GRADIENTS, "net_dense0_bias"],
            {"tuple": [{"array": ["float32", [2]]}]},
            "dtype or shape mismatch for '@accumulated/net_dense0_bias/0'",
        ),
        ([*GRADIENTS, "net_dense0_bias"], {"tuple": [None]}, "it holds '@accumulated/net_dense0_bias/0', which"),
        (GRADIENTS, {}, "it holds '@accumulated/net_dense0_bias/0', which"),
    ],
)
def test_a_damaged_file(keys, value, reason, saved, tmp_path):
    _, _, path = saved
    replace_entry(path, tmp_path / "changed", keys, value)
    net, trainer = build()
    before = fingerprint(trainer, net)
    with pytest.raises(ValueError, match=reason):
        trainer.load_states(tmp_path / "changed")
    assert fingerprint(trainer, net) == before
    assert trainer.accumulated == 0


def test_gradients_of_the_shape_of_another_parameter(saved, tmp_path):
    _, _, path = saved
    node = {"tuple": [{"array": ["float32", [4]]}]}
    replace_entry(path, tmp_path / "changed", [*GRADIENTS, "net_dense1_bias"], node)
    _, trainer = build()
    with pytest.raises(ValueError, match="net_dense1_bias"):
        trainer.load_states(tmp_path / "changed")
