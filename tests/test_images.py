"""Reading image files, whatever they hold, and making the input of a network from them."""

from __future__ import annotations

import json
import pickle

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from multitrainer import images
from multitrainer.images import ImageTransform, check_image, read_image


def pixels_of(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


class TestImageTransform:
    @pytest.mark.parametrize("size", [(32, 32), (64, 73), (224, 256), (299, 342)])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 90), (100, 1), (36, 40), (375, 500), (256, 300)])
    def test_gives_the_bits_of_gluoncv(self, size, shape):
        preset = pytest.importorskip("gluoncv.data.transforms.presets.imagenet")
        pixels = mx.nd.array(pixels_of(*shape), dtype="uint8")
        mine = ImageTransform(*size)(pixels)
        theirs = preset.transform_eval(pixels, resize_short=size[1], crop_size=size[0])[0]
        assert (mine.shape, mine.dtype) == ((3, size[0], size[0]), np.float32)
        np.testing.assert_array_equal(mine.asnumpy(), theirs.asnumpy())

    def test_takes_a_file_too(self, tmp_path):
        Image.fromarray(pixels_of(40, 50)).save(str(tmp_path / "a.png"))
        transform = ImageTransform(32, 32)
        expected = transform(read_image(tmp_path / "a.png")).asnumpy()
        for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
            np.testing.assert_array_equal(transform(path).asnumpy(), expected)

    def test_survives_json_and_pickle(self):
        transform = ImageTransform(96, 110, (0.1, 0.2, 0.3), (1, 0.5, 0.25))
        assert transform.as_dict() == {"size": 96, "resize": 110, "mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25]}
        assert ImageTransform.from_dict(json.loads(json.dumps(transform.as_dict()))) == transform
        assert pickle.loads(pickle.dumps(transform)) == transform

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 5), "0 < size <= resize, got size=0"),
            ((6, 5), "0 < size <= resize, got size=6 and resize=5"),
            ((5, 5, (1, 2)), "mean: expected three finite numbers"),
            ((5, 5, (0, 0, float("nan"))), "mean: expected three finite numbers"),
            ((5, 5, (0, 0, 0), (1, 0, 1)), "std: expected numbers above 0"),
        ],
    )
    def test_that_makes_no_input_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ImageTransform(*arguments)

    @pytest.mark.parametrize("record", [{}, {"size": 5}, {"size": 5, "resize": 6, "mean": 7, "std": None}])
    def test_a_record_of_something_else_is_refused(self, record):
        with pytest.raises((LookupError, TypeError, ValueError)):
            ImageTransform.from_dict(record)

    @pytest.mark.parametrize("array", [mx.nd.zeros((8, 8, 3)), mx.nd.zeros((3, 8, 8), dtype="uint8")])
    def test_what_is_no_image_is_refused(self, array):
        with pytest.raises(ValueError, match=r"expected an image of height x width x 3 and type uint8, got \dx8x"):
            ImageTransform(5, 5)(array)


def test_pixels_of_a_file_are_read_as_they_are(tmp_path):
    pixels = pixels_of(20, 30)
    Image.fromarray(pixels).save(str(tmp_path / "a.png"))
    image = read_image(tmp_path / "a.png")
    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
    np.testing.assert_array_equal(image.asnumpy(), pixels)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    for read in (read_image, check_image):
        with pytest.raises(ValueError, match=r"a\.jpg: not an image that Pillow can read"):
            read(tmp_path / "a.jpg")


def test_the_extensions_are_in_lower_case():
    assert all(extension == extension.lower() and extension.startswith(".") for extension in images.EXTENSIONS)
