"""Several views of one picture, whose embeddings are averaged (test-time augmentation)."""

from collections.abc import Iterator

import torchvision.transforms.v2.functional as tf
from torch import Tensor
from torchvision.transforms import InterpolationMode

_ZOOMED = ((0.85, 0.0), (0.85, 12.0), (0.85, -12.0), (0.7, 0.0))  # (share of the side that is kept, degrees turned)
VIEWS = 2 * (1 + len(_ZOOMED))


def views(images: Tensor) -> Iterator[Tensor]:
    """uint8 [B, 3, H, W] -> ten of the same shape: whole, enlarged, and enlarged and turned; each of them mirrored
    too. White is put where a turned picture ends."""
    height, width = images.shape[-2:]
    yield from (images, tf.horizontal_flip(images))
    for share, degrees in _ZOOMED:
        part = tf.center_crop(images, [round(share * height), round(share * width)])
        part = tf.resize(part, [height, width], antialias=True)
        if degrees:
            part = tf.rotate(part, degrees, interpolation=InterpolationMode.BILINEAR, fill=[255.0])
        yield from (part, tf.horizontal_flip(part))
