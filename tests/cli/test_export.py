"""`multitrainer export` writes files that programs without multitrainer load, to the same answers."""

from __future__ import annotations

import ctypes
import json
import pathlib
import re
import shutil
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")
pytest.importorskip("matplotlib")

from cli_support import MODEL, arrays, contents, finetune, write_images
from inference_support import start
from multitrainer import MultiLRTrainer, load_run
from multitrainer.images import ImageTransform
from multitrainer_cli import main
from multitrainer_cli.exporting.network_files import FileNames, describe_use
from multitrainer_cli.exporting.verification import random_inputs
from multitrainer_cli.training import network
from support import PATIENCE

CLASSES = ("blue sky", "grün", "red")
FILES = {"README.md", "classes.txt", "preprocess.json", f"{MODEL}-0000.params", f"{MODEL}-symbol.json"}
WITHOUT_MULTITRAINER = """
import sys
sys.modules.update(dict.fromkeys(("multitrainer", "multitrainer_cli", "gluoncv")))
import numpy
numpy.bool = bool
"""


def export(*arguments):
    return main(["export", *map(str, arguments)])


def imported(folder, model=MODEL):
    prefix = folder / model
    return mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")


def train(images, out, *options, epochs=1):
    assert finetune(images, "--out", out, *options, epochs=epochs) == 0
    return out


def code_blocks(readme):
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def run_alone(code, folder):
    """Run code in a process that can import neither multitrainer nor GluonCV; return what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_MULTITRAINER + code]
    return subprocess.run(command, cwd=str(folder), stdout=subprocess.PIPE, check=True, timeout=300).stdout.decode()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colours of things", 6, CLASSES)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The folder of a run of two epochs on classes whose names are not words in ASCII."""
    return train(images, tmp_path_factory.mktemp("runs") / "rün 1", epochs=2)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(str(run), str(tmp_path / "copy")) and tmp_path / "copy"


@pytest.mark.slow
def test_it_writes_beside_the_run_and_says_what_it_checked(copy, capsys):
    before = contents(copy)
    assert export(copy) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{MODEL}, 3 classes, best weights of {copy}"
    assert {path.name for path in (copy / "export").iterdir()} == FILES
    assert set(printed[1:-1]) == {f"  {copy / 'export' / name}" for name in FILES}
    assert re.match(
        r"checked with MXNet alone on 4 random inputs and 3 images of the run: the same classes", printed[-1]
    )
    assert {path: content for path, content in contents(copy).items() if path.parent.name != "export"} == before


@pytest.mark.slow
def test_the_python_of_its_readme_answers_as_the_network_does_on_every_image(run, images, tmp_path):
    assert export(run, "--out", tmp_path / "out") == 0
    net, classes, transform = load_run(run)
    paths = sorted(images.rglob("*.*g"))
    assert len(paths) == 18
    (code,) = code_blocks(tmp_path / "out" / "README.md")
    assert '"image.jpg"' in code
    printed = run_alone("\n".join(code.replace('"image.jpg"', repr(str(path))) for path in paths), tmp_path / "out")
    scores = net(mx.nd.stack(*[transform(path) for path in paths]))
    assert printed.splitlines() == [classes[int(number)] for number in scores.argmax(axis=1).asnumpy()]


def test_the_page_of_the_command_shows_the_python_of_the_readme():
    transform = ImageTransform(32, 32)
    readme = describe_use(FileNames.of(MODEL, with_onnx=True), 3, transform, "scores")
    page = (pathlib.Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    assert all(block in readme for block in blocks)


def test_a_folder_among_the_images_of_the_run_is_refused(run, images, capsys):
    for out in (images / "model", images / "red" / "deep"):
        assert export(run, "--out", out) == 2
        assert f"is inside {images}, where it would be taken for a class" in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.slow
def test_output_in_ascii(run, tmp_path):
    with start("export", run, "--out", tmp_path / "a\nü", environment={"PYTHONIOENCODING": "ascii"}) as process:
        output, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, error) == (0, b"")
    assert f"  {tmp_path}/a\\n\\xfc/classes.txt\n".encode("ascii") in output


@pytest.mark.slow
@pytest.mark.parametrize("command", [["export", "{run}"], ["groups", "--model", MODEL]], ids=["export", "groups"])
def test_a_reader_that_has_gone_is_no_error(copy, tmp_path, command):
    prelude = f"import os; os.chdir({str(tmp_path)!r})\n"
    with start(*[word.format(run=copy) for word in command], prelude=prelude) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_weights_are_those_that_were_asked_for(copy, tmp_path, weights):
    last = arrays(copy / "last.params")
    last["output.weight"] = -arrays(copy / "best.params")["output.weight"]
    mx.nd.save(str(copy / "last.params"), {name: mx.nd.array(array) for name, array in last.items()})
    assert export(copy, "--weights", weights, "--out", tmp_path / "out") == 0
    found = imported(tmp_path / "out")(mx.nd.array(random_inputs(32))).asnumpy()
    scores = {each: load_run(copy, each).net(mx.nd.array(random_inputs(32))).asnumpy() for each in ("best", "last")}
    np.testing.assert_allclose(found, scores.pop(weights), rtol=1e-5, atol=1e-6)
    assert np.abs(found - scores.popitem()[1]).max() > 0.01


@pytest.mark.slow
def test_softmax_gives_probabilities(run, tmp_path):
    assert export(run, "--softmax", "--out", tmp_path) == 0
    found = imported(tmp_path)(mx.nd.array(random_inputs(32))).asnumpy()
    expected = load_run(run).net(mx.nd.array(random_inputs(32))).softmax().asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "preprocess.json").read_text())["output"] == "probabilities"


@pytest.mark.slow
def test_an_earlier_export_stays_unless_it_is_to_be_replaced(run, tmp_path, capsys):
    assert export(run, "--out", tmp_path) == 0
    (tmp_path / "notes").write_text("mine")
    before = contents(tmp_path)
    assert export(run, "--out", tmp_path, "--softmax") == 2
    assert "holds an earlier export; replace it with --overwrite" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert export(run, "--out", tmp_path, "--softmax", "--overwrite") == 0
    assert {path.name for path in contents(tmp_path)} == {*FILES, "notes"}
    assert contents(tmp_path) != before


def test_the_files_of_the_run_are_never_replaced(copy, capsys):
    before = contents(copy)
    assert export(copy, "--out", copy, "--overwrite") == 2
    assert "holds classes.txt, which no earlier export wrote" in capsys.readouterr().err
    assert contents(copy) == before


def test_a_run_on_cached_features_is_exported_whole_and_its_import_trains_everywhere(images, tmp_path):
    train(images, tmp_path / "run", "--no-augment", "--freeze", "features")
    assert export(tmp_path / "run") == 0
    net = imported(tmp_path / "run" / "export")
    expected = load_run(tmp_path / "run").net(mx.nd.array(random_inputs(32))).asnumpy()
    np.testing.assert_allclose(net(mx.nd.array(random_inputs(32))).asnumpy(), expected, rtol=1e-5, atol=1e-6)
    trainer = MultiLRTrainer(net, "sgd")  # takes the multipliers that the symbol holds
    assert {param.lr_mult for group in trainer.groups for param in group.params.values()} == {1}


@pytest.mark.slow
def test_images_that_are_gone_or_damaged_are_not_compared(images, tmp_path, capsys):
    copied = shutil.copytree(str(images), str(tmp_path / "images")) and tmp_path / "images"
    train(copied, tmp_path / "run")
    for path in copied.rglob("*.*g"):
        path.write_bytes(b"damaged") if path.parent.name == "red" else path.unlink()
    assert export(tmp_path / "run") == 0
    assert "checked with MXNet alone on 4 random inputs: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [*({"split": split} for split in (None, "x", {}, {"train": 1, "val": [1]})), {"data": None}], ids=str
)
def test_a_record_that_names_no_images_is_enough(copy, change, capsys):
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps({**record, **change}), encoding="utf-8")
    assert export(copy) == 0
    assert "on 4 random inputs: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_diverged_is_refused_and_nothing_is_left(copy, capsys):
    broken = {name: mx.nd.array(array) * np.nan for name, array in arrays(copy / "best.params").items()}
    mx.nd.save(str(copy / "best.params"), broken)
    before = contents(copy)
    assert export(copy, "--out", copy / "deep" / "out") == 2
    assert "its training has diverged" in capsys.readouterr().err
    assert contents(copy) == before
    assert not (copy / "deep").exists()


@pytest.mark.parametrize("damage", ["no run", "no weights", "damaged weights", "damaged record", "a file"])
def test_what_is_no_run_is_an_error_of_one_line(copy, damage, capsys):
    if damage == "no run":
        (copy / "run.json").unlink()
    elif damage == "damaged record":
        (copy / "run.json").write_text("{}")
    elif damage == "no weights":
        (copy / "best.params").unlink()
    elif damage == "damaged weights":
        (copy / "best.params").write_bytes((copy / "best.params").read_bytes()[:-10])
    before = contents(copy)
    assert export(copy / "last.params" if damage == "a file" else copy) == 2
    error = capsys.readouterr().err
    assert error.startswith("multitrainer: error: ")
    assert error.count("\n") == 1
    assert contents(copy) == before
    assert not (copy / "export").exists()


def test_without_onnx_the_extra_is_named_before_anything_is_written(copy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "onnx.mapping", raising=False)
    assert export(copy, "--onnx") == 2
    assert "pip install 'multitrainer[onnx]'" in capsys.readouterr().err
    assert not (copy / "export").exists()


@pytest.mark.slow
def test_the_c_api_of_mxnet_loads_it(run, tmp_path):
    assert export(run, "--out", tmp_path) == 0
    library = ctypes.CDLL(mx.libinfo.find_lib_path()[0])
    symbol, parameters = ((tmp_path / f"{MODEL}-{name}").read_bytes() for name in ("symbol.json", "0000.params"))
    batch = random_inputs(32)
    keys, place = (ctypes.c_char_p * 1)(b"data"), (ctypes.c_uint32 * 2)(0, 4)
    shape, predictor = (ctypes.c_uint32 * 4)(*batch.shape), ctypes.c_void_p()
    created = library.MXPredCreate(
        ctypes.c_char_p(symbol), ctypes.c_char_p(parameters), len(parameters), 1, 0, 1, keys, place, shape,
        ctypes.byref(predictor),
    )  # fmt: skip
    assert created == 0
    floats = ctypes.POINTER(ctypes.c_float)
    assert library.MXPredSetInput(predictor, b"data", batch.ctypes.data_as(floats), batch.size) == 0
    assert library.MXPredForward(predictor) == 0
    found = np.empty((len(batch), len(CLASSES)), np.float32)
    assert library.MXPredGetOutput(predictor, 0, found.ctypes.data_as(floats), found.size) == 0
    assert library.MXPredFree(predictor) == 0
    expected = load_run(run).net(mx.nd.array(batch)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class TestWithOnnx:
    @pytest.fixture(autouse=True)
    def _needs_onnx(self):
        pytest.importorskip("onnx.mapping", reason="needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")

    def test_the_python_of_its_readme_runs_the_model(self, run, tmp_path, capsys):
        assert export(run, "--onnx", "--out", tmp_path) == 0
        assert {path.name for path in tmp_path.iterdir()} == {*FILES, f"{MODEL}.onnx"}
        assert "checked with onnxruntime on 4 random inputs and 3 images of the run" in capsys.readouterr().out
        np.save(str(tmp_path / "batch.npy"), random_inputs(32))
        _, code = code_blocks(tmp_path / "README.md")
        code = f"batch = numpy.load('batch.npy')\n{code}\nnumpy.save('outputs.npy', outputs)"
        run_alone("sys.modules['mxnet'] = None\n" + code, tmp_path)
        expected = load_run(run).net(mx.nd.array(random_inputs(32))).asnumpy()
        np.testing.assert_allclose(np.load(str(tmp_path / "outputs.npy")), expected, rtol=1e-5, atol=1e-5)

    def test_an_earlier_onnx_model_does_not_outlive_its_weights(self, run, tmp_path):
        assert export(run, "--onnx", "--out", tmp_path) == 0
        assert export(run, "--weights", "last", "--out", tmp_path, "--overwrite") == 0
        assert {path.name for path in tmp_path.iterdir()} == FILES

    @pytest.mark.slow
    def test_a_network_that_cannot_be_converted_leaves_nothing(self, copy, capsys):
        net, _ = network.build("shufflenet_v2", len(CLASSES))
        network.initialize(net, [mx.cpu()], "shufflenet_v2", len(CLASSES))
        net.save_parameters(str(copy / "best.params"))
        record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
        record["model"], record["input"] = "shufflenet_v2", {**record["input"], "size": 224, "resize": 256}
        (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
        before = contents(copy)
        assert export(copy, "--onnx") == 2
        assert "MXNet's exporter cannot convert this network: Reshape: " in capsys.readouterr().err
        assert contents(copy) == before
        assert export(copy) == 0
