from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")

from multitrainer.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from multitrainer_cli.data import batches
from multitrainer_cli.data.split import open_folder
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks


def arrays(loader):
    return [(x.asnumpy(), y.asnumpy()) for x, y in loader]


def two_epochs(root, size, workers, seed=3, augment=True):
    train, val = batches.make_loaders(open_folder(root, 0), size, 4, workers, seed, augment=augment)
    return [arrays(train) for _ in range(2)], arrays(val)


@pytest.mark.parametrize("size", [32, 64])
def test_batches_have_the_size_of_the_network_and_a_remainder_starts_the_next_epoch(tmp_path, size):
    epochs, val = two_epochs(write_images(tmp_path / "d", 4, size=(60, 44)), size, workers=0)
    # 9 images to train on: 2 batches of 4, and 1 + 9 images for the second epoch.
    assert [[x.shape for x, _ in epoch] for epoch in epochs] == [[(4, 3, size, size)] * 2] * 2
    assert sum(len(y) for _, y in val) == 3
    assert all(np.isfinite(x).all() and abs(x).max() < 10 for x, _ in val + epochs[0])


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    root = write_images(tmp_path / "d", 4)
    alone, helped, other = (two_epochs(root, 48, *how) for how in ((0,), (2,), (0, 4)))
    for one, same in zip(alone[0][0] + alone[0][1] + alone[1], helped[0][0] + helped[0][1] + helped[1]):
        np.testing.assert_array_equal(one[0], same[0])
        np.testing.assert_array_equal(one[1], same[1])
    assert any((one[0] != same[0]).any() for one, same in zip(alone[0][0], other[0][0]))


def test_every_epoch_has_an_order_of_its_own(tmp_path):
    (first, second), _ = two_epochs(write_images(tmp_path / "d", 5, classes=("blue", "red")), 48, workers=0)
    assert not np.array_equal(first[0][0], second[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_without_augmentation_an_image_is_the_same_in_every_epoch(tmp_path, size):
    def distinct(epochs):
        return len({x.tobytes() for epoch in epochs for batch, _ in epoch for x in batch})

    root = write_images(tmp_path / "d", 5)  # 12 to train on: 3 batches of 4
    plain, _ = two_epochs(root, size, workers=0, augment=False)
    assert distinct(plain) == 12
    augmented, _ = two_epochs(root, size, workers=0)
    assert distinct(augmented) == 24


@pytest.mark.slow
def test_validation_is_neither_shuffled_nor_augmented(tmp_path):
    root = write_images(tmp_path / "d", 10)
    (_, one), (_, other) = (two_epochs(root, 32, 0, seed) for seed in (3, 4))
    for first, second in zip(one, other):
        np.testing.assert_array_equal(first[0], second[0])
    assert np.concatenate([label for _, label in one]).tolist() == [0, 0, 1, 1, 2, 2]


def test_images_are_normalized_as_gluoncv_does(tmp_path):
    root = write_images(tmp_path / "d", 2, size=(32, 32))
    split = open_folder(root, 0)
    batches.make_loaders(split, 32, 1, 0, 0)
    image, _ = split.val[0, 0]
    pixels = read_image(split.val.items[0][0]).asnumpy().transpose(2, 0, 1) / 255
    mean, std = np.reshape(IMAGENET_MEAN, (3, 1, 1)), np.reshape(IMAGENET_STD, (3, 1, 1))
    np.testing.assert_allclose(image.asnumpy(), (pixels - mean) / std, atol=1e-5)


def test_a_larger_image_is_cut_to_its_centre(tmp_path):
    root = write_images(tmp_path / "d", 2, size=(128, 64))
    split = open_folder(root, 0)
    batches.make_loaders(split, 56, 1, 0, 0)
    whole = split.val[0, 0][0].asnumpy()
    # 64 is 56 / 0.875: the shorter side stays as it is, and 56 pixels of the centre are left.
    centre = read_image(split.val.items[0][0])[4:60, 36:92].asnumpy().transpose(2, 0, 1) / 255
    mean, std = np.reshape(IMAGENET_MEAN, (3, 1, 1)), np.reshape(IMAGENET_STD, (3, 1, 1))
    np.testing.assert_allclose(whole, (centre - mean) / std, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_named_too(tmp_path, workers):
    root = write_images(tmp_path / "d", 4)
    split = open_folder(root, 0)
    (root / "red" / "001.png").write_bytes(b"gone")
    train, val = batches.make_loaders(split, 32, 2, workers, 0)
    # 9 images to train on by two: one is left over for the second epoch.
    with pytest.raises(UserError, match=r"001\.png"):
        list(itertools.chain(train, train, val))


@pytest.mark.slow
def test_the_ranks_together_see_what_one_would(tmp_path):
    split = open_folder(write_images(tmp_path / "d", 5), 0)
    whole = arrays(batches.make_loaders(split, 32, 4, 0, seed=3)[0])
    parts = []
    for rank in range(2):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, 2
        parts.append(arrays(batches.make_loaders(split, 32, 2, 0, seed=3, ranks=ranks)[0]))
    assert len(whole) == len(parts[0]) == len(parts[1]) == 3
    for (x, y), (even, even_y), (odd, odd_y) in zip(whole, *parts):
        np.testing.assert_array_equal(x[::2], even)
        np.testing.assert_array_equal(x[1::2], odd)
        assert (y[::2].tolist(), y[1::2].tolist()) == (even_y.tolist(), odd_y.tolist())


def test_in_order_every_image_comes_once_as_its_loader_preprocesses_it(tmp_path):
    split = open_folder(write_images(tmp_path / "d", 5), 0)
    train, _ = batches.make_loaders(split, 32, 4, 0, seed=3, augment=False)
    in_order = arrays(batches.make_loader_in_order(split.train, 5, 0))
    assert [len(y) for _, y in in_order] == [5, 5, 2]
    assert np.concatenate([y for _, y in in_order]).tolist() == [label for _, label in split.train.items]
    loaded, found = ([x.tobytes() for batch, _ in part for x in batch] for part in (arrays(train), in_order))
    assert sorted(loaded) == sorted(found)


def test_a_sampler_gives_every_position_a_seed_of_its_own():
    drawn = list(batches.SeededSampler(50, Ranks(), 7, shuffled=True))
    generator = random.Random(7)
    order = list(range(50))
    generator.shuffle(order)
    assert drawn == [(position, generator.getrandbits(31)) for position in order]
    assert [position for position, _ in batches.SeededSampler(50, Ranks(), 7, shuffled=False)] == list(range(50))
