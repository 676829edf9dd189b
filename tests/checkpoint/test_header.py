"""Every entry of a header is checked before anything is changed."""

import pytest

from checkpoint_support import Run, replace_entry
from multitrainer.checkpoint.archive import Reader
from multitrainer.checkpoint.header import read_header
from support import fingerprint


@pytest.fixture
def saved(tmp_path):
    run = Run("sgd", {"momentum": 0.9}, scheduler="factor")
    run.train(0, 2)
    run.save(tmp_path)
    return run, tmp_path / "states", tmp_path / "changed"


def test_entries_of_a_good_file(saved):
    run, path, _ = saved
    with Reader(path) as reader:
        header = read_header(reader)
    assert list(header.parameters) == [param.name for param in run.trainer._params]
    assert (header.num_update, header.was_frozen, header.optimizers[0].kind) == (2, True, "SGD")
    assert header.optimizers[0].attributes["momentum"] == 0.9
    assert header.optimizers[0].by_parameter == {}
    assert header.optimizers[0].lr_scheduler["object"][0] == "FactorScheduler"
    assert header.loss_scaler is None
    assert header.shared == []


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["format"], "another", "it has another format"),
        (["format"], 1, "its 'format' is missing or of a wrong type"),
        (["version"], 2, "has format version 2; only version 1 can be read"),
        (["version"], True, "its 'version' is"),
        (["parameters"], [], "its 'parameters' is"),
        (["num_update"], -1, "its 'num_update' is -1"),
        (["num_update"], 2**63, f"its 'num_update' is {2**63}"),
        (["num_update"], True, "its 'num_update' is missing or"),
        (["was_frozen"], 1, "its 'was_frozen' is"),
        (["optimizer"], [], "its 'optimizer' is"),
        (["optimizer", "class"], 3, "its 'class' is"),
        (["optimizer", "attributes"], [], "its 'attributes' is"),
        (["optimizer", "by_parameter"], [], "its 'by_parameter' is"),
        (["loss_scaler"], 1, "its 'loss_scaler' is"),
        (["shared"], None, "its 'shared' is missing or"),
        (["shared"], ["a"], "its 'shared' is not a list of lists of different paths"),
        (["shared"], [["a", 3]], "its 'shared' is not a list"),
        (["shared"], [["a", "b"], ["c", "a"]], "its 'shared' is not a list"),
        (["parameters", "net_dense0_weight"], [], "its 'dtype' is"),
        (["parameters", "net_dense0_weight", "shape"], [4, -3], "the shape of 'net_dense0_weight' is not valid"),
        (["parameters", "net_dense0_weight", "updates"], -1, "its 'updates' is -1"),
        (["parameters", "net_dense0_weight", "grad_req"], "no", "the grad_req of 'net_dense0_weight' is 'no'"),
        (["parameters", "net_dense0_weight", "schedules"], {"lr_mult": ""}, "the schedules of 'net_dense0_weight'"),
        (["parameters", "net_dense0_weight", "schedules"], {"lr": "acts"}, "the schedules of 'net_dense0_weight'"),
        (["parameters", "net_dense0_weight", "frozen"], False, "'net_dense0_weight' is frozen and has an lr_mult"),
        (["parameters", "net_dense0_weight", "lr_mult"], "0", "its 'lr_mult' is"),
        (["parameters", "net_dense0_weight", "before"], -2.0, "the before of 'net_dense0_weight' is -2.0"),
    ],
)
def test_a_bad_entry_is_named_and_changes_nothing(keys, value, reason, saved):
    run, path, changed = saved
    replace_entry(path, changed, keys, value)
    before = fingerprint(run.trainer, run.net)
    with pytest.raises(ValueError, match=reason):
        run.trainer.load_states(changed)
    assert fingerprint(run.trainer, run.net) == before


@pytest.mark.parametrize("value", [0, 2**63 - 1])
def test_the_extreme_numbers_of_updates(value, saved):
    _, path, changed = saved
    replace_entry(path, changed, ["num_update"], value)
    with Reader(changed) as reader:
        assert read_header(reader).num_update == value
