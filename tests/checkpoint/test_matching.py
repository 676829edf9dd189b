"""Parameters of a file and of a trainer are matched by name; those that do not match are listed, or left out."""

import mxnet as mx
import pytest
from mxnet.gluon import nn

from checkpoint_support import Run
from multitrainer import MultiLRTrainer
from support import fingerprint, mlp


def test_missing_left_over_and_of_another_shape(tmp_path):
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Dense(4, in_units=3), nn.Dense(5, in_units=4), nn.Dense(1, in_units=5))
    net.initialize()
    MultiLRTrainer([net[0], net[1]], "sgd", {"momentum": 0.9}).save_states(tmp_path / "states")
    run = Run("sgd", {"momentum": 0.9}, spec=lambda net: [net[0].weight, net[1], net[2]])
    before = fingerprint(run.trainer, run.net)
    with pytest.raises(ValueError, match="does not fit this trainer") as refused:
        run.trainer.load_states(tmp_path / "states")
    message = str(refused.value)
    assert "not in the file: net_batchnorm0_beta, net_batchnorm0_gamma, net_batchnorm0_running_mean" in message
    assert "in the file, not in this trainer: net_dense0_bias" in message
    assert "net_dense1_weight (float32 (5, 4) in the file, float32 (2, 4) in this trainer)" in message
    assert "partial=True" in message
    assert fingerprint(run.trainer, run.net) == before
    left = run.trainer.load_states(tmp_path / "states", partial=True)
    assert set(left) == {
        *("net_batchnorm0_" + name for name in ("beta", "gamma", "running_mean", "running_var")),
        *("net_dense0_bias", "net_dense1_weight", "net_dense1_bias"),
    }
    assert left["net_dense0_bias"] == "not in this trainer"


def test_another_prefix_is_recognized(tmp_path):
    one, other = mlp(prefix="net0_"), mlp(prefix="net1_")
    MultiLRTrainer(one, "sgd").save_states(tmp_path / "states")
    trainer = MultiLRTrainer(other, "sgd")
    with pytest.raises(ValueError, match=r"net1_dense0_bias.*net0_dense0_bias.*prefix="):
        trainer.load_states(tmp_path / "states")
    with pytest.raises(ValueError, match="No Parameter is in both"):
        trainer.load_states(tmp_path / "states", partial=True)


class TestPartial:
    @pytest.mark.parametrize("name", ["lbsgd", "adam", "sgd"])
    def test_what_is_left_out_keeps_its_own(self, name, tmp_path):
        params = {"learning_rate": 0.05, **({"momentum": 0.9} if name != "adam" else {})}
        part = Run(name, params, spec=lambda net: net[0])
        part.trainer.set_lr_mult({part.net[0]: 0.5})
        for _ in range(2):
            with mx.autograd.record():
                loss = (part.net[0](mx.nd.ones((2, 3))) ** 2).sum()
            loss.backward()
            part.trainer.step(2)
        part.trainer.save_states(tmp_path / "states")
        whole = Run(name, params, spec=lambda net: [net[2].weight, net[0].bias, net[0].weight, net[2].bias])
        whole.train(0, 3)
        mine = fingerprint(whole.trainer, whole.net)
        left = whole.trainer.load_states(tmp_path / "states", partial=True)
        theirs, now = fingerprint(part.trainer, part.net), fingerprint(whole.trainer, whole.net)
        assert left == dict.fromkeys(["net_dense1_weight", "net_dense1_bias"], "not in the file")
        for kind in ("states", "counts", "multipliers", "by parameter"):
            kept = {key: value for key, value in mine[kind].items() if "dense1" in str(key)}
            assert now[kind] == {**kept, **theirs[kind]}, kind
            assert kept or kind == "by parameter"
        whole.train(3, 2)

    def test_the_other_way_round(self, tmp_path):
        whole = Run("sgd", {"momentum": 0.9}, spec=lambda net: net)
        whole.train(0, 3)
        whole.save(tmp_path)
        part = Run("sgd", {"momentum": 0.9}, spec=lambda net: net[0])
        left = part.trainer.load_states(tmp_path / "states", partial=True)
        assert set(left) == {name for name in whole.net.collect_params() if "dense0" not in name}
        theirs, now = fingerprint(whole.trainer, whole.net), fingerprint(part.trainer, part.net)
        assert now["states"] == {name: state for name, state in theirs["states"].items() if "dense0" in name}
