"""One file of arrays and one JSON header: an .npz that NumPy reads as well, and that cannot hurt when it is read.

Members are stored, not compressed, so a file asks for no more memory than it is long; each has a checksum; the only
pickles that could be in it are refused unread. Nothing is taken from a member but what the caller said must be in it.
"""

from __future__ import annotations

import bisect
import io
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Iterable, Tuple

import numpy as np

from . import atomic

HEADER = "@header"


MOST = 4 << 20  # bytes of the JSON header, and of the directory of members: each costs a multiple of it to read


_LONGEST_NUMBER = 302  # digits; the time to read one grows with its square, and more make no float


_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


# Of a zip file, its end and the start of a member: APPNOTE.TXT of PKWARE, 4.3.7 and 4.3.14 to 4.3.16.
_END = struct.Struct("<4s4H2LH")


_LOCATOR = struct.Struct("<4sLQL")


_END64 = struct.Struct("<4sQ2H2L4Q")


_LOCAL = struct.Struct("<4s5H3L2H")


_ENTRY = 46  # bytes of a directory's entry, without its name


_BEGIN = 10  # bytes of an .npy file before the text that says dtype and shape; the last two are that text's length


DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


Array = Tuple[str, Any]  # its key, and what has `asnumpy` or is a NumPy array


def write(path: Path, header: Any, arrays: Iterable[Array]) -> None:
    """Replace the file at `path`, at once and whole; arrays are copied to the host one at a time.

    Raises
    ------
    OSError
        If it cannot be written.
    ValueError
        If the header is longer than `Reader` takes, or holds what it does not take.
    """
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    _parsed(text)  # what is not read is not written
    directory = 0
    with atomic.replacing(path) as temporary, zipfile.ZipFile(str(temporary), "w", zipfile.ZIP_STORED) as archive:
        directory += _write(archive, HEADER, np.array(text, dtype=f"S{len(text)}"))
        for key, array in arrays:
            directory += _write(archive, key, array if isinstance(array, np.ndarray) else array.asnumpy())
        if len(text) > MOST or directory > MOST:
            raise ValueError(
                f"{path}: the names and numbers beside the arrays take {max(len(text), directory):,} bytes, and "
                f"{MOST:,} is the most that a file may have of them"
            )


def is_archive(path: Path) -> bool:
    """Whether the file at `path` begins as those of `write` do."""
    with open(path, "rb") as file:
        return file.read(len(_ZIP)) == _ZIP


class Reader:
    """A file of `write`, open for reading.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    OSError
        Where there is no such file, or it cannot be read.
    ValueError
        If it is not such a file, or a damaged one.

    Attributes
    ----------
    header : object
        The JSON header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115  closed by `close`
        self._buffer = np.empty(0, np.uint8)
        try:
            self._members = self._directory()
            self._sorted = sorted(self._members)
            self.header = self._header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def array(self, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array of `key`, if it has that dtype and that shape; it lasts until the next one is asked for."""
        kind = np.dtype(dtype)
        begin, data = self._member(key, kind.itemsize * math.prod(shape))
        if not _same(begin, _array_header(kind, shape)):
            raise self.damaged(f"{key!r} has not the dtype and the shape that its header gives it")
        return data.view(kind).reshape(shape)

    def skip(self, stem: str) -> None:
        """Leave the arrays of `stem` in the file."""
        self._members.pop(stem, None)
        i = bisect.bisect_left(self._sorted, f"{stem}/")
        while i < len(self._sorted) and self._sorted[i].startswith(f"{stem}/"):
            self._members.pop(self._sorted[i], None)
            i += 1

    def finish(self) -> None:
        """Raise a ValueError if the file holds an array that nobody asked for."""
        if self._members:
            raise self.damaged(f"it holds {min(self._members)!r}, of which its header says nothing")

    def damaged(self, reason: str) -> ValueError:
        """Return the error that says so."""
        return ValueError(f"{self.path} is damaged, or not a file of save_states: {reason}")

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        self._check_end()
        try:
            self._archive = zipfile.ZipFile(self._file)
            members = self._archive.infolist()
        except _UNREADABLE as error:
            raise self.damaged(str(error)) from error
        found: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            key = member.filename[: -len(".npy")]
            if member.filename != f"{key}.npy" or key in found:
                raise self.damaged(f"two members, or none, are called {member.filename!r}")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise self.damaged(f"{member.filename!r} is compressed")
            found[key] = member
        if sum(member.file_size for member in members) > self._length:
            raise self.damaged("its members are longer than the file")
        return found

    def _check_end(self) -> None:
        """Look at what a zip file ends with before `zipfile` does, which would read a directory of any length."""
        begin = self._file.read(len(_ZIP))
        self._length = self._file.seek(0, os.SEEK_END)
        if begin[:1] == _PICKLE:
            raise ValueError(
                f"{self.path} looks like a pickle, as gluon.Trainer writes it: a pickle can run any code when it is "
                "loaded. If you trust where it comes from: load_states(fname, allow_pickle=True)"
            )
        self._file.seek(max(0, self._length - _END.size - _LOCATOR.size - _END64.size))
        tail = self._file.read()
        if begin != _ZIP or len(tail) < _END.size + _LOCATOR.size + _END64.size:
            raise self.damaged("it does not begin as one does")
        end = _END.unpack(tail[-_END.size :])
        directory = end[5]
        if tail[_END64.size :].startswith(b"PK\x06\x07"):
            directory = _END64.unpack(tail[: _END64.size])[8]
        if end[0] != b"PK\x05\x06" or end[7]:
            raise self.damaged("it does not end as one does")
        if directory > MOST:
            raise self.damaged(f"its directory takes {directory:,} bytes")

    def _header(self) -> Any:
        length = self._members[HEADER].file_size if HEADER in self._members else 0
        if not 0 < length <= MOST:
            raise self.damaged(f"it has no {HEADER!r}" if not length else f"its header takes {length:,} bytes")
        begin, data = self._member(HEADER)
        text = data.tobytes()
        if not _same(begin, _array_header(np.dtype(f"S{len(text)}"), ())):
            raise self.damaged("its header is no text")
        try:
            return _parsed(text)
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"its header is no JSON ({error})") from error

    def _member(self, key: str, size: int | None = None) -> tuple[bytes, np.ndarray]:
        """Return what a member begins with, and its data, which must be of that size, as bytes."""
        member = self._members.pop(key, None)
        if member is None:
            raise self.damaged(f"it has no array {key!r}")
        try:
            # Not through zipfile's own stream, which copies what it reads twice.
            self._file.seek(member.header_offset)
            mark, *_, name, extra = _LOCAL.unpack(self._file.read(_LOCAL.size))
            self._file.seek(name + extra, os.SEEK_CUR)
            begin = self._file.read(_BEGIN)
            begin += self._file.read(int.from_bytes(begin[_BEGIN - 2 :], "little"))
            left = member.file_size - len(begin)
            if mark != _ZIP or left != (left if size is None else size):
                raise ValueError(f"{key!r} is not {size:,} bytes long" if mark == _ZIP else f"{key!r} is not there")
            if self._buffer.size < left:
                self._buffer = np.empty(left, np.uint8)
            data = self._buffer[:left]
            if self._file.readinto(data.data) != left or zlib.crc32(data.data, zlib.crc32(begin)) != member.CRC:
                raise ValueError(f"the checksum of {key!r} is another")
        except _UNREADABLE as error:
            raise self.damaged(str(error)) from error
        return begin, data


# What zipfile raises for bytes that are not as they should be.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def _write(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> int:
    """Write one member; return what it adds to the directory."""
    member = zipfile.ZipInfo(f"{key}.npy")
    begin = _array_header(array.dtype, array.shape)
    member.file_size = len(begin) + array.nbytes
    with archive.open(member, "w") as stream:
        stream.write(begin)
        if array.size:
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _ENTRY + len(member.filename.encode()) + len(member.extra)


def _array_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what an array begins with in an .npy file, of its version 1.0."""
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _same(one: bytes, other: bytes) -> bool:
    """Whether two .npy files begin alike; how they pad that differs between versions of NumPy."""
    return one[: _BEGIN - 2] == other[: _BEGIN - 2] and one[_BEGIN:].rstrip() == other[_BEGIN:].rstrip()


def _parsed(text: bytes) -> Any:
    return json.loads(
        text.decode("ascii"),
        object_pairs_hook=_without_duplicates,
        parse_constant=_finite,
        parse_int=_integer,
        parse_float=_finite,
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number
