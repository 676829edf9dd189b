"""`multitrainer predict`: a line for each image, whatever it is called, and whatever is wrong with the others."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import mxnet as mx
import pytest

from inference_support import start
from support import PATIENCE

pytest.importorskip("gluoncv")

from multitrainer import load_run
from multitrainer_cli import main


@pytest.fixture
def predict(finished_run, capsys):
    """Run the command on the finished run; return its exit status, the lines it printed, and its errors."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["predict", str(finished_run), *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err

    return run


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def probabilities(run, path):
    """Return the probability of each class, computed one image at a time from Python."""
    net, classes, transform = load_run(run)
    return dict(zip(classes, net(transform(path).expand_dims(0)).softmax()[0].asnumpy().tolist()))


@pytest.mark.slow
def test_a_line_has_path_class_and_probability(predict, finished_run, images):
    paths = [images / "red" / "000.jpg", images / "blue" / "001.png"]
    status, lines, error = predict(*paths)
    assert (status, error) == (0, "")
    for line, path in zip(lines, paths):
        expected = probabilities(finished_run, path)
        best = max(expected, key=expected.get)
        assert line == f"{path}\t{best}\t{expected[best]:.4f}"


@pytest.mark.parametrize(("top", "count"), [(2, 2), (3, 3), (50, 3)])
def test_the_most_probable_classes_come_first(predict, finished_run, images, top, count):
    path = images / "green" / "000.jpg"
    _, (line,), _ = predict(path, "--top", top)
    expected = sorted(probabilities(finished_run, path).items(), key=lambda item: -item[1])[:count]
    assert line == "\t".join([str(path), *(f"{name}\t{value:.4f}" for name, value in expected)])


def test_json_has_an_object_a_line(predict, finished_run, images):
    path = images / "green" / "000.jpg"
    status, (line,), _ = predict(path, "--json", "--top", 3)
    answer = json.loads(line)
    assert (status, list(answer), answer["image"]) == (0, ["image", "classes"], str(path))
    expected = probabilities(finished_run, path)
    assert {each["class"]: each["probability"] for each in answer["classes"]} == pytest.approx(expected, abs=1e-5)
    ranked = [each["probability"] for each in answer["classes"]]
    assert ranked == sorted(ranked, reverse=True)


@pytest.mark.parametrize("options", [["--batch-size", 1], ["--batch-size", 7], ["--ctx", "cpu(0),cpu(1)"]], ids=str)
def test_batches_and_devices_change_nothing(predict, images, options):
    assert predict(images, *options) == predict(images)


def test_the_last_weights_can_be_asked_for(finished_run, images, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(str(finished_run), str(copy))
    mx.nd.save(str(copy / "last.params"), {k: v * 0 for k, v in mx.nd.load(str(copy / "last.params")).items()})
    path = images / "green" / "000.jpg"
    assert main(["predict", str(copy), str(path), "--weights", "last", "--top", "3"]) == 0
    assert capsys.readouterr().out == f"{path}\tblue\t0.3333\tgreen\t0.3333\tred\t0.3333\n"


class TestFolders:
    def test_images_are_found_below_in_the_order_of_their_names(self, predict, images):
        _, lines, error = predict(images)
        expected = [
            images / name / f"{n:03}.{'png' if n % 2 else 'jpg'}"
            for name in ("blue", "green", "red")
            for n in range(10)
        ]
        assert [line.split("\t")[0] for line in lines] == list(map(str, expected))
        assert error == ""

    def test_what_is_left_out_is_counted(self, predict, images, tmp_path):
        shutil.copytree(str(images / "red"), str(tmp_path / "in" / "deep" / "red"))
        image = images / "red" / "000.jpg"
        for name in ("._0.jpg", ".hidden.png", "notes.txt", "in/.DS_Store"):
            shutil.copy(str(image), str(tmp_path / name))
        shutil.copytree(str(images / "red"), str(tmp_path / ".thumbnails"))
        os.mkfifo(str(tmp_path / "pipe.jpg"))
        status, lines, error = predict(tmp_path)
        assert (status, len(lines)) == (0, 10)
        assert error == (
            "multitrainer: files left out: 4 hidden and 2 not called like an image "
            "(.bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp)\n"
        )

    def test_a_file_that_is_named_is_read_whatever_its_name(self, predict, images, tmp_path):
        for name in (".hidden", "0001"):
            shutil.copy(str(images / "red" / "000.jpg"), str(tmp_path / name))
            status, lines, error = predict(tmp_path / name)
            assert (status, len(lines), error) == (0, 1, "")

    def test_links_are_followed_but_not_in_circles(self, predict, images, tmp_path):
        (tmp_path / "link").symlink_to(images / "red")
        (tmp_path / "circle").symlink_to(tmp_path)
        (tmp_path / "image.jpg").symlink_to(images / "red" / "000.jpg")
        status, lines, error = predict(tmp_path)
        assert (status, len(lines), error) == (0, 11, "")

    def test_nothing_found_is_an_error(self, predict, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        status, lines, error = predict(tmp_path)
        assert (status, lines) == (2, [])
        assert f"{tmp_path}: a folder without images" in error
        assert "error: there are no images to predict; left out were files: 1 not called like an image" in error

    def test_an_empty_folder_beside_others_is_reported(self, predict, images, tmp_path):
        status, lines, error = predict(tmp_path, images / "red")
        assert (status, len(lines)) == (1, 10)
        assert error == f"multitrainer: error: {tmp_path}: a folder without images\n"


class TestUnreadable:
    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut"])
    def test_the_others_are_predicted(self, predict, images, tmp_path, content):
        (tmp_path / "broken.jpg").write_bytes(content)
        good = images / "red" / "000.jpg"
        status, lines, error = predict(good, tmp_path / "broken.jpg", images / "red" / "001.png")
        assert status == 1
        assert [line.split("\t")[0] for line in lines] == [str(good), str(images / "red" / "001.png")]
        assert error.startswith(f"multitrainer: error: {tmp_path / 'broken.jpg'}: ")
        assert error.count("\n") == error.count("broken.jpg") == 1

    def test_a_file_that_does_not_exist(self, predict, images, tmp_path):
        status, lines, error = predict(tmp_path / "nowhere.jpg", images / "red" / "000.jpg")
        assert (status, len(lines)) == (1, 1)
        assert error == f"multitrainer: error: {tmp_path / 'nowhere.jpg'}: No such file or directory\n"

    def test_a_broken_link(self, predict, images, tmp_path):
        (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
        shutil.copy(str(images / "red" / "000.jpg"), str(tmp_path / "a.jpg"))
        status, lines, error = predict(tmp_path)
        assert (status, len(lines)) == (1, 1)
        assert f"{tmp_path / 'link.jpg'}: No such file" in error

    def test_all_of_them(self, predict, tmp_path):
        for number in range(3):
            (tmp_path / f"{number}.jpg").write_bytes(b"")
        status, lines, error = predict(tmp_path, "--batch-size", 2)
        assert (status, lines, error.count("\n")) == (1, [], 3)


NAMES = {
    "space": b" a b .jpg",
    "tab": b"a\tred\t1.0000.jpg",
    "newline": b"a\nb.jpg",
    "backslash": b"a\\tb.jpg",
    "not UTF-8": b"\xe9\xff.jpg",
    "umlaut": "ü.jpg".encode(),
    "line separator": "a\u2028b\x85c.jpg".encode(),
}


class TestNames:
    @pytest.fixture
    def folder(self, images, tmp_path):
        for name in NAMES.values():
            with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
                file.write((images / "red" / "000.jpg").read_bytes())
        return tmp_path

    def test_json_keeps_every_name(self, predict, folder):
        status, lines, _ = predict(folder, "--json")
        found = {os.fsencode(os.path.basename(json.loads(line)["image"])) for line in lines}
        assert (status, found, len(lines)) == (0, set(NAMES.values()), len(NAMES))

    def test_a_line_has_three_fields_and_different_names_differ(self, predict, folder):
        status, lines, _ = predict(folder)
        fields = [line.split("\t") for line in lines]
        assert (status, {len(each) for each in fields}) == (0, {3})
        paths = {path for path, _, _ in fields}
        assert len(paths) == len(NAMES)
        assert f"{folder}/a\\nb.jpg" in paths
        assert f"{folder}/a\\\\tb.jpg" in paths
        assert f"{folder}/\\udce9\\udcff.jpg" in paths
        assert f"{folder}/ü.jpg" in paths

    def test_a_name_that_cannot_be_read_is_reported_on_one_line(self, predict, images, tmp_path):
        path = os.path.join(os.fsencode(tmp_path), b"a\n\xe9.jpg")
        open(path, "wb").close()
        status, _, error = predict(os.fsdecode(path))
        assert (status, error.count("\n")) == (1, 1)
        assert f"{tmp_path}/a\\n\\udce9.jpg: " in error

    @pytest.mark.slow
    def test_an_output_in_ascii(self, finished_run, folder):
        process = start("predict", finished_run, folder, environment={"PYTHONIOENCODING": "ascii"})
        output, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        assert b"/\\xfc.jpg\t" in output


class TestStandardInput:
    def test_a_list_of_files_and_folders(self, predict, stdin, images):
        stdin(f"{images}/red/000.jpg\n\n{images}/blue".encode())
        status, lines, error = predict("-")
        assert (status, len(lines), error) == (0, 11, "")
        assert lines[0].startswith(f"{images}/red/000.jpg\t")

    def test_names_that_end_in_nul(self, predict, stdin, images, tmp_path):
        shutil.copy(str(images / "red" / "000.jpg"), str(tmp_path / "a\nb.jpg"))
        stdin(f"{images}/red/000.jpg\0{tmp_path}/a\nb.jpg\0".encode())
        status, lines, _ = predict("-", "--null")
        assert status == 0
        assert [line.split("\t")[0] for line in lines] == [f"{images}/red/000.jpg", f"{tmp_path}/a\\nb.jpg"]

    @pytest.mark.slow
    def test_a_list_longer_than_a_chunk(self, predict, stdin, images):
        stdin(f"{images}/red/000.jpg\0".encode() * 2000)
        assert len(predict("-", "--null", "--batch-size", 500)[1]) == 2000

    def test_an_empty_list(self, predict, stdin):
        stdin(b"")
        status, lines, error = predict("-")
        assert (status, lines) == (2, [])
        assert error == "multitrainer: error: there are no images to predict\n"

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [(["-", "-"], "- is given twice"), (["x.jpg", "--null"], "--null can only be used with -")],
        ids=str,
    )
    def test_what_makes_no_sense(self, predict, arguments, expected):
        status, _, error = predict(*arguments)
        assert (status, error.count("\n")) == (2, 1)
        assert expected in error

    def test_nul_without_the_option(self, predict, stdin):
        stdin(b"a\0b")
        status, _, error = predict("-")
        assert status == 2
        assert "add --null" in error

    @pytest.mark.slow
    def test_lines_come_with_each_batch(self, finished_run, images):
        with start("predict", finished_run, "-", "--batch-size", "2") as process:
            for name in (b"000.jpg", b"001.png", b"002.jpg"):
                process.stdin.write(os.fsencode(images) + b"/red/" + name + b"\n")
            process.stdin.flush()
            first = [process.stdout.readline() for _ in range(2)]  # while the list is still open
            rest, error = process.communicate(timeout=PATIENCE)
        assert (process.returncode, error) == (0, b"")
        assert [b"/red/00" in line for line in [*first, *rest.splitlines()]] == [True] * 3


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(finished_run, images):
    with start("predict", finished_run, "-", "--batch-size", "1") as process:
        process.stdin.write(os.fsencode(images) + b"/red/000.jpg\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write((os.fsencode(images) + b"/red/000.jpg\n") * 3)
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_weights_that_diverged_predict_nothing(finished_run, images, tmp_path, capsys, options):
    run = tmp_path / "run"
    shutil.copytree(str(finished_run), str(run))
    broken = {name: array * float("nan") for name, array in mx.nd.load(str(run / "best.params")).items()}
    mx.nd.save(str(run / "best.params"), broken)
    assert main(["predict", str(run), str(images / "red"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "scores that are not finite numbers" in printed.err


def test_a_folder_without_a_run(images, tmp_path, capsys):
    for folder, answer in ((tmp_path, "holds no run"), (tmp_path / "nowhere", "no such folder")):
        assert main(["predict", str(folder), str(images)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert answer in error


@pytest.mark.slow
def test_a_missing_package_names_the_extra(finished_run, images):
    for package in ("gluoncv", "PIL"):
        with start("predict", finished_run, images, prelude=f"import sys; sys.modules[{package!r}] = None;") as process:
            _, error = process.communicate(timeout=PATIENCE)
        assert (process.returncode, error.count(b"\n")) == (2, 1)
        assert b"pip install 'multitrainer[finetune]'" in error
