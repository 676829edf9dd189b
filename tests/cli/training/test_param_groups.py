"""The groups that the options of `multitrainer finetune` and `multitrainer groups` make."""

from __future__ import annotations

import mxnet as mx
import pytest

from cli_support import MODEL

pytest.importorskip("gluoncv")

from multitrainer import discriminative, layerwise_decay, stages
from multitrainer_cli import build_parser
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.training import network, param_groups
from multitrainer_cli.training.optimizer import parse_optimizer
from multitrainer_cli.training.schedule import TrainingLength

LENGTH = TrainingLength(images=27, batch_size=8, epochs=10)


def make(*options):
    """Return a network and the trainer that the options make for it."""
    args = build_parser().parse_args(["groups", *map(str, options)])
    net, head = network.build(MODEL, 3)
    network.initialize(net, [mx.cpu()], MODEL, 3)
    optimizer = parse_optimizer(args.optimizer, args.lr, args.wd)
    return net, param_groups.make_trainer(net, head, args, LENGTH, optimizer, Ranks())


def rates(net, trainer, num_update=1):
    """Return the multiplier of each parameter at an update, by its path."""
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


def test_layer_decay_gives_the_multipliers_of_its_recipe():
    net, trainer = make("--layer-decay", 0.7)
    assert rates(net, trainer) == of_groups(net, layerwise_decay(net, 0.7))


def test_discriminative_gives_the_multipliers_of_its_recipe():
    net, trainer = make("--pretrained", "--discriminative", "0.01:2")
    assert rates(net, trainer) == of_groups(net, discriminative(net, 0.01, 2))
    assert max(rates(net, trainer).values()) == 2


def test_a_named_part_leaves_the_recipe():
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


def test_no_bias_decay_is_for_biases_and_normalization_alone():
    net, trainer = make("--layer-decay", 0.5, "--no-bias-decay")
    for path, param in net._collect_params_with_prefix().items():
        if param.grad_req != "null":
            assert param.wd_mult == (0 if path.endswith(("bias", "gamma", "beta")) else 1), path
    assert "no_weight_decay" in trainer.summary()


def test_one_epoch_unfreezes_the_backbone():
    net, trainer = make("--pretrained", "--unfreeze-at", 3)
    first = (27 + 27) // 8 + 1  # what is left over of an epoch begins the next one
    before, after = rates(net, trainer, first - 1), rates(net, trainer, first)
    assert {rate for path, rate in before.items() if path.startswith("features")} == {0}
    assert {rate for path, rate in after.items() if path.startswith("features")} == {0.1}
    assert before["output.weight"] == after["output.weight"] == 1


def test_an_epoch_for_each_stage_unfreezes_stage_by_stage():
    net, trainer = make("--discriminative", "0.1:1", "--unfreeze-at", "2,4,4,9")
    full = of_groups(net, discriminative(net, 0.1, 1))
    paths = {param: path for path, param in net._collect_params_with_prefix().items()}
    for number, epoch in ((5, 1), (4, 2), (3, 4), (2, 4), (1, 9)):
        update = LENGTH.first_update(epoch)
        for param in stages(net)[number - 1].collect_params().values():
            if param in paths and paths[param] in full:
                assert rates(net, trainer, update)[paths[param]] == full[paths[param]]
                assert rates(net, trainer, update - 1)[paths[param]] == (0 if epoch > 1 else full[paths[param]])


def test_stages_are_unfrozen_whatever_the_groups_are():
    for options in (["--layer-decay", 0.5], ["--lr-mult", "features.3=0.2"], []):
        net, trainer = make(*options, "--pretrained", "--unfreeze-at", "2,3,4,5")
        trained = rates(net, trainer, LENGTH.updates)
        at_epoch_3 = rates(net, trainer, LENGTH.first_update(3))
        late = [path for stage in stages(net)[:2] for path in _paths(net, stage)]
        assert {path for path, rate in at_epoch_3.items() if rate == 0} == set(late) & trained.keys()
        assert all(trained.values())


def _paths(net, block):
    held = set(block.collect_params().values())
    return [path for path, param in net._collect_params_with_prefix().items() if param in held]


def test_a_path_is_unfrozen_at_its_own_epoch():
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
        found = rates(net, trainer, LENGTH.first_update(epoch))
        assert found["features.2.0.body.0.weight"] == stage2
        assert found["features.3.0.body.0.weight"] == stage3
        assert found["features.0.weight"] == 0
        assert found["output.weight"] == 1


def test_from_scratch_everything_trains_at_one_rate_but_what_is_named():
    assert set(rates(*make()).values()) == {1}
    found = rates(*make("--freeze", "features.0", "--lr-mult", "features.3=0.3"))
    for path, rate in found.items():
        assert rate == (0 if path.startswith("features.0.") else 0.3 if path.startswith("features.3.") else 1), path


@pytest.mark.parametrize("weights", [["--pretrained"], ["--params", "seven.params"]])
def test_a_part_that_is_named_changes_no_rate_of_the_rest_of_a_loaded_network(weights):
    plain = rates(*make(*weights))
    assert {path: rate for path, rate in plain.items() if path.startswith("features")} == dict.fromkeys(
        (path for path in plain if path.startswith("features")), 0.1
    )
    assert plain["output.weight"] == plain["output.bias"] == 1
    found = rates(
        *make(*weights, "--freeze", "features.0", "--lr-mult", "features.3=0.3", "--lr-mult", "output.bias=2")
    )
    own = {"features.0.": 0, "features.3.": 0.3, "output.bias": 2}
    for path, rate in found.items():
        assert rate == next((mult for start, mult in own.items() if path.startswith(start)), plain[path]), path


def test_the_whole_backbone_can_be_given_a_rate():
    found = rates(*make("--pretrained", "--lr-mult", "features=0.5", "--freeze", "features.2"))
    assert {rate for path, rate in found.items() if path.startswith("features.2.")} == {0}
    assert {rate for path, rate in found.items() if path.startswith(("features.1", "features.3"))} == {0.5}
    assert found["output.weight"] == 1


def test_the_example_of_the_help_gives_early_layers_no_larger_rate_than_later_ones():
    options = ["--pretrained", "--freeze", "features.0", "--lr-mult", "features.3=0.3"]  # as conv1 and layer4
    found = rates(*make(*options))
    parts = ("features.0.weight", "features.2.0.body.0.weight", "features.3.0.body.0.weight", "output.weight")
    assert [found[path] for path in parts] == [0, 0.1, 0.3, 1]


WRONG = {
    "both recipes": (["--layer-decay", "0.5", "--discriminative", "0.1:1"], "not allowed with"),
    "decay": (["--layer-decay", "1.5"], "above 0 and at most 1"),
    "bounds": (["--discriminative", "0.1"], "expected LO:HI"),
    "bounds turned": (["--discriminative", "1:0.1"], "^--discriminative 1:0.1: lowest must not be above highest"),
    "bound of 0": (["--discriminative", "0:1"], "^--discriminative 0:1: lowest must be above 0"),
    "decay to 0": (["--layer-decay", "1e-300"], "^--layer-decay 1e-300: .* makes the first multiplier 0"),
    "decay to little": (
        ["--layer-decay", "1e-4"],
        "^--lr 0.01 times 1e-40, the multiplier of stage1, is 1e-42; expected",
    ),
    "multiplier below 0": (["--lr-mult", "features=-1"], "^--lr-mult features=-1: MULT must be a finite number >= 0"),
    "multiplier nan": (["--lr-mult", "features=nan"], "^--lr-mult features=nan: MULT must be a finite number >= 0"),
    "multiplier too large": (["--lr-mult", "features=1e30"], "^--lr 0.01 times 1e.30, the multiplier of features"),
    "unknown part": (["--lr-mult", "feature=2"], "^--lr-mult feature=2: 'feature' is not a part of the network"),
    "unknown part frozen": (["--freeze", "features.9"], "^--freeze features.9: 'features.9' is not a part"),
    "same part": (["--freeze", "output", "--lr-mult", "output=2"], "^--lr-mult output=2 and --freeze output are about"),
    "all frozen": (["--freeze", "features", "--freeze", "output"], "every part of the network is frozen in the first"),
    "adadelta": (["--pretrained", "--optimizer", "adadelta"], "^--optimizer adadelta: lr_mult 0.1 of Parameter"),
    "rate of adadelta": (["--optimizer", "adadelta", "--lr", "1"], "^--lr 1: AdaDelta has no learning rate"),
    "epoch": (["--unfreeze-at", "soon"], "expected EPOCH, PATH=EPOCH"),
    "epoch 1": (["--unfreeze-at", "1"], "expected epochs from 2 to 10"),
    "epoch after the end": (["--unfreeze-at", "features=11"], "expected epochs from 2 to 10"),
    "epochs go back": (["--unfreeze-at", "4,3,5,6"], "in ascending order"),
    "too few epochs": (["--unfreeze-at", "2,3"], "^--unfreeze-at 2,3: .* 5 stages, so expected 4 epochs"),
    "epochs of a path": (["--unfreeze-at", "features=2,3"], "expected PATH=EPOCH"),
    "path missing": (["--unfreeze-at", "=2"], "expected PATH=EPOCH"),
    "unknown path": (["--unfreeze-at", "feature=2"], "^--unfreeze-at feature=2: .* the network has features, output"),
    "path twice": (["--unfreeze-at", "features=2", "--unfreeze-at", "features=3"], "features is given more than once"),
    "twice": (["--unfreeze-at", "2", "--unfreeze-at", "3"], "EPOCH without PATH is given more than once"),
    "frozen for good": (
        ["--unfreeze-at", "features=2", "--freeze", "features"],
        "^--unfreeze-at features=2: features is frozen by --freeze",
    ),
    "all frozen at first": (["--unfreeze-at", "features=2", "--unfreeze-at", "output=2"], "every part .* is frozen"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_is_a_user_error(what):
    options, answer = WRONG[what]
    with pytest.raises(UserError, match=answer):
        make(*options)
