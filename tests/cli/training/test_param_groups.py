"""What the options of `multitrainer finetune` and `multitrainer groups` make of a network."""

from __future__ import annotations

import re

import mxnet as mx
import numpy as np
import pytest

from cli_support import MODEL, rows_of

pytest.importorskip("gluoncv")

from multitrainer import discriminative, layerwise_decay, stages
from multitrainer.cli import build_parser, main
from multitrainer.cli.errors import UserError
from multitrainer.cli.options import parse_optimizer
from multitrainer.cli.ranks.exchange import Ranks
from multitrainer.cli.training import network, param_groups, schedule

CLOCK = schedule.Clock(images=27, batch_size=8, epochs=10)


def make(*options, clock=CLOCK, has_weights=False):
    """Return a network and the trainer that the options give it."""
    args = build_parser().parse_args(["groups", *map(str, options)])
    net, head = network.build(MODEL, 3)
    network.initialize(net, [mx.cpu()], MODEL, 3)
    optimizer, settings = parse_optimizer(args.optimizer, args.lr, args.wd)
    settings = {**settings, **schedule.settings_of(args, optimizer, clock)}
    return net, param_groups.make_trainer(
        param_groups.groups(net, head, has_weights, args, clock), optimizer, settings, Ranks()
    )


def rates(net, trainer, num_update=1):
    """Return what each parameter is multiplied by at an update, by its path."""
    said = {
        param: group.lr_mult for group in trainer.groups if group.lr_mult is not None for param in group.params.values()
    }
    found = {}
    for path, param in net._collect_params_with_prefix().items():
        if param in said:
            found[path] = said[param](num_update) if callable(said[param]) else said[param]
    return found


def of_groups(net, groups):
    by_param = {param: group.lr_mult for group in groups for param in group.params.collect_params().values()}
    paths = net._collect_params_with_prefix().items()
    return {path: by_param[param] for path, param in paths if "running" not in path}


def test_layer_decay_is_the_recipe():
    net, trainer = make("--layer-decay", 0.7)
    assert rates(net, trainer) == of_groups(net, layerwise_decay(net, 0.7))


def test_discriminative_is_the_recipe():
    net, trainer = make("--discriminative", "0.01:2", has_weights=True)
    assert rates(net, trainer) == of_groups(net, discriminative(net, 0.01, 2))
    assert max(rates(net, trainer).values()) == 2


def test_what_is_named_leaves_the_recipe():
    plain = rates(*make("--layer-decay", 0.5))
    options = ("--lr-mult", "features.3=3", "--freeze", "features.3.1", "--freeze", "features.0")
    found = rates(*make("--layer-decay", 0.5, *options))
    assert plain.keys() == found.keys()
    for path, rate in found.items():
        wanted = 0 if path.startswith(("features.0.", "features.3.1.")) else plain[path]
        assert rate == (3 if path.startswith(("features.3.0.", "features.3.2.")) else wanted), path


def test_a_frozen_part_of_a_recipe_keeps_its_statistics():
    net, _ = make("--discriminative", "0.1:1", "--freeze", "features.3")
    batchnorms = [b for b in net.features[3]._children.values() for b in b.body if isinstance(b, mx.gluon.nn.BatchNorm)]
    assert len(batchnorms) == 6
    assert all(layer._kwargs["use_global_stats"] for layer in batchnorms)
    assert not net.features[2][0].body[1]._kwargs["use_global_stats"]


def test_no_bias_decay():
    net, trainer = make("--layer-decay", 0.5, "--no-bias-decay")
    for path, param in net._collect_params_with_prefix().items():
        if param.grad_req != "null":
            assert param.wd_mult == (0 if path.endswith(("bias", "gamma", "beta")) else 1), path
    assert "no_weight_decay" in trainer.summary()


def test_one_epoch_unfreezes_the_backbone():
    net, trainer = make("--unfreeze-at", 3, has_weights=True)
    first = (27 + 27) // 8 + 1  # what is left over of an epoch begins the next one
    before, after = rates(net, trainer, first - 1), rates(net, trainer, first)
    assert {rate for path, rate in before.items() if path.startswith("features")} == {0}
    assert {rate for path, rate in after.items() if path.startswith("features")} == {0.1}
    assert before["output.weight"] == after["output.weight"] == 1


def test_a_calendar_unfreezes_stage_by_stage():
    net, trainer = make("--discriminative", "0.1:1", "--unfreeze-at", "2,4,4,9")
    full = of_groups(net, discriminative(net, 0.1, 1))
    paths = {param: path for path, param in net._collect_params_with_prefix().items()}
    for number, epoch in ((5, 1), (4, 2), (3, 4), (2, 4), (1, 9)):
        update = CLOCK.first_update(epoch)
        for param in stages(net)[number - 1].collect_params().values():
            if param in paths and paths[param] in full:
                assert rates(net, trainer, update)[paths[param]] == full[paths[param]]
                assert rates(net, trainer, update - 1)[paths[param]] == (0 if epoch > 1 else full[paths[param]])


def test_the_calendar_goes_by_stages_whatever_the_groups_are():
    for options in (["--layer-decay", 0.5], ["--lr-mult", "features.3=0.2"], []):
        net, trainer = make(*options, "--unfreeze-at", "2,3,4,5", has_weights=True)
        trained = rates(net, trainer, CLOCK.total)
        at_epoch_3 = rates(net, trainer, CLOCK.first_update(3))
        late = [path for stage in stages(net)[:2] for path in _paths(net, stage)]
        assert {path for path, rate in at_epoch_3.items() if rate == 0} == set(late) & trained.keys()
        assert all(trained.values())


def _paths(net, block):
    held = set(block.collect_params().values())
    return [path for path, param in net._collect_params_with_prefix().items() if param in held]


def test_a_path_has_an_epoch_of_its_own():
    options = (
        "--lr-mult",
        "features=0.2",
        "--unfreeze-at",
        "features.3=5",
        "--unfreeze-at",
        "2",
        "--freeze",
        "features.0",
    )
    net, trainer = make(*options)
    for epoch, stage2, stage3 in ((1, 0, 0), (2, 0.2, 0), (5, 0.2, 0.2)):
        found = rates(net, trainer, CLOCK.first_update(epoch))
        assert found["features.2.0.body.0.weight"] == stage2
        assert found["features.3.0.body.0.weight"] == stage3
        assert found["features.0.weight"] == 0
        assert found["output.weight"] == 1
    said = param_groups.calendar(trainer, CLOCK)
    assert said.splitlines() == [
        "epoch 2, update 4, unfreezes features (0.2)",
        "epoch 5, update 14, unfreezes features.3 (0.2)",
    ]


def test_a_calendar_of_many_groups_is_one_line_an_update():
    _, trainer = make("--layer-decay", 0.5, "--unfreeze-at", 2)
    assert (
        param_groups.calendar(trainer, CLOCK)
        == "epoch 2, update 4, unfreezes stage1 (0.0009766) to stage4 layer3 (0.5), 10 groups\n"
    )


@pytest.mark.parametrize("leftover", [0, 3, 5])
def test_the_clock_counts_what_the_loader_gives(leftover):
    sampler = mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(24 + leftover), 8, "rollover")
    clock, made = schedule.Clock(24 + leftover, 8, 6), 0
    for epoch in range(1, 7):
        assert clock.first_update(epoch) == made + 1
        made += sum(1 for _ in sampler)
    assert clock.total == made


def learning_rates(trainer, updates):
    trainer_rates = trainer.optimizer.lr_scheduler
    return [trainer_rates(update) for update in range(1, updates + 1)]


def test_schedules():
    def of(*options):
        return learning_rates(make(*options, "--lr", 0.4)[1], CLOCK.total)

    total, cosine = CLOCK.total, of("--lr-schedule", "cosine")
    wanted = [0.2 * (1 + np.cos(np.pi * update / total)) for update in range(1, total + 1)]
    np.testing.assert_allclose(cosine, wanted, atol=1e-12)
    np.testing.assert_allclose(
        of("--lr-schedule", "poly"), [0.4 * (1 - u / total) ** 2 for u in range(1, total + 1)], atol=1e-12
    )
    step = of("--lr-schedule", "step")
    assert sorted(set(np.round(step, 9)), reverse=True) == [0.4, 0.04, 0.004]
    assert step.index(step[-1]) == pytest.approx(0.75 * total, abs=1)
    warm = of("--warmup", 2)
    count = CLOCK.before(2)
    np.testing.assert_allclose(warm[: count - 1], [0.4 * u / count for u in range(1, count)], rtol=1e-12)
    assert set(warm[count:]) == {0.4}
    assert make("--lr-schedule", "constant")[1].optimizer.lr_scheduler is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nag"])
def test_without_lr_a_schedule_begins_at_the_optimizers_own(optimizer):
    plain = make("--optimizer", optimizer)[1].learning_rate
    _, trainer = make("--optimizer", optimizer, "--lr-schedule", "cosine")
    assert trainer.optimizer.lr_scheduler.base_lr == plain


WRONG = {
    "both recipes": (["--layer-decay", "0.5", "--discriminative", "0.1:1"], "not allowed with"),
    "decay": (["--layer-decay", "1.5"], "above 0 and at most 1"),
    "bounds": (["--discriminative", "0.1"], "expected LO:HI"),
    "bounds turned": (["--discriminative", "1:0.1"], "lowest must not be above highest"),
    "bound of 0": (["--discriminative", "0:1"], "lowest must be above 0"),
    "epoch": (["--unfreeze-at", "soon"], "expected EPOCH, PATH=EPOCH"),
    "epoch 1": (["--unfreeze-at", "1"], "expected epochs from 2 to 10"),
    "epoch after the end": (["--unfreeze-at", "features=11"], "expected epochs from 2 to 10"),
    "calendar goes back": (["--unfreeze-at", "4,3,5,6"], "none before the other"),
    "calendar too short": (["--unfreeze-at", "2,3"], "5 stages, so expected 4 epochs"),
    "calendar of a path": (["--unfreeze-at", "features=2,3"], "expected PATH=EPOCH"),
    "no path": (["--unfreeze-at", "=2"], "expected PATH=EPOCH"),
    "unknown path": (["--unfreeze-at", "feature=2"], "the network has features, output"),
    "path twice": (["--unfreeze-at", "features=2", "--unfreeze-at", "features=3"], "features is given more than once"),
    "twice": (["--unfreeze-at", "2", "--unfreeze-at", "3"], "EPOCH without PATH is given more than once"),
    "frozen for good": (["--unfreeze-at", "features=2", "--freeze", "features"], "features is frozen by --freeze"),
    "all frozen at first": (["--unfreeze-at", "features=2", "--unfreeze-at", "output=2"], "every part .* is frozen"),
    "schedule": (["--lr-schedule", "linear"], "invalid choice"),
    "warmup": (["--warmup", "10"], "expected fewer than the 10 --epochs"),
    "no rate": (["--optimizer", "adadelta", "--lr-schedule", "cosine"], "AdaDelta has no learning rate"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_is_a_users_error(what):
    options, answer = WRONG[what]
    with pytest.raises(UserError, match=answer):
        make(*options)


def test_groups_prints_and_draws(tmp_path, capsys):
    picture = tmp_path / "groups.png"
    options = ["--classes", 3, "--images", 100, "--epochs", 4, "--batch-size", 10, "--out", picture]
    recipe = ["--pretrained", "--unfreeze-at", 2, "--lr-schedule", "cosine"]
    assert main(["groups", "--model", MODEL, *map(str, [*options, *recipe])]) == 0
    printed = capsys.readouterr().out
    assert "4 epochs of 100 images, 40 updates" in printed
    assert re.search(r"^backbone .* frozen$", printed, re.M)
    assert "epoch 2, update 11, unfreezes backbone (0.1)" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_groups_shows_what_finetune_trains(images, tmp_path, capsys):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 3]
    options += ["--layer-decay", 0.5, "--no-bias-decay", "--unfreeze-at", 2, "--lr-schedule", "cosine", "--warmup", 0.5]
    assert main(["groups", *map(str, [*options, "--out", tmp_path / "groups.png"])]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert main(["finetune", *map(str, [*options, "--out", tmp_path])]) == 0
    trained = capsys.readouterr().out.splitlines()
    table = [line for line in shown if line.startswith(("group", "stage", "epoch 2, update"))]
    assert len(table) > 20
    assert [line for line in trained if line in table] == table
    rows = rows_of(tmp_path)
    assert rows[0]["learning_rates"]["stage1"] == 0
    assert rows[1]["learning_rates"]["stage1"] > 0
    assert rows[1]["learning_rates"]["stage5"] > rows[2]["learning_rates"]["stage5"] > 0


@pytest.mark.slow
def test_what_is_unfrozen_late_stays_until_then(images, weights, tmp_path):
    options = ["--data", images, "--model", MODEL, "--params", weights, "--batch-size", 8, "--unfreeze-at", 2]
    moved = {}
    # One epoch of a run of two: the same bits as the whole one has had by then.
    for epochs in (2, 3):
        out = tmp_path / str(epochs)
        assert main(["finetune", *map(str, [*options, "--epochs", epochs, "--out", out])]) == 0
        after, before = mx.nd.load(str(out / "last.params")), mx.nd.load(str(weights))
        name = "features.0.weight"
        moved[epochs] = float((after[name] - before[name]).abs().sum().asscalar())
    assert moved[3] > moved[2] > 0
    assert [row["learning_rates"]["backbone"] for row in rows_of(tmp_path / "3")] == pytest.approx([0, 0.001, 0.001])


@pytest.mark.slow
def test_a_schedule_that_depends_on_the_epochs_keeps_them(images, tmp_path, capsys):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", tmp_path, "--lr-schedule", "cosine"]
    assert main(["finetune", *map(str, [*options, "--epochs", 1])]) == 0
    assert main(["finetune", *map(str, [*options, "--epochs", 2, "--resume"])]) == 2
    assert "had --epochs 1" in capsys.readouterr().err
