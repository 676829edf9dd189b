"""Images as networks take them: read a file into pixels, and pixels into the input of a network.

Reading needs Pillow, which the extra ``finetune`` installs. Nothing else here does.
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon.data.vision import transforms

from . import _mxnet

__all__ = ["ImageTransform", "read_image"]

# What a file has to be called to be taken for an image, in lower case. What it is decides its contents.
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_SIDE = 8192  # pixels; an image of this size takes 800 MB as the input of a network
MAX_ASPECT_RATIO = 100  # resized by its shorter side, an image that is longer than this takes hundreds of MB

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | os.PathLike[str]) -> mx.nd.NDArray:
    """Read an image file as RGB pixels.

    The contents decide the format, not the name: whatever Pillow can open can be read. The orientation in the EXIF
    data is applied. Of several frames or pages, the first is read. Transparency is dropped, and 16 bits become 8. A
    truncated file is refused, even after ``import gluoncv``, which tells Pillow to accept such files.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    NDArray
        The pixels, height x width x 3, uint8, on the CPU.

    Raises
    ------
    ValueError
        If the file cannot be decoded, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or is more than 100 times as
        long as wide. The message names the file.
    OSError
        If there is no such file or it cannot be opened.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("L", (3, 2), 7).save("grey.png")
    >>> read_image("grey.png").shape
    (2, 3, 3)
    """
    return _mxnet.copy_to_ndarray(_decode(path))


def check_image(path: str | os.PathLike[str]) -> None:
    """Raise what `read_image` would raise for a file, in less time than reading it: a JPEG is decoded at 1/8 its size.

    Parameters
    ----------
    path : str or PathLike
        The file.
    """
    _decode(path, reduced=True)


@dataclass(frozen=True)
class ImageTransform:
    """Makes the input of a network from an image, as GluonCV validates its classifiers.

    The shorter side is resized, the centre is cropped, and the values are divided by 255 and normalized. The result is
    bit for bit that of `gluoncv.data.transforms.presets.imagenet.transform_eval`.

    Parameters
    ----------
    size : int
        The side of the square input, in pixels.
    resize : int
        The length of the shorter side before the crop, in pixels, at least `size` and at most 8192.
    mean, std : tuple of 3 floats
        Of the red, green and blue values, on a scale of 0 to 1; by default those of ImageNet.

    Raises
    ------
    ValueError
        If a size is not from 1 to 8192, `resize` is smaller than `size`, or `mean` or `std` are not three usable
        numbers.

    Examples
    --------
    >>> transform = ImageTransform(size=224, resize=256)
    >>> transform(mx.nd.zeros((300, 400, 3), dtype="uint8")).shape
    (3, 224, 224)
    >>> ImageTransform.from_dict(transform.as_dict()) == transform
    True
    """

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize <= MAX_SIDE:
            raise ValueError(
                f"expected 0 < size <= resize <= {MAX_SIDE}, got size={self.size!r} and resize={self.resize!r}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(_is_finite, values)):
                raise ValueError(f"{name}: expected three finite numbers, for red, green and blue, got {values!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected numbers above 0, got {self.std!r}")

    def __call__(self, image: mx.nd.NDArray | str | os.PathLike[str]) -> mx.nd.NDArray:
        """Return the input of the network for an image.

        Parameters
        ----------
        image : NDArray or path
            The pixels, height x width x 3, uint8, as `read_image` returns them, or a file.

        Returns
        -------
        NDArray
            3 x size x size, float32.

        Raises
        ------
        ValueError
            If the array has another shape or type, or the file cannot be read.
        """
        pixels = image if isinstance(image, mx.nd.NDArray) else read_image(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"expected an image of height x width x 3 and type uint8, got {'x'.join(map(str, pixels.shape))} and "
                f"{np.dtype(pixels.dtype).name}; read_image returns such arrays"
            )
        steps = (
            transforms.Resize(self.resize, keep_ratio=True),
            transforms.CenterCrop(self.size),
            transforms.ToTensor(),
            transforms.Normalize(self.mean, self.std),
        )
        for step in steps:
            pixels = step(pixels)
        return pixels

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON can hold them."""
        return {"size": self.size, "resize": self.resize, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ImageTransform:
        """Return the transform that `as_dict` has described; raise LookupError, TypeError or ValueError if it is none.

        Parameters
        ----------
        record : dict
            What `as_dict` returned, or what JSON made of it.
        """
        for name in ("size", "resize"):
            if type(record[name]) is not int:
                raise TypeError(f"{name}: expected a whole number, got {record[name]!r}")
        for name in ("mean", "std"):
            values = record[name]
            if not (isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)):
                raise TypeError(f"{name}: expected a list of numbers, got {values!r}")
        return cls(record["size"], record["resize"], tuple(record["mean"]), tuple(record["std"]))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


class _RefusingTruncated:
    """While a thread is in this context, Pillow refuses truncated files; after that it does as it did before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._before = False

    def __enter__(self) -> None:
        settings = _import_pillow().ImageFile
        with self._lock:
            if self._threads == 0:
                self._before, settings.LOAD_TRUNCATED_IMAGES = settings.LOAD_TRUNCATED_IMAGES, False
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                _import_pillow().ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_REFUSING_TRUNCATED = _RefusingTruncated()


def _decode(path: str | os.PathLike[str], reduced: bool = False) -> np.ndarray:
    """Return the pixels of a file; `reduced` allows the decoder to leave out what makes them sharp."""
    pil = _import_pillow()
    with open(path, "rb") as file, _REFUSING_TRUNCATED:
        try:
            with pil.Image.open(file) as image:
                _check_size(image.size, pil.Image.MAX_IMAGE_PIXELS)
                if reduced:
                    image.draft(None, (1, 1))
                if image.format != "TIFF":  # which Pillow turns when it loads it
                    pil.ImageOps.exif_transpose(image, in_place=True)
                return _as_rgb(image)
        except pil.UnidentifiedImageError as error:
            raise ValueError(f"{os.fspath(path)}: not an image that Pillow can read") from error
        except Exception as error:  # Pillow raises many types
            raise ValueError(f"{os.fspath(path)}: cannot be decoded ({error})") from error


def _check_size(size: tuple[int, int], most_pixels: int | None) -> None:
    width, height = size
    if min(size) < 1:
        raise ValueError(f"its size is {width} x {height}")
    if most_pixels is not None and width * height > most_pixels:
        raise ValueError(f"its size is {width} x {height}, more than {most_pixels} pixels; make it smaller")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ValueError(
            f"its size is {width} x {height}, and one side may be at most {MAX_ASPECT_RATIO} times the other; crop it"
        )


def _as_rgb(image: Any) -> np.ndarray:
    """Return the pixels of a Pillow image, whatever its mode."""
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # `convert` would clip the values at 255
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel, of an unknown range; convert it to 8 or 16 bits")
    if image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _import_pillow() -> Any:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageFile
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'multitrainer[finetune]'") from error
    return PIL
