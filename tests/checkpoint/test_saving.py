"""`save_states` writes every value that can be restored, by name, and refuses every other."""

import functools
import json

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.optimizer import Optimizer

from checkpoint_support import Run, replace_entry
from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import archive, encoding
from support import CONTEXTS, bits, fingerprint, mlp, moved, snapshot
from value_trees import TREES


def test_saving_changes_nothing(tmp_path):
    runs = [Run("adam", {}, scheduler="cosine") for _ in range(2)]
    runs[0].train(0, 3)
    runs[1].train(0, 2)
    runs[1].save(tmp_path).train(2, 1)
    assert fingerprint(runs[0].trainer, runs[0].net) == fingerprint(runs[1].trainer, runs[1].net)


def test_a_file_that_is_loaded_and_saved_again_is_the_same(tmp_path):
    run = Run("adam", {}, scheduler="poly")
    run.train(0, 3)
    run.save(tmp_path)
    saved = (tmp_path / "states").read_bytes()
    Run("adam", {}, scheduler="poly").load(tmp_path).save(tmp_path)
    assert (tmp_path / "states").read_bytes() == saved


def test_numpy_can_read_the_file(tmp_path):
    run = Run("adam", {"wd": 0.01}, scheduler="cosine")
    run.train(0, 2)
    run.save(tmp_path)
    with np.load(str(tmp_path / "states"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    header = json.loads(arrays.pop("@header").item())
    states = run.trainer._updaters[0].states
    index = [param.name for param in run.trainer._params].index("net_dense1_weight")
    for i in range(2):
        assert (arrays.pop(f"net_dense1_weight/{i}") == states[index][i].asnumpy()).all()
    assert {key.split("/")[0] for key in arrays} < set(header["parameters"])
    assert header["parameters"]["net_dense0_weight"]["frozen"] is True
    assert header["optimizer"]["class"] == "Adam"
    assert header["optimizer"]["attributes"]["wd"] == 0.01
    assert (header["num_update"], header["groups"]) == (2, ["net", "0"])
    assert header["lr_scheduler"]["object"][0] == "CosineScheduler"


def test_the_momentum_of_sgd_has_the_name_of_the_parameter(tmp_path):
    run = Run("sgd", {"momentum": 0.9})
    run.train(0, 2)
    run.save(tmp_path)
    with np.load(str(tmp_path / "states")) as file:
        assert file["net_dense1_weight"].shape == (2, 4)


@pytest.mark.parametrize(("name", "options"), [("adam", {}), ("sgd", {"momentum": 0.9})])
def test_names_that_look_like_paths(name, options, tmp_path):
    def build():
        params = mx.gluon.ParameterDict()
        for each in ("a", "a/0", "@header", "b", "b.npy", "ünï ☃", "@optimizer/lr", "../up"):
            params.get(each, shape=(2,), init=mx.init.One())
        params.initialize()
        return params, MultiLRTrainer(params, name, options)

    params, trainer = build()
    with mx.autograd.record():
        loss = sum((i + 1) * param.data().sum() for i, param in enumerate(params.values()))
    loss.backward()
    trainer.step(1)
    trainer.save_states(tmp_path / "states")
    others, fresh = build()
    fresh.load_states(tmp_path / "states")
    assert fingerprint(trainer, params)["states"] == fingerprint(fresh, others)["states"]
    with np.load(str(tmp_path / "states")) as file:
        read = {key: file[key].tobytes() for key in file.files}
    assert len(read) == 1 + 8 * (2 if name == "adam" else 1)
    if name == "sgd":
        assert len({read["b"], read["b%2Enpy"], read["a%2F0"], read["a"]}) == 4


@pytest.mark.parametrize(
    "thing",
    [lambda: 0, object(), {1, 2}, mx.optimizer.SGD(), {(1, 2): 3}, 10**400],
    ids=["function", "object", "set", "optimizer", "tuple for a key", "huge number"],
)
def test_what_cannot_be_saved_is_named(thing, tmp_path):
    run = Run("sgd", {})
    run.trainer.optimizer.gadget = thing
    with pytest.raises(TypeError, match="gadget of optimizer SGD cannot be saved"):
        run.trainer.save_states(tmp_path / "states")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3, dtype=">f4"),
        np.arange(3, dtype=">i8"),
        np.arange(6, dtype="float16").reshape(2, 3).T,
        np.array(3.0),
        np.float64("nan"),
        {10**299: mx.nd.ones((1,))},
        {"\udc80": mx.nd.ones((2,)), "\udc80/0": 3},
        [[[[[[1], None]]]]],
        "x" * 1000,
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_unusual_values(value, tmp_path):
    def build():
        net = mlp()
        trainer = MultiLRTrainer(net, "sgd")
        return net, trainer

    _, trainer = build()
    trainer.optimizer.thing = value
    trainer.save_states(tmp_path / "states")
    _, fresh = build()
    fresh.load_states(tmp_path / "states")
    found = fresh.optimizer.thing
    if isinstance(value, np.ndarray):
        value = value.astype(value.dtype.newbyteorder("="))
    assert bits(found) == bits(value)


@pytest.mark.parametrize(
    "value",
    [
        {10**300: 1},
        {10**400: 1},
        10**5000,
        {-(10**300): mx.nd.ones((1,))},
        functools.reduce(lambda a, _: [a], range(99), 0),
    ],
    ids=["key", "long key", "number", "negative key", "deep"],
)
def test_a_value_that_could_not_be_loaded_is_not_saved(value, tmp_path):
    trainer = MultiLRTrainer(mlp(), "sgd")
    trainer.optimizer.thing = value
    with pytest.raises(TypeError, match="thing of optimizer SGD cannot be saved"):
        trainer.save_states(tmp_path / "states")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_loss_scales_that_are_not_valid_are_refused(value, tmp_path):
    trainer, fresh = (MultiLRTrainer(mlp(), "sgd") for _ in range(2))
    trainer._amp_loss_scaler, fresh._amp_loss_scaler = LossScaler(), LossScaler()
    trainer.save_states(tmp_path / "good")
    trainer._amp_loss_scaler._loss_scale = value
    with pytest.raises(ValueError, match="_loss_scale of AMP's loss scaler is"):
        trainer.save_states(tmp_path / "states")
    node = encoding.Encoder().encode(value, "x")
    replace_entry(tmp_path / "good", tmp_path / "bad", ["loss_scaler", "_loss_scale"], node)
    with pytest.raises(ValueError, match=r"is damaged.*_loss_scale of AMP's loss scaler is"):
        fresh.load_states(tmp_path / "bad")
    assert vars(fresh._amp_loss_scaler) == vars(LossScaler())


def test_statistics_need_not_be_finite(tmp_path):
    """They may be of a training that diverged."""

    def build():
        trainer = MultiLRTrainer(mlp(), "sgd")
        trainer.optimizer.best, trainer.optimizer.loss = float("inf"), 1.0
        return trainer

    trainer = build()
    trainer.optimizer.loss = float("nan")
    trainer.save_states(tmp_path / "states")
    fresh = build()
    fresh.load_states(tmp_path / "states")
    assert bits([fresh.optimizer.best, fresh.optimizer.loss]) == bits([float("inf"), float("nan")])


@pytest.mark.parametrize("field", ["lr_mult", "wd_mult"])
def test_negative_multipliers(field, tmp_path):
    """As under stock, a Parameter may have one; a file cannot set one that the trainer does not have already."""
    net = mlp()
    setattr(net[0].weight, field, -1.0)
    trainer = MultiLRTrainer(net, "sgd")
    trainer.save_states(tmp_path / "states")
    other = mlp()
    fresh = MultiLRTrainer(other, "sgd")
    with pytest.raises(
        ValueError, match=rf"the {field} of 'net_dense0_weight' is -1.0; a multiplier must be 0 or more"
    ):
        fresh.load_states(tmp_path / "states")
    third = mlp()
    setattr(third[0].weight, field, -1.0)
    again = MultiLRTrainer(third, "sgd")
    again.load_states(tmp_path / "states")
    assert getattr(third[0].weight, field) == -1.0
    assert not moved(snapshot(net), snapshot(third))


class Blank(Optimizer):
    """An optimizer whose attributes and states a test sets."""

    def create_state(self, index, weight):
        return []


def identities(value, found):
    """Number the objects of a tree, so that two trees have the same numbers if the same parts are one object."""
    if isinstance(value, (mx.nd.NDArray, np.ndarray, list, dict)):
        yield found.setdefault(id(value), len(found))
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from identities(part, found)


@st.composite
def webs(draw):
    """Draw attributes and states that share arrays, lists and dicts."""
    pool = draw(st.lists(TREES, min_size=1, max_size=3))
    part = st.sampled_from(pool) | TREES
    kept = (
        st.lists(part, max_size=3) | st.dictionaries(st.integers(0, 3) | st.text(max_size=2), part, max_size=3) | part
    )
    names = st.sampled_from(["one", "other", "third"])
    return draw(st.dictionaries(names, kept, max_size=3)), draw(
        st.dictionaries(st.integers(0, 3), st.lists(part, max_size=3), max_size=4)
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(web=webs())
def test_random_webs_come_back(web, tmp_path_factory):
    """Bit for bit and type for type, with the same objects shared; saved again, the file is the same."""
    attributes, states = web
    path = tmp_path_factory.getbasetemp() / "webs"
    trainers = []
    for _ in range(2):
        trainer = MultiLRTrainer(mlp(batchnorm=False), Blank(learning_rate=0.1))
        trainer._init_kvstore()
        trainers.append(trainer)
    trainer, fresh = trainers
    vars(trainer.optimizer).update(attributes)
    trainer._updaters[0].states.update(states)
    trainer._updaters[0].states_synced.update(dict.fromkeys(states, True))
    trainer.save_states(path)
    saved = path.read_bytes()
    fresh.load_states(path)
    found = {name: getattr(fresh.optimizer, name) for name in attributes}, fresh._updaters[0].states
    assert bits(found) == bits((attributes, dict(sorted(states.items()))))
    expected = attributes, dict(sorted(states.items()))
    assert list(identities(found, {})) == list(identities(expected, {}))
    fresh.save_states(path)
    assert path.read_bytes() == saved


def header_of(trainer, folder):
    trainer.save_states(folder / "states")
    with archive.Reader(folder / "states") as reader:
        return reader.header


class TestHeader:
    def test_top_level_entries(self, tmp_path):
        run = Run("adam", {"wd": 0.01}, scheduler="factor")
        run.train(0, 2)
        header = header_of(run.trainer, tmp_path)
        assert list(header) == [
            *("format", "version", "parameters", "groups", "num_update", "was_frozen", "optimizer", "lr_scheduler"),
            *("loss_scaler", "shared"),
        ]
        assert (header["format"], header["version"], header["num_update"]) == ("multitrainer states", 1, 2)
        assert (header["was_frozen"], header["loss_scaler"], header["shared"]) == (True, None, [])
        assert header["lr_scheduler"]["object"][0] == "FactorScheduler"
        attributes = header["optimizer"]["attributes"]
        assert {"beta1", "lr", "wd"} <= attributes.keys()
        assert not {"num_update", "lr_scheduler", "idx2name", "_multitrainer_filled"} & attributes.keys()

    def test_records_of_parameters(self, tmp_path):
        run = Run("adam", {}, spec=lambda net: [net, (net[0], 0), (net[2], lambda num_update: 1 / num_update)])
        run.trainer.set_lr_mult({run.net[2].bias: 0.25})
        run.train(0, 2)
        records = header_of(run.trainer, tmp_path)["parameters"]
        trained = {"grad_req": "write", "schedules": {}, "frozen": False, "wd_mult": 1.0, "updates": 2}
        shape = {"shape": [2, 4], "dtype": "float32"}
        state = {"tuple": [{"array": ["float32", [2, 4]]}] * 2}
        expected = {
            **trained,
            **shape,
            "lr_mult": 1 / 3,
            "before": 1 / 3,
            "schedules": {"lr_mult": "acts"},
            "state": state,
        }
        assert records["net_dense1_weight"] == expected
        assert records["net_dense1_bias"]["schedules"] == {"lr_mult": "ended"}
        assert records["net_dense1_bias"]["before"] == 0.25
        frozen = {"grad_req": "write", "schedules": {}, "frozen": True, "wd_mult": 1.0, "lr_mult": 0.0, "before": 1.0}
        assert records["net_dense0_weight"] == {**frozen, "shape": [4, 3], "dtype": "float32"}
        assert records["net_batchnorm0_running_mean"] == {"shape": [4], "dtype": "float32"}

    def test_dicts_by_index_are_saved_by_name(self, tmp_path):
        """If their keys are the Parameters that were updated, or those that have a state."""
        run = Run("adam", {})
        run.train(0, 1)
        optimizer, names = run.trainer.optimizer, [param.name for param in run.trainer._params]
        updated = list(run.trainer._updaters[0].states)
        optimizer._all_index_update_counts[0].pop(updated[0])
        optimizer.states, optimizer.counts = {i: [1] for i in updated}, dict.fromkeys(updated[1:], 2.5)
        optimizer.some, optimizer.none, optimizer.items = {updated[0]: 3}, {}, [4]
        saved = header_of(run.trainer, tmp_path)["optimizer"]
        assert saved["by_parameter"] == {
            "states": {names[i]: [1] for i in updated},
            "counts": {names[i]: 2.5 for i in updated[1:]},
        }
        attributes = saved["attributes"]
        assert [attributes[name] for name in ("some", "none", "items")] == [
            {"dict": [[updated[0], 3]]},
            {"dict": []},
            [4],
        ]

    def test_paths_to_shared_objects(self, tmp_path):
        run = Run("sgd", {"momentum": 0.9})
        run.train(0, 1)
        states, names = run.trainer._updaters[0].states, [param.name for param in run.trainer._params]
        first = min(states)
        run.trainer.optimizer.copies = copies = {index: [state] for index, state in states.items()}
        run.trainer.optimizer.everything = [states[first], copies]
        groups = {tuple(sorted(group)) for group in header_of(run.trainer, tmp_path)["shared"]}
        assert ("@optimizer/copies", "@optimizer/everything/1") in groups
        assert any(
            {names[first], "@optimizer/everything/0", f"@optimizer/copies/{names[first]}/0"} <= {*g} for g in groups
        )

    def test_replicas_on_other_contexts_have_the_same_paths(self, tmp_path):
        run = Run("sgd", {"momentum": 0.9}, ctx=CONTEXTS, update_on_kvstore=False)
        run.train(0, 1)
        index, state = min(run.trainer._updaters[1].states.items())
        run.trainer.optimizer.last = state
        assert header_of(run.trainer, tmp_path)["shared"] == [[run.trainer._params[index].name, "@optimizer/last"]] or (
            header_of(run.trainer, tmp_path)["shared"] == [["@optimizer/last", run.trainer._params[index].name]]
        )


@pytest.mark.parametrize("field", ["lr_mult", "wd_mult"])
def test_a_multiplier_that_is_not_finite_is_refused(field, tmp_path):
    net = mlp()
    setattr(net[0].weight, field, float("inf"))
    trainer = MultiLRTrainer(net, "sgd")
    with pytest.raises(
        ValueError, match=f"{field} of Parameter 'net_dense0_weight' is inf; a multiplier must be finite"
    ):
        trainer.save_states(tmp_path / "states")


def test_states_that_cannot_be_saved_are_named(tmp_path):
    run = Run("sgd", {"momentum": 0.9})
    run.train(0, 1)
    run.trainer._updaters[0].states[min(run.trainer._updaters[0].states)] = {1, 2}
    with pytest.raises(
        TypeError, match=r"the state of Parameter '.*' under SGD cannot be saved: net.* of type set\. Numb"
    ):
        run.trainer.save_states(tmp_path / "states")
    run.trainer._updaters[0].states.clear()
    run.trainer._amp_loss_scaler = LossScaler()
    run.trainer._amp_loss_scaler.thing = object()
    with pytest.raises(TypeError, match="thing of AMP's loss scaler cannot be saved: @loss_scaler/thing is <object"):
        run.trainer.save_states(tmp_path / "states")


@pytest.mark.parametrize(("name", "value"), [("lr", float("inf")), ("wd", float("nan")), ("momentum", float("nan"))])
def test_settings_that_are_not_finite_are_refused(name, value, tmp_path):
    trainer = MultiLRTrainer(mlp(), "sgd", {"momentum": 0.9})
    setattr(trainer.optimizer, name, value)
    with pytest.raises(ValueError, match=f"{name} of SGD is {value}, and training cannot continue with that"):
        trainer.save_states(tmp_path / "states")
    assert not list(tmp_path.iterdir())
