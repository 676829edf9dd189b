"""A file is replaced atomically, by any number of savers, and keeps its mode."""

import os
import stat
import threading

import numpy as np
import pytest

from multitrainer.checkpoint import archive, atomic


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Set the umask of the process for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_two_savers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "states"
    with atomic.replacing(path) as one:
        one.write_bytes(b"one")
        with atomic.replacing(path) as other:
            other.write_bytes(b"other")
        assert path.read_bytes() == b"other"
        assert one.read_bytes() == b"one"
    assert path.read_bytes() == b"one"
    assert os.listdir(str(tmp_path)) == ["states"]


def test_threads_that_save_to_one_path_leave_whole_files(tmp_path):
    path, errors = tmp_path / "states", []

    def save(number):
        try:
            for _ in range(40):
                archive.write(path, {"of": number}, [("array", np.full(20_000, number))])
        except Exception as error:
            errors.append(error)

    def load():
        try:
            while any(saver.is_alive() for saver in savers):
                with archive.Reader(path) as reader:
                    number = reader.header["of"]
                    assert (reader.array("array", "int64", (20_000,)) == number).all()
        except Exception as error:
            errors.append(error)

    save(0)
    savers = [threading.Thread(target=save, args=(number,)) for number in range(2)]
    threads = [*savers, threading.Thread(target=load)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(str(tmp_path)) == ["states"]


@pytest.mark.parametrize("before", [0o600, 0o644, 0o660, 0o400, 0o755])
def test_a_replaced_file_keeps_its_mode(before, tmp_path, umask):
    umask(0o022)
    path = tmp_path / "states"
    path.write_bytes(b"before")
    path.chmod(before)
    with atomic.replacing(path) as temporary:
        assert mode(temporary) & ~(before | stat.S_IWUSR | stat.S_IRUSR) == 0  # nobody reads it meanwhile either
        temporary.write_bytes(b"after")
    assert (path.read_bytes(), mode(path)) == (b"after", before)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_gives(mask, expected, tmp_path, umask):
    umask(mask)
    with atomic.replacing(tmp_path / "states") as temporary:
        temporary.write_bytes(b"new")
    assert mode(tmp_path / "states") == expected


@pytest.mark.parametrize("name", ["s" * 255, "ü" * 127, "☃" * 85], ids=["ascii", "two bytes", "three bytes"])
def test_the_longest_names(name, tmp_path):
    for content in (b"one", b"two"):
        with atomic.replacing(tmp_path / name) as temporary:
            temporary.write_bytes(content)
        assert (tmp_path / name).read_bytes() == content
    assert os.listdir(str(tmp_path)) == [name]


def test_an_error_names_the_path_that_the_user_gave(tmp_path):
    path = tmp_path / "gone" / "states"
    with pytest.raises(FileNotFoundError) as error, atomic.replacing(path):
        pass
    assert (error.value.filename, error.value.strerror) == (str(path), "No such file or directory")


def test_the_file_is_flushed_before_it_is_moved(tmp_path, monkeypatch):
    """A machine that stops leaves the old file or the new one: flush the file, move it, flush the folder."""
    calls = []

    def recorded(name):
        function = getattr(os, name)
        return lambda *args: (calls.append(name), function(*args))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(atomic.os, name, recorded(name))
    with atomic.replacing(tmp_path / "states") as temporary:
        temporary.write_bytes(b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "states"
    path.write_bytes(b"old")

    def fail():
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(str(tmp_path)) == ["states"]


def test_the_temporary_file_is_hidden_beside_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "states")
    with atomic.replacing(tmp_path / "link") as temporary:
        assert temporary.parent == tmp_path / "folder"
        assert (temporary.name[:8], temporary.name[-4:]) == (".states.", ".tmp")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "states").is_file()


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"not a regular file.*folder"), atomic.replacing(tmp_path / "folder"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_replaced_file_keeps_its_owner(tmp_path):
    path = tmp_path / "states"
    path.write_bytes(b"old")
    os.chown(str(path), 1234, 2345)
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)
