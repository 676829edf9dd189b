"""The files that describe an exported network: symbol, parameters, classes, preprocessing, and how to use them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import mxnet as mx

from multitrainer.images import ImageTransform

from ..errors import UserError
from .new_files import MANIFEST

CLASSES, README = "classes.txt", "README.md"


class FileNames(NamedTuple):
    """The names of the files of an export."""

    model: str  # what the names of the network's own files begin with
    symbol: str
    parameters: str
    onnx: str | None

    @classmethod
    def of(cls, model: str, with_onnx: bool) -> FileNames:
        """Return the names for a model."""
        return cls(model, f"{model}-symbol.json", f"{model}-0000.params", f"{model}.onnx" if with_onnx else None)

    def all(self) -> list[str]:
        """Return the names of all files of the export."""
        return [MANIFEST, CLASSES, README, *(name for name in self[1:] if name)]


class _Probabilities(mx.gluon.HybridBlock):
    """A network whose scores are turned to probabilities."""

    def __init__(self, net: mx.gluon.HybridBlock) -> None:
        super().__init__(prefix="")
        self.net = net

    def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
        return F.softmax(self.net(x))


def with_softmax(net: mx.gluon.HybridBlock) -> mx.gluon.HybridBlock:
    """Return a network that computes the probabilities of the classes; it shares the parameters of `net`."""
    return _Probabilities(net)


def save_network(net: mx.gluon.HybridBlock, size: int, prefix: Path) -> None:
    """Write the symbol and the parameters of a network, and check that they can be read back.

    Parameters
    ----------
    net : HybridBlock
        An initialized network. It is hybridized.
    size : int
        The side of the square images that it takes.
    prefix : Path
        Its name, with ``-symbol.json`` and ``-0000.params`` added, is that of the files.

    Raises
    ------
    UserError
        If the files cannot be written.
    """
    net.hybridize()
    context = next(iter(net.collect_params().values())).list_ctx()[0]
    net(mx.nd.zeros((1, 3, size, size), ctx=context))  # traces the network
    files = Path(f"{prefix}-symbol.json"), Path(f"{prefix}-0000.params")
    try:
        net.export(str(prefix), epoch=0)
        mx.model.load_checkpoint(str(prefix), 0)  # MXNet does not notice a disk that is full at the last write
    except mx.MXNetError as error:
        name = files[files[1].exists()].name  # the symbol comes first; MXNet does not say which file it wrote
        raise UserError(
            f"cannot write {name}: the file is incomplete; make room on the disk or choose another --out"
        ) from error


def save_description(
    folder: Path, names: FileNames, classes: Sequence[str], transform: ImageTransform, softmax: bool
) -> None:
    """Write the classes, the preprocessing and the text that says how to load the network."""
    output = "probabilities" if softmax else "scores before softmax"
    description = {
        "model": names.model,
        **transform.as_dict(),
        "layout": "NCHW",
        "dtype": "float32",
        "channels": "RGB, divided by 255",
        "input": "data",
        "output": output,
        "files": names.all(),
    }
    (folder / MANIFEST).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    readme = describe_use(names, len(classes), transform, output)
    (folder / README).write_text(readme, encoding="utf-8")


def describe_use(names: FileNames, classes: int, transform: ImageTransform, output: str) -> str:
    """Return the text, in Markdown, that says how to load the network and what its input and `output` are."""
    text = _README + (_README_OF_ONNX if names.onnx else "")
    return text.format(classes=classes, output=output, **names._asdict(), **dataclasses.asdict(transform))


_README = """\
# {model}, {classes} classes

An image classifier, written by `multitrainer export`. Its outputs are {output}, in the order of the lines of
`classes.txt`. `preprocess.json` says in JSON what its input is, a float32 array in the layout NCHW:

- an upright RGB image, its shorter side resized to {resize} pixels, and the centre of {size} x {size} pixels of that
- values from 0 to 1, minus the mean {mean},
  divided by the standard deviation {std}

MXNet 1.9.1 loads it without other packages. With NumPy 1.24 or newer, `numpy.bool = bool` must come before
`import mxnet`. `imread` does not turn a photograph upright whose EXIF data says how it was held. It cannot read GIF and
WebP, which the run could be trained on; convert such an image to PNG.

```python
import mxnet as mx
from mxnet.gluon.data.vision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

net = mx.gluon.SymbolBlock.imports("{symbol}", ["data"], "{parameters}")
normalize = Normalize({mean}, {std})
transform = Compose([Resize({resize}, keep_ratio=True), CenterCrop({size}), ToTensor(), normalize])
outputs = net(transform(mx.image.imread("image.jpg")).expand_dims(0))
print(open("classes.txt", encoding="utf-8").read().splitlines()[int(outputs[0].argmax(0).asscalar())])
```
"""

_README_OF_ONNX = """
onnxruntime runs `{onnx}` on batches of any size:

```python
import onnxruntime

session = onnxruntime.InferenceSession("{onnx}", providers=["CPUExecutionProvider"])
outputs = session.run(None, {{"data": batch}})[0]  # batch: a float32 array of shape (N, 3, {size}, {size})
```
"""
