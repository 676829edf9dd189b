"""``multitrainer export``: write the network of a run to files that programs without multitrainer load."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

import multitrainer

from .errors import UserError
from .exporting import network_files, onnx_model, verification
from .exporting.network_files import FileNames, Preprocessing
from .exporting.new_files import new_files
from .exporting.verification import Agreement
from .runs import run_folder

IMAGES = 8  # of the run's own images, to compare on


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.onnx:
        onnx_model.check_installed()
    record = _read_record(args.run)
    names = FileNames.of(record["model"], args.onnx)
    out = args.out or args.run / "export"
    with new_files(out, names.all(), args.overwrite) as folder:
        loaded = _load(args.run, args.weights)
        net = network_files.with_softmax(loaded.net) if args.softmax else loaded.net
        images = _transformed_images(record, loaded.transform)
        random = verification.random_inputs(record["input"].size)
        inputs = np.concatenate([random, *images])
        expected = net(mx.nd.array(inputs)).asnumpy()
        network_files.save_network(net, record["input"].size, folder / names.model)
        network_files.save_description(folder, names, loaded.classes, record["input"], args.softmax)
        agreements = _verify(folder, names, record["input"].size, inputs, expected)
    print(f"{names.model}, {len(loaded.classes)} classes, {args.weights} weights of {args.run}")
    print("\n".join(f"  {out / name}" for name in names.all()))
    compared = f"{len(random)} random inputs" + (f" and {len(images)} images of the run" if images else "")
    for loader, agreement in agreements.items():
        print(
            f"checked with {loader} on {compared}: the same classes as the network; outputs differ by at most "
            f"{agreement.difference:.1g} of the largest"
        )
    return 0


def _verify(
    folder: Path, names: FileNames, size: int, inputs: np.ndarray, expected: np.ndarray
) -> dict[str, Agreement]:
    """Compare what loads the exported files with the network, and return how well they agree, by what loads them."""
    found = verification.run_plain_mxnet(folder / names.symbol, folder / names.parameters, inputs)
    agreements = {"MXNet alone": verification.compare(expected, found, "MXNet alone")}
    if names.onnx:
        onnx_model.save_onnx(folder / names.model, size, folder / names.onnx)
        found = onnx_model.run_onnxruntime(folder / names.onnx, inputs)
        agreements["onnxruntime"] = verification.compare(expected, found, "onnxruntime")
    return agreements


def _read_record(folder: Path) -> dict[str, Any]:
    """Read what the record of a run says of its network and its images."""
    path = folder / run_folder.RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: record["input"][name] for name in Preprocessing._fields}
        return {**record, "model": str(record["model"]), "input": Preprocessing(**fields)}
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {run_folder.RECORD}; give the folder of a run, the --out of multitrainer finetune"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); give the folder of another run") from error


def _load(folder: Path, weights: str) -> Any:
    try:
        return multitrainer.load_run(folder, weights=weights, ctx=mx.cpu())
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error


def _transformed_images(record: dict[str, Any], transform: Any) -> list[np.ndarray]:
    """Return some images that the run measured its accuracy on, as inputs of the network; none if they are gone."""
    images = record.get("images") or {"val": []}
    found = []
    for name in images["val"][:IMAGES]:
        try:
            found.append(transform(Path(record["data"], name)).expand_dims(0).asnumpy())
        except (OSError, ValueError, mx.MXNetError):  # it was removed or damaged since
            continue
    return found
