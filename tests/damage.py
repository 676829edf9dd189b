"""Load damaged files of states, and report what each does: ``damage.py FOLDER`` writes ``verdicts.json`` there."""

# isort: off
import multitrainer  # noqa: F401
import mxnet as mx

# isort: on
import copy
import io
import json
import os
import pathlib
import pickle
import random
import resource
import signal
import struct
import sys
import zipfile

import numpy as np

from multitrainer import MultiLRTrainer, ParamGroup
from support import batches, fingerprint, mlp, train

SECONDS, MEGABYTES = 2, 200  # of processor time and memory that refusing a file may take


def build(steps=0):
    net = mlp()
    scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.05)
    multiplier = mx.lr_scheduler.FactorScheduler(1, 0.999, base_lr=1)
    groups = [net, ParamGroup(net[0], lr_mult=0.5, wd_mult=multiplier), (net[1], 0)]
    trainer = MultiLRTrainer(groups, "lbsgd", {"momentum": 0.9, "lr_scheduler": scheduler})
    train(net, trainer, batches(steps))
    return net, trainer


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def accidents(good, seed=7):
    """Yield files as a broken disk or network leaves them: cut, with flipped bits, overwritten or extended."""
    rng = random.Random(seed)
    for i in range(70):
        yield f"cut {i}", good[: len(good) * i // 70]
    for i in range(130):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield f"bits {i}", bytes(data)
    for i in range(50):
        data, length = bytearray(good), rng.choice((1, 4, 30, 300, 2000))
        begin = rng.randrange(len(data) - length)
        data[begin : begin + length] = rng.getrandbits(8 * length).to_bytes(length, "little")
        yield f"overwritten {i}", bytes(data)
    for i in range(20):
        yield f"noise {i}", rng.getrandbits(8 * 500 * (i + 1)).to_bytes(500 * (i + 1), "little")
    for i in range(10):
        yield f"longer {i}", good + bytes(i * 100 + 1)
        yield f"shifted {i}", bytes(i + 1) + good
    yield "twice", good + good
    yield "without its end", good[:-22]


def attacks(good, mark):
    """Yield malicious files; none of them may load."""
    evil = pickle.dumps(Evil(mark))
    yield "pickle", evil
    yield "old pickle", pickle.dumps(Evil(mark), protocol=0)
    members = read(good)
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    header = json.loads(members["@header.npy"][members["@header.npy"].index(b"\n") + 1 :])
    weight = next(name for name in members if name.endswith("dense1_weight.npy"))
    state = "parameters", array_name(weight), "state"
    for name in members:
        yield f"{name} is a pickle in an array", write({**members, name: objects.getvalue()})
        yield f"{name} is a bare pickle", write({**members, name: evil})
        yield f"{name} is missing", write({key: data for key, data in members.items() if key != name})
        yield f"{name} is empty", write({**members, name: b""})
    yield "an array more", write({**members, "more.npy": members[weight]})
    yield "a file more", write({**members, "code.py": b"import os"})
    yield "no array in it", write({"@header.npy": members["@header.npy"]})
    yield "an .npz of a pickle beside", write({**members, "more.npy": objects.getvalue()})
    yield "a member twice", write(members, again=weight)
    yield "the header twice", write(members, again="@header.npy")
    yield "deflated", write(members, zipfile.ZIP_DEFLATED)
    for dtype in ("float64", "int32", "float16", "S4", "O8", ">f4", "V4"):
        yield f"array of {dtype}", write({**members, weight: as_dtype(members[weight], dtype)})
        yield (
            f"header says {dtype}",
            forged(members, header, (*state, "array", 0), dtype),
        )
    for shape in ((4, 2), (8,), (2, 4, 1), (2**40, 4), (0, 4), (-1, 4), (2**62, 2**62), (10**400,)):
        yield f"array of {shape}", write({**members, weight: as_shape(members[weight], shape)})
        yield (
            f"header says {shape}",
            forged(members, header, (*state, "array", 1), list(shape)),
        )
        both = {**members, weight: as_shape(members[weight], shape)}
        yield (
            f"both say {shape}",
            forged(both, header, (*state, "array", 1), list(shape)),
        )
    yield "a bomb of a header", write({**members, "@header.npy": text(b" " * (300 << 20))}, zipfile.ZIP_DEFLATED)
    yield "a bomb of an array", write({**members, weight: bytes(300 << 20)}, zipfile.ZIP_DEFLATED)
    yield "a header of commas", write({**members, "@header.npy": text(b"[" + b"[]," * (20 << 20) + b"[]]")})
    yield "a deep header", write({**members, "@header.npy": text(b"[" * 4_000_000)})
    yield "a deep state", write({**members, "@header.npy": text(deep(header, array_name(weight)))})
    yield "a long number", write({**members, "@header.npy": text(b'{"format": ' + b"9" * 4_000_000 + b"}")})
    twice = b'{"num_update": 3, ' + json.dumps(header).encode()[1:]
    yield "a number of 1000 digits", forged(members, header, ("optimizer", "attributes", "wd"), 10**1000)
    yield "two of one name", write({**members, "@header.npy": text(twice)})
    yield "not a number", forged(members, header, ("num_update",), float("nan"))
    yield "many members", million_members()
    yield "one array for many", overlapping(members, header)
    yield "a directory of 4 GB", good[:-10] + struct.pack("<LLH", 2**32 - 2, 0, 0)
    many = [[2**62] * 100_000, [1] * 100_000, [2] * 33]
    for shape in many:
        label = f"{len(shape)} axes of {shape[0]}"
        yield f"{label}: a parameter", forged(members, header, ("parameters", array_name(weight), "shape"), shape)
        for where in (("optimizer", "attributes", "wd"), state):
            for kind in ("array", "numpy", "row_sparse"):
                node = {kind: ["float32", shape, *([1] if kind == "row_sparse" else [])]}
                yield f"{label}: {kind} for {where[-1]}", forged(members, header, where, node)
    for count in (4 * 10**7, 2**62):
        yield f"{count} updates", forged(members, header, ("num_update",), count)
        forward = {**header, "lr_scheduler": scheduler_with(header, count=count)}
        yield f"{count} updates, and so the scheduler", forged(members, forward, ("num_update",), count)
    for name, value in (
        *(("step", junk) for junk in (0, -1, 1e-9, None, "1", [1])),
        *(("count", junk) for junk in (-(10**9), -(10**200), None)),
        *((name, {"float": junk}) for name in ("base_lr", "factor", "step") for junk in ("nan",)),
        *(("base_lr", junk) for junk in ("much", [1], {"tuple": []})),
    ):
        yield (
            f"{name} of the scheduler is {value!r}",
            forged(members, header, ("lr_scheduler",), scheduler_with(header, **{name: value})),
        )
    for name in ("lr", "wd", "momentum"):
        yield f"{name} is nan", forged(members, header, ("optimizer", "attributes", name), {"float": "nan"})
    for name in ("lr", "wd"):
        yield f"{name} is inf", forged(members, header, ("optimizer", "attributes", name), {"float": "inf"})
    for name in ("update", "param_dict", "lr", "num_update", "a b"):
        yield f"{name} by parameter", forged(members, header, ("optimizer", "by_parameter"), {name: {}})
    for junk in (None, {}, [None], [[3]], [["a"], ["a"]], [["a", "a"], "a"], "junk"):
        yield f"shared is {junk!r}", forged(members, header, ("shared",), junk)
    for path in paths(header):
        for junk in (None, [], {}, "junk", -3, 1e999, 10**400, {"tuple": []}, {"object": ["dict", {}]}):
            if junk != value_at(header, path):
                yield f"{'.'.join(map(str, path))} is {junk!r}", forged(members, header, path, junk)


def scheduler_with(header, **attributes):
    name, nodes = header["lr_scheduler"]["object"]
    return {"object": [name, {**nodes, **attributes}]}


def with_unknown_parameters(good, count=20_000):
    """Return a file with many unknown Parameters; those that the trainer has can be loaded."""
    members = read(good)
    header = json.loads(np.load(io.BytesIO(members["@header.npy"])).item())
    weight = "net_dense1_weight"
    unknown = [f"p{i}" for i in range(count)]
    header["parameters"].update({name: {"shape": [2, 4], "dtype": "float32"} for name in unknown})
    members.update({f"{name}.npy": members[f"{weight}.npy"] for name in unknown})
    return write({**members, "@header.npy": text(json.dumps(header).encode())})


def paths(header):
    """Yield the paths of values that every file must have."""
    yield from ((key,) for key in header if key not in ("groups", "loss_scaler", "lr_scheduler", "shared"))
    weight = "net_dense1_weight"
    yield from (("parameters", weight, key) for key in ("shape", "dtype", "lr_mult", "wd_mult", "frozen", "grad_req"))
    yield from (("parameters", weight, key) for key in ("schedules", "before"))
    yield from (("optimizer", key) for key in ("class", "attributes"))
    yield ("lr_scheduler", "object")


def value_at(header, path):
    for key in path:
        header = header[key]
    return header


def forged(members, header, path, value):
    header = copy.deepcopy(header)
    value_at(header, path[:-1])[path[-1]] = value
    return write({**members, "@header.npy": text(json.dumps(header).encode())})


def deep(header, name):
    """Return a header in which the state of one parameter is a list nested 900 times."""
    whole = json.dumps({**header, "parameters": {**header["parameters"], name: {"state": "HERE"}}})
    return whole.replace('"HERE"', "[" * 900 + "]" * 900).encode()


def array_name(member):
    return member[: -len(".npy")]


def read(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(members, compression=zipfile.ZIP_STORED, again=None):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if again:
            archive.writestr(again, members[again])
    return stream.getvalue()


def text(data):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array(data, dtype=f"S{len(data)}"))
    return stream.getvalue()


def as_dtype(member, dtype):
    return replace_header(member, b"'<f4'", repr("|O" if dtype == "O8" else np.dtype(dtype).str).encode())


def as_shape(member, shape):
    return replace_header(member, b"(2, 4)", repr(shape).encode())


def replace_header(member, before, after):
    """Replace part of the header of an .npy file, and keep its data."""
    length = int.from_bytes(member[8:10], "little")
    header = member[10 : 10 + length].replace(before, after)
    return member[:8] + len(header).to_bytes(2, "little") + header + member[10 + length :]


def million_members():
    """Return a zip file of a million empty members."""
    name, count = b"a.npy", 1_000_000
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    begin = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(entry) * count, len(begin), 0)
    return begin + entry * count + end


def overlapping(members, header):
    """Return a file of 2 MB whose 300 arrays are all the same bytes."""
    header = copy.deepcopy(header)
    header["optimizer"]["attributes"]["wd"] = {"tuple": [{"array": ["float32", [1 << 19]]}] * 300}
    array = io.BytesIO()
    np.lib.format.write_array(array, np.ones(1 << 19, "float32"))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in {**members, "@header.npy": text(json.dumps(header).encode())}.items():
            archive.writestr(name, data)
        archive.writestr("@optimizer/wd/0.npy", array.getvalue())
        for i in range(1, 300):
            again = copy.copy(archive.filelist[-1])
            again.filename = f"@optimizer/wd/{i}.npy"
            archive.filelist.append(again)
    return stream.getvalue()


def judge(folder):
    """Load every damaged file and write the verdicts; exit if one takes too much time or memory."""
    _, trainer = build(3)
    trainer.save_states(folder / "good")
    good = (folder / "good").read_bytes()
    path, mark = folder / "bad", folder / "mark"
    first, fresh = build()
    train(first, fresh, batches(1))
    before = fingerprint(fresh, first)
    twin, other = build()
    train(twin, other, batches(1))
    other.load_states(folder / "good")
    loaded = {**fingerprint(other, twin), "weights": None}
    files = [
        *((kind, data, True, False) for kind, data in accidents(good)),
        *((kind, data, False, False) for kind, data in attacks(good, mark)),
        ("many unknown Parameters", with_unknown_parameters(good), True, True),
    ]
    limit = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit + (MEGABYTES << 20), resource.RLIM_INFINITY))
    verdicts = {}
    for kind, data, may_load, partial in files:
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        try:
            fresh.load_states(path, partial=partial)
        except (ValueError, RuntimeError) as error:
            verdict = "refused" if fingerprint(fresh, first) == before else "refused, and changed something"
            if isinstance(error.__cause__, mx.MXNetError):  # there was not enough memory
                verdict = str(error)
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
        else:
            same = {**fingerprint(fresh, first), "weights": None} == loaded
            verdict = "loaded" if same and may_load else f"loaded, {'the same' if same else 'something else'}"
            first, fresh = build()
            train(first, fresh, batches(1))
        signal.setitimer(signal.ITIMER_PROF, 0)
        if mark.exists():
            verdict = "ran code"
        verdicts[kind] = verdict
        (folder / "verdicts.json").write_text(json.dumps(verdicts))


if __name__ == "__main__":
    judge(pathlib.Path(sys.argv[1]))
