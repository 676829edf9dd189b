"""Reading image files, whatever they hold, and making the input of a network from them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from multiprocessing.pool import ThreadPool

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image, ImageFile

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
            ((0, 5), "0 < size <= resize <= 8192, got size=0"),
            ((6, 5), "0 < size <= resize <= 8192, got size=6 and resize=5"),
            ((5, 5, (1, 2)), "mean: expected three finite numbers"),
            ((5, 5, (0, 0, float("nan"))), "mean: expected three finite numbers"),
            ((5, 5, (0, 0, 0), (1, 0, 1)), "std: expected numbers above 0"),
        ],
    )
    def test_that_makes_no_input_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ImageTransform(*arguments)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": True}, "size: expected a whole number, got True"),
            ({"size": 3.5}, "size: expected a whole number, got 3.5"),
            ({"resize": "32"}, "resize: expected a whole number, got '32'"),
            ({"resize": 32.0}, "resize: expected a whole number, got 32.0"),
            ({"resize": 10**9}, "expected 0 < size <= resize <= 8192, got size=5 and resize=1000000000"),
            ({"mean": "123"}, "mean: expected a list of numbers, got '123'"),
            ({"mean": ["1", 2, 3]}, r"mean: expected a list of numbers, got \['1', 2, 3\]"),
            ({"std": [True, 1, 1]}, "std: expected a list of numbers"),
            ({"std": [1, 1, 10**400]}, "std: expected three finite numbers"),
            ({"mean": None}, "mean: expected a list of numbers, got None"),
        ],
        ids=str,
    )
    def test_a_record_is_not_coerced(self, change, message):
        record = {"size": 5, "resize": 6, "mean": [0, 0, 0], "std": [1, 1, 1]}
        assert ImageTransform.from_dict(record) == ImageTransform(5, 6, (0, 0, 0), (1, 1, 1))
        with pytest.raises((TypeError, ValueError), match=message):
            ImageTransform.from_dict({**record, **change})

    @pytest.mark.parametrize("record", [{}, {"size": 5}, {"size": 5, "resize": 6, "mean": 7, "std": None}, [], None])
    def test_a_record_of_something_else_is_refused(self, record):
        with pytest.raises((LookupError, TypeError, ValueError)):
            ImageTransform.from_dict(record)

    @pytest.mark.parametrize("array", [mx.nd.zeros((8, 8, 3)), mx.nd.zeros((3, 8, 8), dtype="uint8")])
    def test_what_is_no_image_is_refused(self, array):
        with pytest.raises(ValueError, match=r"expected an image of height x width x 3 and type uint8, got \dx8x"):
            ImageTransform(5, 5)(array)


def corners(path):
    """Return the red value of each corner, in reading order."""
    return read_image(path).asnumpy()[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist()


GREY = pixels_of(6, 5)[..., 0]
COLOURS = np.where(pixels_of(6, 5) > 127, 255, 0).astype(np.uint8)  # of which a palette holds every one


class TestReadImage:
    def test_reads_pixels_as_they_are(self, tmp_path):
        for name in ("a.png", "b.bmp", "c.tif"):
            Image.fromarray(pixels_of(20, 30)).save(str(tmp_path / name))
            image = read_image(tmp_path / name)
            assert (image.shape, image.dtype, image.context) == ((20, 30, 3), np.uint8, mx.cpu())
            np.testing.assert_array_equal(image.asnumpy(), pixels_of(20, 30))

    @pytest.mark.parametrize("extension", images.EXTENSIONS)
    def test_reads_every_extension(self, tmp_path, extension):
        Image.new("RGB", (9, 7), (200, 100, 50)).save(str(tmp_path / f"a{extension}"))
        image = read_image(tmp_path / f"a{extension}").asnumpy()
        assert image.shape == (7, 9, 3)
        np.testing.assert_allclose(image[3, 4], (200, 100, 50), atol=4)

    @pytest.mark.parametrize("contents", ["GIF", "PNG", "JPEG", "TIFF", "WEBP", "BMP"])
    def test_does_not_look_at_the_name(self, tmp_path, contents):
        Image.new("RGB", (9, 7), (200, 100, 50)).save(str(tmp_path / "a.jpg"), format=contents)
        np.testing.assert_allclose(read_image(tmp_path / "a.jpg").asnumpy()[3, 4], (200, 100, 50), atol=4)

    @pytest.mark.parametrize(
        ("name", "make", "expected"),
        [
            ("grey.png", lambda: Image.fromarray(GREY), GREY[..., None]),
            ("grey.gif", lambda: Image.fromarray(GREY), GREY[..., None]),
            ("alpha.png", lambda: Image.fromarray(np.stack([GREY, 255 - GREY], -1), "LA"), GREY[..., None]),
            ("alpha_rgb.png", lambda: Image.fromarray(np.dstack([COLOURS, GREY])), COLOURS),
            ("bits.png", lambda: Image.fromarray(COLOURS[..., 0]).convert("1"), COLOURS[..., :1]),
            ("palette.png", lambda: Image.fromarray(COLOURS).quantize(8), COLOURS),
            ("cmyk.tif", lambda: Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
            ("16.png", lambda: Image.fromarray(GREY.astype(np.uint16) * 256 + 99), GREY[..., None]),
            ("16.tif", lambda: Image.fromarray(GREY.astype(np.uint16) * 256 + 99), GREY[..., None]),
            ("16big.tif", lambda: Image.fromarray((GREY.astype(np.uint16) * 256 + 99).astype(">u2")), GREY[..., None]),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_turns_every_mode_into_rgb(self, tmp_path, name, make, expected):
        make().save(str(tmp_path / name))
        np.testing.assert_array_equal(read_image(tmp_path / name).asnumpy(), np.broadcast_to(expected, (6, 5, 3)))

    @pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255, 255])])
    def test_drops_the_transparency_of_a_palette_without_a_warning(self, tmp_path, transparency):
        image = Image.fromarray(COLOURS).quantize(8)
        image.save(str(tmp_path / "a.png"), transparency=transparency)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(read_image(tmp_path / "a.png").asnumpy(), COLOURS)

    @pytest.mark.parametrize("kind", [np.int32, np.float32])
    def test_refuses_32_bits_whose_range_it_cannot_know(self, tmp_path, kind):
        Image.fromarray(GREY.astype(kind)).save(str(tmp_path / "a.tif"))
        with pytest.raises(ValueError, match=r"a\.tif: cannot be decoded \(it has 32 bits a pixel.*convert it to 8"):
            read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
    def test_reads_the_first_of_several_frames(self, tmp_path, name):
        frames = [Image.new("RGB", (9, 7), (value,) * 3) for value in (200, 40, 90)]
        frames[0].save(str(tmp_path / name), save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_image(tmp_path / name).asnumpy(), np.full((7, 9, 3), 200), atol=4)

    # As the EXIF standard says where row 0 and column 0 of the picture are.
    orientations = pytest.mark.parametrize(
        ("orientation", "expected"),
        [
            (1, [10, 90, 170, 250]),
            (2, [90, 10, 250, 170]),
            (3, [250, 170, 90, 10]),
            (4, [170, 250, 10, 90]),
            (5, [10, 170, 90, 250]),
            (6, [170, 10, 250, 90]),
            (7, [250, 90, 170, 10]),
            (8, [90, 250, 10, 170]),
            (0, [10, 90, 170, 250]),
            (99, [10, 90, 170, 250]),
        ],
    )

    @orientations
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
    def test_applies_the_orientation(self, tmp_path, name, orientation, expected):
        quarters = np.kron([[10, 90], [170, 250]], np.ones((16, 32))).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.stack([quarters] * 3, -1)).save(str(tmp_path / name), exif=exif)
        np.testing.assert_allclose(corners(tmp_path / name), expected, atol=3)
        assert read_image(tmp_path / name).shape[:2] == ((64, 32) if orientation in (5, 6, 7, 8) else (32, 64))

    def test_refuses_a_decompression_bomb(self, tmp_path, monkeypatch):
        Image.new("1", (80, 50)).save(str(tmp_path / "a.png"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
        assert read_image(tmp_path / "a.png").shape == (50, 80, 3)
        for most in (3999, 1000):  # Pillow warns of the one and raises for the other
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
            with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
                read_image(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert read_image(tmp_path / "a.png").shape == (50, 80, 3)

    @pytest.mark.parametrize("size", [(2, 201), (201, 2)])
    def test_refuses_what_is_too_long_to_resize(self, tmp_path, size):
        Image.new("L", size).save(str(tmp_path / "a.png"))
        with pytest.raises(ValueError, match="one side may be at most 100 times the other; crop it"):
            read_image(tmp_path / "a.png")
        Image.new("L", (2, 200)).save(str(tmp_path / "a.png"))
        assert ImageTransform(32, 32)(tmp_path / "a.png").shape == (3, 32, 32)

    def test_names_what_is_no_image(self, tmp_path):
        (tmp_path / "a.jpg").write_text("no image")
        for read in (read_image, check_image):
            with pytest.raises(ValueError, match=r"a\.jpg: not an image that Pillow can read"):
                read(tmp_path / "a.jpg")

    def test_a_missing_file_is_an_error_of_the_system(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
            read_image(tmp_path / "nowhere.jpg")

    @pytest.mark.slow
    def test_says_what_to_install_without_pillow(self):
        code = "import sys; sys.modules['PIL'] = None; from multitrainer import images; images.read_image('a.jpg')"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert b"ImportError: reading images needs Pillow: pip install 'multitrainer[finetune]'" in done.stderr


SAVED = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"subsampling": 0, "restart_marker_blocks": 2}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("TIFF", {}),
    ("BMP", {}),
]


class TestATruncatedFile:
    @pytest.fixture(params=SAVED, ids=lambda saved: "".join([saved[0], *saved[1]]))
    def saved(self, request):
        file = io.BytesIO()
        smooth = Image.fromarray(pixels_of(4, 6)).resize((60, 40))
        smooth.save(file, format=request.param[0], **request.param[1])
        return file.getvalue()

    @pytest.mark.parametrize("tolerant", [False, True])
    def test_is_refused_by_both_wherever_it_is_cut(self, saved, tolerant, tmp_path, monkeypatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
        path = tmp_path / "a.jpg"
        path.write_bytes(saved)
        check_image(path)
        whole = read_image(path).asnumpy()
        # Some files end in bytes that hold no pixels.
        for end in [*range(0, len(saved) - 16, len(saved) // 23), *range(len(saved) - 16, len(saved))]:
            path.write_bytes(saved[:end])
            outcomes = [outcome_of(read, path) for read in (check_image, read_image)]
            assert outcomes[0] == outcomes[1]
            assert outcomes[1] == "refused" or np.array_equal(read_image(path).asnumpy(), whole)
            assert outcomes[1] == "refused" or end > 0.9 * len(saved)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant

    def test_is_refused_in_every_thread_and_the_setting_comes_back(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        Image.fromarray(pixels_of(60, 80)).save(str(tmp_path / "a.jpg"))
        whole = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
        paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"] * 100
        with ThreadPool(4) as pool:
            outcomes = pool.map(lambda path: outcome_of(check_image, path), paths)
        assert outcomes == ["read", "refused"] * 100
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def outcome_of(read, path):
    try:
        read(path)
    except ValueError:
        return "refused"
    return "read"


def test_the_extensions_are_in_lower_case():
    assert all(extension == extension.lower() and extension.startswith(".") for extension in images.EXTENSIONS)
