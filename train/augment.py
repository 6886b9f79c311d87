"""What happens to training images, to a whole batch at once: one warp, one rectangle and one change of colours each.

Every draw comes from the generator that is handed in, so that a batch depends on its seed alone, in whichever process
it is made.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import TrainConfig

WHITE = 255
ASPECTS = (0.9, 1.1)  # of a crop, width to height
ERASED, ERASED_ASPECTS = (0.05, 0.25), (0.3, 3.3)  # of a rectangle that is painted white: share of the image, aspect
LIGHT, SATURATION = 0.3, 0.5  # by how much brightness and contrast, and saturation, of the second view may differ
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


def augment(images: Tensor, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """uint8 [B, 3, H, W] -> the same, each cropped, turned, mirrored and erased as `config` says."""
    return erase(warp(images, config, rng), config.erase, rng)


def warp(images: Tensor, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """Crop, rotation and mirroring in one bilinear step. A crop keeps the share uniform(`crop`, 1) of the image and is
    enlarged to its size, as in torchvision's RandomResizedCrop; white is put where a turned image ends."""
    if config.crop == 1 and not config.rotate and not config.flip:
        return images
    n = len(images)
    share, centre = np.ones((n, 2)), np.zeros((n, 2))  # of width and height; -1 to 1
    if config.crop < 1:
        area, aspect = rng.uniform(config.crop, 1, n), _log_uniform(rng, ASPECTS, n)
        share = np.minimum(np.sqrt(np.stack([area * aspect, area / aspect], 1)), 1)
        centre = rng.uniform(-1, 1, (n, 2)) * (1 - share)
    angle = np.radians(rng.uniform(-config.rotate, config.rotate, n))
    mirror = np.where(rng.random(n) < 0.5, -1, 1) if config.flip else np.ones(n)
    turn = np.array([[np.cos(angle) * mirror, -np.sin(angle)], [np.sin(angle) * mirror, np.cos(angle)]])  # [2, 2, n]
    theta = np.concatenate([share[:, :, None] * turn.transpose(2, 0, 1), centre[:, :, None]], 2)
    grid = F.affine_grid(torch.from_numpy(theta).float(), list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False).round_().to(torch.uint8)
    return seen.masked_fill_((grid.abs() > 1).any(3)[:, None], WHITE) if config.rotate else seen


def erase(images: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Paint one rectangle white in as many images as asked (Zhong et al. 2017, "Random Erasing Data Augmentation")."""
    if not probability:
        return images
    n, (height, width) = len(images), images.shape[-2:]
    area, aspect = rng.uniform(*ERASED, n) * height * width, _log_uniform(rng, ERASED_ASPECTS, n)
    chosen = rng.random(n) < probability

    def inside(size: int, wanted: np.ndarray) -> np.ndarray:
        side = np.clip(np.round(wanted), 1, size)
        first = np.floor(rng.random(n) * (size - side + 1))
        places = np.arange(size)
        return (places >= first[:, None]) & (places < (first + side)[:, None])

    rows, columns = inside(height, np.sqrt(area * aspect)), inside(width, np.sqrt(area / aspect))
    painted = (chosen[:, None] & rows)[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(torch.from_numpy(painted), WHITE)


def recolour(images: Tensor, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """uint8 [B, 3, H, W] -> the same in other light, and in other colours or none where `config` asks for that."""
    n = len(images)

    def factor(around: float) -> Tensor:
        return torch.from_numpy(rng.uniform(1 - around, 1 + around, n).astype(np.float32)).view(-1, 1, 1, 1)

    x = (images.float() / WHITE * factor(LIGHT)).clamp_(0, 1)
    x = _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), factor(LIGHT))
    if config.view_hue:
        x = _blend(x, _grey(x), factor(SATURATION))
        turn = rng.uniform(-config.view_hue, config.view_hue, n).astype(np.float32)
        x = turn_hue(x, torch.from_numpy(turn).view(-1, 1, 1))
    if config.view_grey:
        colourless = torch.from_numpy(rng.random(n) < config.view_grey).view(-1, 1, 1, 1)
        x = torch.where(colourless, _grey(x), x)
    return x.mul_(WHITE).round_().to(torch.uint8)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """RGB [B, 3, H, W] in [0, 1] with the hue of HSV turned by `turn` [B, 1, 1], 1 being the whole circle.

        f(n) = V - C max(0, min(k, 4 - k, 1)) with k = (n + 6 H) mod 6;    R, G, B = f(5), f(3), f(1)

    V is the largest of R, G and B, C its distance to the smallest.
    """
    r, g, b = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    by = chroma.clamp(min=1e-8)
    hue = torch.where(value == r, (g - b) / by, torch.where(value == g, (b - r) / by + 2, (r - g) / by + 4))
    k = (hue + 6 * turn)[:, None] + torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k = k.remainder_(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def _grey(x: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", x, _GREY)[:, None]


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(x), x, share.expand_as(x)).clamp_(0, 1)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], n: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]), n))
