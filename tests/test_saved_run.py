"""`load_run` gives back the network that a run has trained, and refuses a folder that does not hold it."""

from __future__ import annotations

import json
import shutil
import sys

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")

from cli_support import MODEL, arrays, rows_of
from multitrainer import load_run, saved_run
from multitrainer_cli.training import network


@pytest.fixture
def copy(finished_run, tmp_path):
    return shutil.copytree(str(finished_run), str(tmp_path / "copy")) and tmp_path / "copy"


def edit(folder, **fields):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **fields}))


@pytest.mark.parametrize("weights", ["best", "last"])
def test_it_has_the_weights_and_the_classes_of_the_run(finished_run, weights):
    net, classes, transform = load_run(finished_run, weights)
    assert classes == (finished_run / "classes.txt").read_text().splitlines()
    assert (transform.size, transform.resize) == (32, 32)
    saved = arrays(finished_run / f"{weights}.params")
    loaded = {name: param.data().asnumpy() for name, param in net._collect_params_with_prefix().items()}
    assert loaded.keys() == saved.keys()
    assert all(np.array_equal(loaded[name], saved[name]) for name in saved)


def test_its_accuracy_is_the_recorded_one(finished_run, images):
    net, classes, transform = load_run(str(finished_run))
    names = json.loads((finished_run / "run.json").read_text())["split"]["val"]
    inputs = mx.nd.stack(*[transform(images / name) for name in names])
    labels = [classes.index(name.split("/")[0]) for name in names]
    accuracy = (net(inputs).argmax(axis=1).asnumpy() == labels).mean()
    assert round(accuracy, 6) == max(row["val_accuracy"] for row in rows_of(finished_run))


def test_the_network_is_on_the_devices_that_are_asked_for(finished_run):
    devices = [mx.cpu(0), mx.cpu(1)]
    net = load_run(finished_run, ctx=devices).net
    assert all(param.list_ctx() == devices for param in net.collect_params().values())
    outputs = [net(mx.nd.ones((2, 3, 32, 32), ctx=device)).asnumpy() for device in devices]
    assert np.array_equal(*outputs)
    with mx.Context("cpu", 1):
        assert load_run(finished_run).net.output.weight.list_ctx() == [mx.cpu(1)]


def test_two_runs_can_be_loaded_at_once(finished_run):
    nets = [load_run(finished_run).net for _ in range(2)]
    assert np.array_equal(*(net(mx.nd.ones((1, 3, 32, 32))).asnumpy() for net in nets))


def test_there_are_two_kinds_of_weights(finished_run):
    with pytest.raises(ValueError, match="weights='worst': expected 'best' or 'last'"):
        load_run(finished_run, "worst")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_run(tmp_path / "nowhere")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it has no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("weights", ["best", "last"])
def test_a_run_without_a_whole_epoch(copy, weights):
    (copy / f"{weights}.params").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {weights}\.params: no epoch of it has ended yet"):
        load_run(copy, weights)


def test_a_record_of_a_newer_version(copy):
    edit(copy, format=2, model=3)
    with pytest.raises(ValueError, match=r"written by a newer multitrainer \(format 2"):
        load_run(copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1}', '{"format": "one"}', '{"format": null}', "\ud800", "\x00", "[" * 100_000],
    ids=lambda text: repr(text[:20]),
)
def test_a_damaged_record(copy, text):
    (copy / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        load_run(copy)


@pytest.mark.parametrize(
    "fields",
    [
        *({"format": value} for value in (0, -1, "1", 1.0, True, float("inf"))),
        *({"model": 3}, {"classes": "blue"}, {"classes": []}, {"classes": [1, 2]}, {"input": None}, {"input": {}}),
    ],
    ids=str,
)
def test_a_field_of_another_kind(copy, fields):
    edit(copy, **fields)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        load_run(copy)


def test_damaged_weights(copy):
    content = (copy / "best.params").read_bytes()
    for damaged in (b"", content[:100], content[:-10]):
        (copy / "best.params").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"best\.params cannot be read as MXNet parameters"):
            load_run(copy)


def test_weights_of_another_number_of_classes(copy):
    edit(copy, classes=["blue", "green"])
    with pytest.raises(ValueError, match=r"output\.weight has shape \(3, 64\) in it, not \(2, "):
        load_run(copy)


def test_weights_of_another_network(copy):
    edit(copy, model="cifar_resnet56_v1")
    with pytest.raises(ValueError, match=r"does not hold the weights .* it has no features"):
        load_run(copy)
    edit(copy, model=MODEL)
    mx.nd.save(str(copy / "best.params"), {**mx.nd.load(str(copy / "best.params")), "more.weight": mx.nd.ones(1)})
    with pytest.raises(ValueError, match=r"the network has no more\.weight"):
        load_run(copy)


def test_a_model_that_gluoncv_does_not_have(copy):
    edit(copy, model="resnet_of_tomorrow")
    with pytest.raises(ValueError, match="'resnet_of_tomorrow', which this GluonCV does not have"):
        load_run(copy)


def test_a_model_for_another_task(copy):
    edit(copy, model="ssd_300_vgg16_atrous_voc")
    with pytest.raises(
        ValueError, match="names the model 'ssd_300_vgg16_atrous_voc', which is not an image classifier"
    ):
        load_run(copy)


def test_gluoncv_is_needed(finished_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gluoncv", None)
    with pytest.raises(ImportError, match=r"pip install 'multitrainer\[finetune\]'"):
        load_run(finished_run)


def test_the_record_can_be_read_alone(finished_run):
    assert saved_run.read_record(finished_run)["classes"] == ["blue", "green", "red"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hrnet_w18_small_v1_c", "nasnet_4_1056", "googlenet"])
def test_what_the_command_can_train_can_be_loaded(tmp_path, model):
    net, _ = network.build(model, 2)
    size = network.input_size(model)
    network.initialize(net, [mx.cpu()], model, 2)
    net.save_parameters(str(tmp_path / "best.params"))
    shape = {"size": size, "resize": size, "mean": [0.5] * 3, "std": [0.5] * 3}
    record = {"format": 1, "model": model, "classes": ["a", "b"], "input": shape}
    (tmp_path / "run.json").write_text(json.dumps(record))
    loaded = load_run(tmp_path)
    inputs = mx.nd.random.normal(shape=(1, 3, size, size))
    np.testing.assert_allclose(loaded.net(inputs).asnumpy(), net(inputs).asnumpy(), rtol=1e-4, atol=1e-5)
