"""``multitrainer export``: write the network of a run to files that programs without multitrainer load."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np

from multitrainer import saved_run

from .data.layout import check_outside
from .errors import UserError
from .exporting import network_files, onnx_model, verification
from .exporting.network_files import FileNames
from .exporting.new_files import new_files
from .exporting.verification import Agreement
from .output import escape
from .runs import record

IMAGES = 8  # of the run's own images, to compare on


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.onnx:
        onnx_model.check_installed()
    names = FileNames.of(_call(saved_run.read_record, args.run)["model"], args.onnx)
    out = args.out or args.run / "export"
    recorded = _read_record(args.run)
    _check_outside(out, args.run, recorded["data"])
    with new_files(out, names.all(), args.overwrite) as folder:
        loaded = _call(saved_run.load_run, args.run, weights=args.weights, ctx=mx.cpu())
        net = network_files.with_softmax(loaded.net) if args.softmax else loaded.net
        images = _transformed_images(recorded, loaded.transform)
        random = verification.random_inputs(loaded.transform.size)
        inputs = np.concatenate([random, *images])
        expected = net(mx.nd.array(inputs)).asnumpy()
        network_files.save_network(net, loaded.transform.size, folder / names.model)
        network_files.save_description(folder, names, loaded.classes, loaded.transform, args.softmax)
        agreements = _verify(folder, names, loaded.transform.size, inputs, expected)
    print(f"{names.model}, {len(loaded.classes)} classes, {args.weights} weights of {escape(str(args.run))}")
    print("\n".join(f"  {escape(str(out / name))}" for name in names.all()))
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


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of the library, whose errors are errors of the user here."""
    try:
        return function(*arguments, **options)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(str(error)) from error


def _check_outside(out: Path, folder: Path, data: str | None) -> None:
    """Refuse a folder that would be taken for a class of the images of the run, if they are still there."""
    if data is not None and Path(data).is_dir():
        check_outside(out, Path(data), folder)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return record.read(folder / saved_run.RECORD)
    except (OSError, ValueError, LookupError, TypeError):  # it describes a network, but not where its images are
        return {"data": None, "images": None}


def _transformed_images(run: dict[str, Any], transform: Any) -> list[np.ndarray]:
    """Return some images that the run measured its accuracy on, as inputs of the network; none if they are gone."""
    found = []
    for name in run["images"]["val"][:IMAGES] if run["images"] else ():
        with contextlib.suppress(OSError, ValueError, mx.MXNetError):  # it was removed or damaged since
            found.append(transform(Path(run["data"], name)).expand_dims(0).asnumpy())
    return found
