"""A user's own picture, whatever its format, as the pixels that the model takes."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hw.errors import UserError

MAX_PIXELS = 64_000_000

# Pictures that people have. Pillow can open more, EPS among them, which starts another program.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")


class ImageError(UserError):
    """A picture that cannot be decoded; the message names it, says what is wrong and what helps."""


def decode_image(source: str | os.PathLike[str] | bytes, image_size: int) -> np.ndarray:
    """uint8 [image_size, image_size, 3] RGB from the path or the bytes of a picture.

    EXIF orientation is applied, transparency lies on white, 16 bits become 8, of an animation the first frame counts.
    The picture keeps its proportions and gets white bars on its short side, so that nothing is cut off or stretched.
    Shrinking averages areas, growing is bicubic.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size} px; give 1 or more")
    name = f"the picture of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ImageError(f"{name}: there is no such file; check the path")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_big(name, f"{width} x {height} pixels")
            return np.array(_square(_rgb(ImageOps.exif_transpose(image), name), image_size))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_big(name, "too many pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a known format; use one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders let struct.error, SyntaxError, EOFError and more through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: does not decode ({reason}); save it again as PNG or JPEG") from error


def _too_big(name: str, size: str) -> ImageError:
    return ImageError(f"{name}: has {size}, the limit is {MAX_PIXELS // 1_000_000} megapixels; shrink it first")


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode to RGB on white."""
    if image.mode == "F":
        raise ImageError(f"{name}: holds floating point numbers of unknown range; save it as an 8 bit PNG")
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255 instead of scaling them
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: holds values from {values.min()} to {values.max()}; save it as an 8 bit PNG")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    if image.size != (width, height):
        image = image.resize((width, height), method)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas
