"""Small folders of images for the pages about detection and segmentation."""

import numpy as np
from PIL import Image

COLORS = {"apple": (220, 30, 30), "pear": (30, 200, 30)}
_OBJECT = """  <object><name>{name}</name><difficult>0</difficult>
    <bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>
  </object>
"""


def _picture(rng, side=96):
    """Return an image of noise with a square of each color, the squares, and the mask of their numbers from 1."""
    image = rng.randint(90, 130, (side, side, 3)).astype("uint8")
    mask, squares = np.zeros((side, side), "uint8"), {}
    for number, (name, color) in enumerate(COLORS.items(), 1):
        left, top = rng.randint(0, side // 4) + (number - 1) * side // 2, rng.randint(0, side // 2)
        size = rng.randint(side // 5, side // 4)
        image[top : top + size, left : left + size] = color
        mask[top : top + size, left : left + size] = number
        squares[name] = (left, top, left + size, top + size)
    return Image.fromarray(image), squares, mask


def write_voc_folder(folder, train=8, val=4):
    """Write images with an apple and a pear each; ``empty`` is in train.txt and has an object of another class."""
    rng = np.random.RandomState(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = [f"{number:04d}" for number in range(1, train + val + 1)]
    for name in [*names, "empty"]:
        image, squares, _ = _picture(rng)
        image.save(folder / "JPEGImages" / f"{name}.jpg")
        objects = "".join(
            _OBJECT.format(name="Apple" if each == "apple" else each, left=x0 + 1, top=y0 + 1, right=x1, bottom=y1)
            for each, (x0, y0, x1, y1) in squares.items()
        )
        if name == "empty":
            objects = _OBJECT.format(name="knife", left=1, top=1, right=9, bottom=9)
        size = f"<size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>\n  {size}\n{objects}</annotation>\n")
    lists = {"train": [*names[:train], "empty"], "val": names[train:]}
    for split, members in lists.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(members) + "\n")


def write_mask_folder(folder, train=6, val=2):
    """Write images and masks of palette colors: 0 is the background, 255 the border around each object."""
    rng = np.random.RandomState(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            image, squares, mask = _picture(rng)
            for x0, y0, x1, y1 in squares.values():
                mask[y0, x0:x1] = mask[y1 - 1, x0:x1] = 255
            image.save(folder / split / "images" / f"{number:04d}.jpg")
            palette = Image.fromarray(mask, mode="P")
            palette.putpalette([0, 0, 0, 220, 30, 30, 30, 200, 30] + [128] * (256 * 3 - 9))
            palette.save(folder / split / "masks" / f"{number:04d}.png")
