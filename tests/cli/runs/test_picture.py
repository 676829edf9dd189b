from __future__ import annotations

import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.runs.picture import PNG, check_picture


def test_a_picture_may_be_new_or_replaced(tmp_path):
    (tmp_path / "old.png").write_bytes(PNG + b"rest")
    for name in ("new.png", "old.png"):
        check_picture("--out", tmp_path / name, None)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]


@pytest.mark.parametrize("name", ["notes.txt", "folder", "nowhere/x.png", "notes.txt/x.png"])
def test_another_place_is_refused(name, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"--picture .*choose "):
        check_picture("--picture", tmp_path / name, None)


def test_a_class_folder_is_refused(images):
    with pytest.raises(UserError, match="is inside a class folder of --data"):
        check_picture("--picture", images / "red" / "x.png", images)
    check_picture("--picture", images / "x.png", images)
