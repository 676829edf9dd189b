"""An archive is a file of one JSON header and any number of arrays: an .npz file, which NumPy can read too.

It is safe to read an archive from anywhere: members are not compressed, so reading takes no more memory than the file
is long; each has a checksum; no pickle is loaded; and an array must have the dtype and shape that the caller expects.
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
from typing import Any, BinaryIO, Iterable, Tuple

import numpy as np

from . import atomic

HEADER = "@header"
# The most bytes of the JSON header, and of the directory of members: reading either takes a multiple of its size.
MAX_HEADER_BYTES = 4 << 20
_MAX_DIGITS = 302  # the time to parse an integer grows with its square, and no float has more digits

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
Array = Tuple[str, Any]  # the key of an array, and a NumPy array or an object that has `asnumpy`

# Records of a zip file: PKWARE's APPNOTE.TXT, 4.3.7 and 4.3.14 to 4.3.16.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL_SIGNATURE, _END_SIGNATURE = b"PK\x03\x04", b"PK\x05\x06"
_END64_SIGNATURE, _END64_LOCATOR_SIGNATURE = b"PK\x06\x06", b"PK\x06\x07"
_TAIL_BYTES = _END64.size + _END64_LOCATOR.size + _END.size
_DIRECTORY_ENTRY_BYTES = 46  # without the name of the member
_PICKLE_SIGNATURE = b"\x80"

_NPY_PREFIX = 10  # bytes of an .npy file before its description; the last two are the length of the description
_MAX_NPY_HEADER = 128  # bytes, of a text

# What zipfile and struct raise for malformed bytes.
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


def write(path: Path, header: Any, arrays: Iterable[Array]) -> None:
    """Replace the file at `path` atomically; arrays are copy_arrays to the host one at a time.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If the header is longer than `Reader` accepts, or holds a value that `Reader` refuses.
    """
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    _parse_json(text)  # never write a header that cannot be read
    directory = 0
    with atomic.replacing(path) as temporary, zipfile.ZipFile(str(temporary), "w", zipfile.ZIP_STORED) as archive:
        directory += _write_member(archive, HEADER, np.array(text, dtype=f"S{len(text)}"))
        for key, array in arrays:
            directory += _write_member(archive, key, array if isinstance(array, np.ndarray) else array.asnumpy())
        if max(len(text), directory) > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path}: the names and numbers beside the arrays take {max(len(text), directory):,} bytes; a file can "
                f"hold at most {MAX_HEADER_BYTES:,}"
            )


def is_archive(path: Path) -> bool:
    """Whether the file at `path` begins like one that `write` wrote."""
    with open(path, "rb") as file:
        return file.read(len(_LOCAL_SIGNATURE)) == _LOCAL_SIGNATURE


class Reader:
    """Reads an archive that `write` wrote, and treats its content as untrusted.

    Parameters
    ----------
    path : Path
        The file.
    written_by : str, default 'save_states'
        The function whose files these are, for the error about a damaged one.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ValueError
        If the file is not an archive, or is damaged.

    Attributes
    ----------
    header : object
        The JSON header.
    """

    def __init__(self, path: Path, written_by: str = "save_states") -> None:
        self.path = path
        self._written_by = written_by
        self._file = open(path, "rb")  # noqa: SIM115  closed by `close`
        self._buffer = np.empty(0, np.uint8)
        try:
            self._members = self._read_directory()
            self._sorted_keys = sorted(self._members)
            self.header = self._read_header()
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
        """Read the array `key`, which must have this dtype and shape; the next call overwrites its memory."""
        expected = np.dtype(dtype)
        npy_header, data = self._read_member(key)
        if not _same_npy_header(npy_header, _npy_header(expected, shape)):
            raise self.damaged(f"dtype or shape mismatch for {key!r}: the header says {dtype} {shape}")
        if data.size != expected.itemsize * math.prod(shape):
            raise self.damaged(f"{key!r} holds {data.size:,} bytes, which is not the size of {dtype} {shape}")
        return data.view(expected).reshape(shape)

    def skip(self, path: str) -> None:
        """Ignore the arrays at `path` and below it."""
        self._members.pop(path, None)
        first = bisect.bisect_left(self._sorted_keys, f"{path}/")
        end = bisect.bisect_left(self._sorted_keys, f"{path}0")  # '0' comes after '/'
        for key in self._sorted_keys[first:end]:
            self._members.pop(key, None)

    def check_all_read(self) -> None:
        """Raise a ValueError if the file holds an array that was neither read nor skipped."""
        if self._members:
            raise self.damaged(f"it holds {min(self._members)!r}, which its header does not mention")

    def damaged(self, reason: str) -> ValueError:
        """Create the error that says that the file is damaged, and why."""
        return ValueError(f"{self.path} is damaged, or was not written by {self._written_by}: {reason}")

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        length = self._check_zip_ends()
        try:
            members = zipfile.ZipFile(self._file).infolist()
        except _UNREADABLE as error:
            raise self.damaged(str(error)) from error
        found: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            key = member.filename[: -len(".npy")]
            if member.filename != f"{key}.npy":
                raise self.damaged(f"its member {member.filename!r} is not an .npy file")
            if key in found:
                raise self.damaged(f"it has two members {member.filename!r}")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise self.damaged(f"{member.filename!r} is compressed")
            found[key] = member
        if sum(member.file_size for member in members) > length:
            raise self.damaged("its members are longer than the file")
        return found

    def _check_zip_ends(self) -> int:
        """Check the start and the end of the zip file, and return its length.

        `zipfile` would read a directory of any size, so this comes first.
        """
        start = self._file.read(len(_LOCAL_SIGNATURE))
        length = self._file.seek(0, os.SEEK_END)
        if start[:1] == _PICKLE_SIGNATURE:
            raise ValueError(
                f"{self.path} looks like a pickle, as gluon.Trainer writes it: a pickle can run any code when it is "
                "loaded. If you trust its source: load_states(fname, allow_pickle=True)"
            )
        if start != _LOCAL_SIGNATURE or length < _TAIL_BYTES:
            raise self.damaged("it does not begin like an .npz file")
        self._file.seek(-_TAIL_BYTES, os.SEEK_END)
        tail = self._file.read()
        signature, _, _, _, _, directory, _, comment = _END.unpack(tail[-_END.size :])
        if signature != _END_SIGNATURE or comment:
            raise self.damaged("it does not end like an .npz file")
        if tail.startswith(_END64_SIGNATURE) and tail[_END64.size :].startswith(_END64_LOCATOR_SIGNATURE):
            directory = _END64.unpack(tail[: _END64.size])[8]
        if directory > MAX_HEADER_BYTES:
            raise self.damaged(f"its directory takes {directory:,} bytes")
        return length

    def _read_header(self) -> Any:
        length = self._members[HEADER].file_size if HEADER in self._members else 0
        if length > MAX_HEADER_BYTES + _MAX_NPY_HEADER:
            raise self.damaged(f"its header takes {length:,} bytes")
        npy_header, data = self._read_member(HEADER)
        text = data.tobytes()
        if not _same_npy_header(npy_header, _npy_header(np.dtype(f"S{len(text)}"), ())):
            raise self.damaged("its header is not text")
        try:
            return _parse_json(text)
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"its header is not valid JSON ({error})") from error

    def _read_member(self, key: str) -> tuple[bytes, np.ndarray]:
        """Read a member once: its .npy header, and its data as bytes."""
        member = self._members.pop(key, None)
        if member is None:
            raise self.damaged(f"it has no member {key!r}")
        try:
            npy_header = _seek_to_data(self._file, member.header_offset)
            size = member.file_size - len(npy_header)
            if self._buffer.size < size:
                self._buffer = np.empty(size, np.uint8)
            data = self._buffer[:size]
            # zipfile's own stream would copy the data twice.
            complete = size >= 0 and self._file.readinto(data.data) == size
            if not complete or zlib.crc32(data.data, zlib.crc32(npy_header)) != member.CRC:
                raise ValueError(f"checksum mismatch for {key!r}")
        except _UNREADABLE as error:
            raise self.damaged(str(error)) from error
        return npy_header, data


def _seek_to_data(file: BinaryIO, offset: int) -> bytes:
    """Read the .npy header of the member at `offset`, and leave `file` at its data."""
    file.seek(offset)
    signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _LOCAL_SIGNATURE:
        raise ValueError(f"no member begins at byte {offset:,}")
    file.seek(name_length + extra_length, os.SEEK_CUR)
    prefix = file.read(_NPY_PREFIX)
    return prefix + file.read(int.from_bytes(prefix[_NPY_PREFIX - 2 :], "little"))


def _write_member(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> int:
    """Write one member, and return the number of bytes that it adds to the directory."""
    member = zipfile.ZipInfo(f"{key}.npy")
    npy_header = _npy_header(array.dtype, array.shape)
    member.file_size = len(npy_header) + array.nbytes
    with archive.open(member, "w") as stream:
        stream.write(npy_header)
        if array.size:
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _DIRECTORY_ENTRY_BYTES + len(member.filename.encode())


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Create what comes before the data in an .npy file, version 1.0."""
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _same_npy_header(one: bytes, other: bytes) -> bool:
    """Whether two .npy headers are equal but for their padding, which differs between versions of NumPy."""
    (version, text), (other_version, other_text) = (
        (header[: _NPY_PREFIX - 2], header[_NPY_PREFIX:].rstrip()) for header in (one, other)
    )
    return version == other_version and text == other_text


def _parse_json(text: bytes) -> Any:
    return json.loads(
        text.decode("ascii"),
        object_pairs_hook=_unique_keys,
        parse_constant=_finite_float,
        parse_int=_short_int,
        parse_float=_finite_float,
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
