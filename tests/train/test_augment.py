"""Augmentation of whole batches: the same as torchvision's of each image, from the generator's draws alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tf

from train.augment import LIGHT, SATURATION, augment, erase, recolour, turn_hue, warp
from train.config import TrainConfig, pretrain_recipe


def pictures(n: int, size: int = 32) -> torch.Tensor:
    """Random and smooth, uint8 [n, 3, size, size]."""
    coarse = torch.rand(n, 3, 5, 5)
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_batch_depends_on_the_generator_alone():
    images, config = pictures(6), pretrain_recipe()
    before = torch.get_rng_state()
    first, again = (augment(images, config, generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, config, generator(4)))
    assert torch.equal(before, torch.get_rng_state())
    assert first.dtype == torch.uint8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mirroring_alone_moves_pixels_and_changes_none(layout):
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=layout)
    seen = warp(images, TrainConfig(crop=1, flip=True), generator())
    kept = [torch.equal(a, b) for a, b in zip(images, seen, strict=True)]
    turned = [torch.equal(a.flip(-1), b) for a, b in zip(images, seen, strict=True)]
    assert all(a != b for a, b in zip(kept, turned, strict=True))
    assert 10 < sum(kept) < 30


def test_a_crop_shows_the_share_that_was_asked_for_and_nothing_outside_of_the_image():
    ramp = torch.arange(64, dtype=torch.uint8)
    columns = ramp.expand(3, 64, 64)
    rows = columns.transpose(1, 2)
    images = torch.stack([torch.stack([columns[0], rows[0], columns[0] * 2])] * 500)
    seen = warp(images, TrainConfig(crop=0.35), generator()).float()
    width = (seen[:, 0, 32, 62] - seen[:, 0, 32, 1]) / 61  # 1 where all columns are shown
    height = (seen[:, 1, 62, 32] - seen[:, 1, 1, 32]) / 61
    area = width * height
    assert area.min() > 0.3
    assert area.max() < 1.05
    assert area.mean() == pytest.approx(0.67, abs=0.03)
    assert seen[:, :2].max() <= 63  # no white
    assert width.std() > 0.05
    first = seen[:, 0, 32, 1] / (64 * (1 - width)).clamp(min=3)
    assert first.min() < 0.15
    assert first.max() > 0.85  # from the left edge to the right


def test_a_turned_image_has_white_corners():
    black = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    seen = warp(black, TrainConfig(crop=1, rotate=30.0), generator())
    corners = seen[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.float().mean((1, 2)) > 100).float().mean() > 0.8
    assert (seen[:, :, 10:22, 10:22] == 0).all()


def test_a_turn_is_torchvisions_by_the_same_angle():
    images, angle = pictures(1), 20.0

    class Fixed:
        def uniform(self, low, high, n):
            return np.full(n, angle)

    seen = warp(images, TrainConfig(crop=1, rotate=angle), Fixed())
    for turn, told in ((angle, True), (-angle, False)):
        other = tf.rotate(images, turn, interpolation=tf.InterpolationMode.BILINEAR)
        inner = (seen.float() - other.float())[..., 6:-6, 6:-6].abs()  # corners are filled in another way
        assert (inner.max() <= 1) == told


def test_erasing_paints_a_rectangle_white_in_as_many_images_as_asked():
    black = torch.zeros(300, 3, 64, 64, dtype=torch.uint8)
    for share in (0.0, 0.5, 1.0):
        painted = (erase(black, share, generator()) == 255)[:, 0].numpy()
        parts = painted.mean((1, 2))
        assert (parts > 0).mean() == pytest.approx(share, abs=0.1 * (0 < share < 1))
        assert all(part == 0 or 0.03 < part < 0.27 for part in parts)
        for shown in painted[parts > 0]:
            rows, columns = shown.any(1), shown.any(0)
            assert shown.sum() == rows.sum() * columns.sum()
            assert (np.diff(np.flatnonzero(rows)) == 1).all()


def test_hues_turn_as_torchvisions_do():
    images = torch.cat(
        [
            torch.rand(4, 3, 9, 9),
            torch.rand(1, 1, 9, 9).expand(1, 3, 9, 9),
            torch.eye(3)[None, :, :, None].expand(1, 3, 3, 9).repeat(1, 1, 3, 1),
        ]
    )
    for turn in (-0.5, -0.2, 0.0, 0.1, 0.5):
        seen = turn_hue(images, torch.full((len(images), 1, 1), turn))
        torch.testing.assert_close(seen, tf.adjust_hue(images, turn), atol=1e-5, rtol=0)


def test_light_and_colours_change_as_torchvisions_do():
    n, config = 12, TrainConfig(view_hue=0.5, view_grey=0.4)
    images, rng = pictures(n), generator(5)
    seen = recolour(images, config, generator(5))
    factors = [rng.uniform(1 - around, 1 + around, n) for around in (LIGHT, LIGHT, SATURATION)]
    hues, colourless = rng.uniform(-0.5, 0.5, n), rng.random(n) < 0.4
    assert 0 < colourless.sum() < n
    for i in range(n):
        x = images[i].float() / 255
        x = tf.adjust_brightness(x, factors[0][i])
        x = tf.adjust_contrast(x, factors[1][i])
        x = tf.adjust_hue(tf.adjust_saturation(x, factors[2][i]), hues[i])
        x = tf.rgb_to_grayscale(x, 3) if colourless[i] else x
        assert (seen[i].float() - 255 * x).abs().max() < 1.5, i


def test_without_hue_colours_keep_their_saturation():
    grey = torch.full((8, 3, 4, 4), 100, dtype=torch.uint8)
    seen = recolour(grey, TrainConfig(), generator())
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert len(seen[:, 0, 0, 0].unique()) > 4
