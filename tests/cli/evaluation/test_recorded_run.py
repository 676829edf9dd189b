"""What an evaluation repeats is what the run has recorded."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("gluoncv")

from cli_support import MODEL
from multitrainer_cli.errors import UserError
from multitrainer_cli.evaluation.recorded_run import read_recorded_run


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(str(finished_run), str(tmp_path / "run"))
    return tmp_path / "run"


def edit(run, **fields):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **fields}))
    return record


def test_network_batches_and_images(run, images):
    found = read_recorded_run(run)
    assert (found.folder, found.model, found.batch_size) == (run, MODEL, 8)
    assert found.find_folder() == images
    assert {part: len(names) for part, names in found.images.items()} == {"train": 24, "val": 6}
    name, (size, _) = next(iter(found.images["val"].items()))
    assert size == (images / name).stat().st_size


def test_a_batch_is_no_larger_than_the_data(run):
    record = edit(run)
    edit(run, options={**record["options"], "batch_size": "100"})
    assert read_recorded_run(run).batch_size == 24


def test_a_run_without_images(run):
    edit(run, data=None, split=None)
    assert read_recorded_run(run).images is None
    with pytest.raises(UserError, match="was not trained on a folder of images; add --data DIR"):
        read_recorded_run(run).find_folder()
    edit(run, data="/nowhere")
    with pytest.raises(UserError, match="were in /nowhere, which is gone"):
        read_recorded_run(run).find_folder()


@pytest.mark.parametrize(
    "fields",
    [
        {"split": []},
        {"split": {"train": {}}},
        {"split": {"train": {"a": 1}, "val": {}}},
        {"options": 3},
        {"options": {}},
        *({"options": {"batch_size": size}} for size in ("0", "-1", 8, "x")),
        {"split": {"train": {}, "val": {}}},
        {"data": None},
    ],
    ids=str,
)
def test_a_damaged_record(run, fields):
    edit(run, **fields)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_recorded_run(run)
