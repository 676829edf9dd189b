"""Parameters of a file and of a trainer are matched by name; those that do not match are listed, or left out."""

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.gluon.model_zoo.vision import resnet18_v1

from checkpoint_support import Run
from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import archive
from multitrainer.checkpoint.matching import match_parameters
from support import fingerprint, mlp


def test_missing_unknown_and_different_parameters_are_listed(tmp_path):
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


def test_another_prefix_is_suggested(tmp_path):
    one, other = mlp(prefix="net0_"), mlp(prefix="net1_")
    MultiLRTrainer(one, "sgd").save_states(tmp_path / "states")
    trainer = MultiLRTrainer(other, "sgd")
    with pytest.raises(ValueError, match=r"net1_dense0_bias.*net0_dense0_bias.*prefix="):
        trainer.load_states(tmp_path / "states")
    with pytest.raises(ValueError, match="No Parameter is in both"):
        trainer.load_states(tmp_path / "states", partial=True)


def test_a_long_list_of_names_is_cut(tmp_path):
    nets = [resnet18_v1(classes=2, prefix=prefix) for prefix in ("net0_", "net1_")]
    for net in nets:
        net.initialize()
        net(mx.nd.zeros((1, 3, 32, 32)))
    MultiLRTrainer(nets[0], "sgd").save_states(tmp_path / "states")
    with pytest.raises(ValueError, match=r"(net1_\w+, ){5}and 97 more; .*(net0_\w+, ){5}and 97 more\. ") as refused:
        MultiLRTrainer(nets[1], "sgd").load_states(tmp_path / "states")
    assert len(str(refused.value)) < 1000


def test_a_manager_of_names_gives_a_network_the_same_names_again(tmp_path):
    trainers = []
    for _ in range(2):
        with mx.name.NameManager():
            net = resnet18_v1(classes=2)
        net.initialize()
        net(mx.nd.zeros((1, 3, 32, 32)))
        trainers.append(MultiLRTrainer(net, "sgd"))
    trainers[0].save_states(tmp_path / "states")
    trainers[1].load_states(tmp_path / "states")


class TestPartial:
    @pytest.mark.parametrize("name", ["lbsgd", "adam", "sgd"])
    def test_parameters_that_are_left_out_keep_their_own(self, name, tmp_path):
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

    def test_a_file_of_more_parameters(self, tmp_path):
        whole = Run("sgd", {"momentum": 0.9}, spec=lambda net: net)
        whole.train(0, 3)
        whole.save(tmp_path)
        part = Run("sgd", {"momentum": 0.9}, spec=lambda net: net[0])
        left = part.trainer.load_states(tmp_path / "states", partial=True)
        assert set(left) == {name for name in whole.net.collect_params() if "dense0" not in name}
        theirs, now = fingerprint(whole.trainer, whole.net), fingerprint(part.trainer, part.net)
        assert now["states"] == {name: state for name, state in theirs["states"].items() if "dense0" in name}


class TestMatchParameters:
    """With a file of the arrays of a, b and c, and a trainer of b, a and d."""

    RECORDS = (("a", "float32", [2]), ("b", "float32", [2, 3]), ("c", "float16", [4]))

    @pytest.fixture
    def reader(self, tmp_path):
        arrays = [(name, np.ones(1)) for name, _, _ in self.RECORDS]
        archive.write(tmp_path / "states", None, [*arrays, ("c/0", np.ones(1)), ("b/0", np.ones(1))])
        with archive.Reader(tmp_path / "states") as reader:
            yield reader

    def match(self, reader, partial, shape=(2, 3), dtype="float32", records=RECORDS, names="bad"):
        kinds = {"a": ((2,), "float32"), "b": (shape, dtype), "d": ((1,), "float32")}
        params = [mx.gluon.Parameter(name, shape=kinds[name][0], dtype=kinds[name][1]) for name in names]
        records = {name: {"dtype": kind, "shape": size} for name, kind, size in records}
        return match_parameters(reader, records, params, partial)

    def test_by_name_whatever_the_order(self, reader):
        match = self.match(reader, False, records=self.RECORDS[:2], names="ba")
        assert match == ({"b": 0, "a": 1}, {})

    def test_the_arrays_of_those_that_are_left_out_are_skipped(self, reader):
        match = self.match(reader, True)
        assert match == ({"b": 0, "a": 1}, {"d": "not in the file", "c": "not in this trainer"})
        for key in ("a", "b", "b/0"):
            reader.array(key, "float64", (1,))
        reader.check_all_read()

    @pytest.mark.parametrize(
        ("options", "text"), [({"shape": (3, 2)}, "float32 (3, 2)"), ({"dtype": "float16"}, "float16 (2, 3)")]
    )
    def test_another_shape_or_dtype_is_left_out(self, options, text, reader):
        match = self.match(reader, True, **options)
        assert match.loaded == {"a": 1}
        assert match.left_out["b"] == f"float32 (2, 3) in the file, {text} in this trainer"

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (
                {},
                r"not in the file: d; in the file, not in this trainer: c\. partial=True loads those .* in both\. If",
            ),
            (
                {"names": "ba"},
                r"does not fit this trainer; in the file, not in this trainer: c\. If .* trainer\.add, .*; if .*both$",
            ),
            ({"names": "bad", "records": RECORDS[:2]}, r"trainer; not in the file: d\. partial=True loads .* in both$"),
            (
                {"names": "ba", "records": RECORDS[:2], "shape": (1,)},
                r"another shape or dtype: b \(float32 \(2, 3\) in",
            ),
        ],
    )
    def test_without_partial_all_must_match(self, options, reason, reader):
        with pytest.raises(ValueError, match=reason):
            self.match(reader, False, **options)

    @pytest.mark.parametrize("options", [{"names": "d"}, {"names": "b", "shape": (1,)}], ids=str)
    def test_at_least_one_must_match(self, options, reader):
        with pytest.raises(ValueError, match="No Parameter is in both"):
            self.match(reader, True, **options)

    @pytest.mark.parametrize("record", [("a", 3, [2]), ("a", "float32", 2), ("a", "float32", [-2])], ids=str)
    def test_a_malformed_record_is_refused(self, record, reader):
        with pytest.raises(ValueError, match=r"is damaged.*('dtype' is|'shape' is|the shape of 'a' is not valid)"):
            self.match(reader, True, records=[record, *self.RECORDS[1:]])
