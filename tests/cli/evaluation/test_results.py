"""The results of an evaluation: text, JSON, and a folder that is not another evaluation's."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli.errors import UserError
from multitrainer_cli.evaluation import results
from multitrainer_cli.evaluation.measurement import Measurement
from multitrainer_cli.evaluation.recorded_accuracy import RecordedAccuracy

MEASURED = Measurement(["cat", "owl\t", "a"], np.array([[10, 2, 0], [0, 3, 0], [0, 0, 0]]), top_right=14.0, loss=3.0)


def test_the_report():
    assert list(results.as_text(MEASURED)) == [
        "accuracy 86.67%, top-2 accuracy 93.33%, mean cross-entropy 0.2000",
        "",
        "class  images  right  precision  recall     F1  most often taken for",
        "cat        12     10      1.000   0.833  0.909  owl\\t (2)",
        "owl\\t       3      3      0.600   1.000  0.750  -",
        "a           0      0          -       -      -  -",
        "",
        "confusion matrix: images by true class (rows) and predicted class (columns)",
        "           1  2  3",
        "1  cat    10  2  0",
        "2  owl\\t   0  3  0",
        "3  a       0  0  0",
    ]


def test_two_classes_have_no_top_k():
    text = list(results.as_text(Measurement(["a", "b"], np.array([[1, 0], [0, 1]]))))
    assert text[0] == "accuracy 100.00%, mean cross-entropy 0.0000"


def test_many_classes_have_their_most_frequent_confusions():
    confusion = 5 * np.eye(21, dtype=int)
    confusion[20, 3], confusion[1, 2] = 7, 12
    text = list(results.as_text(Measurement([f"class {n}" for n in range(21)], confusion)))
    assert text[-3:] == [
        "most frequent confusions: images, true class, predicted class (evaluation.json has the matrix)",
        "12  class 1   class 2",
        " 7  class 20  class 3",
    ]
    right = list(results.as_text(Measurement([f"class {n}" for n in range(21)], np.eye(21, dtype=int))))
    assert right[-1] == "no image is taken for another class"


def test_json_has_all_of_it():
    found = json.loads(results.as_json({"part": "val"}, MEASURED, RecordedAccuracy(2, 0.866667), ["a note"]))
    assert found["subject"] == {"part": "val"}
    assert found["notes"] == ["a note"]
    assert (found["images"], found["accuracy"], found["cross_entropy"]) == (15, 0.866667, 0.2)
    assert found["top"] == {"k": 2, "accuracy": 0.933333}
    assert found["recorded"] == {"epoch": 2, "accuracy": 0.866667}
    assert found["confusion"] == MEASURED.confusion.tolist()
    assert found["classes"][2] == {
        **dict.fromkeys(("precision", "recall", "f1", "mistaken_for")),
        **{"name": "a", "images": 0, "right": 0, "mistakes": 0},
    }


def put(folder, subject):
    folder.mkdir(parents=True, exist_ok=True)
    results.write_files(folder, results.as_json(subject, MEASURED, None, []), MEASURED, "title")


def test_the_same_evaluation_is_replaced_and_another_one_is_kept(tmp_path):
    first, second = {"part": "val"}, {"part": "train"}
    assert results.choose_folder(tmp_path, None, first) == tmp_path / "evaluation"
    put(tmp_path / "evaluation", first)
    assert results.choose_folder(tmp_path, None, first) == tmp_path / "evaluation"
    assert results.choose_folder(tmp_path, None, second) == tmp_path / "evaluation-2"
    put(tmp_path / "evaluation-2", second)
    assert results.choose_folder(tmp_path, None, second) == tmp_path / "evaluation-2"
    assert results.choose_folder(tmp_path, None, {}) == tmp_path / "evaluation-3"


def test_a_folder_that_is_named_must_hold_no_other_evaluation(tmp_path):
    out = tmp_path / "out"
    assert results.choose_folder(tmp_path, out, {"part": "val"}) == out
    put(out, {"part": "val"})
    assert results.choose_folder(tmp_path, out, {"part": "val"}) == out
    with pytest.raises(UserError, match="holds another evaluation"):
        results.choose_folder(tmp_path, out, {"part": "train"})


def test_where_run_and_images_are_makes_no_difference(tmp_path):
    put(tmp_path / "evaluation", {"run": "/a", "data": "/b", "part": "val"})
    assert results.choose_folder(tmp_path, None, {"run": "/c", "data": "/d", "part": "val"}) == tmp_path / "evaluation"
    assert results.choose_folder(tmp_path, None, {"run": "/a", "data": "/b"}) == tmp_path / "evaluation-2"


@pytest.mark.parametrize("name", ["confusion.png", "evaluation.json"])
def test_a_file_of_the_user_is_kept(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match="other files of its names"):
        results.choose_folder(tmp_path, tmp_path, {})
