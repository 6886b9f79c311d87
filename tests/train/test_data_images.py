import io

import numpy as np
import pytest
from PIL import Image

from hw import images as module
from hw.images import ImageError, decode_image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def two_halves(mode: str, left, right) -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def ends(pixels: np.ndarray) -> tuple[list[int], list[int]]:
    return pixels[4, 0].tolist(), pixels[4, -1].tolist()


@pytest.mark.parametrize("given_as", ["bytes", "path", "string"])
def test_paths_and_bytes_give_the_same_uint8_rgb_pixels(tmp_path, given_as):
    raw = encoded(two_halves("RGB", "red", "blue"))
    path = tmp_path / "a.png"
    path.write_bytes(raw)
    pixels = decode_image({"bytes": raw, "path": path, "string": str(path)}[given_as], 8)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, 3)
    assert ends(pixels) == ([255, 0, 0], [0, 0, 255])


def palette(transparent: bool) -> bytes:
    image = two_halves("RGB", "red", "blue").quantize(2)
    red = image.getpixel((0, 0))
    return (
        encoded(image, transparency=bytes(0 if i == red else 255 for i in range(2))) if transparent else encoded(image)
    )


def sixteen_bits() -> bytes:
    values = np.zeros((8, 8), np.uint16)
    values[:, 4:] = 0x8080
    return encoded(Image.fromarray(values))


@pytest.mark.parametrize(
    ("raw", "left", "right"),
    [
        (palette(transparent=False), [255, 0, 0], [0, 0, 255]),
        (palette(transparent=True), [255, 255, 255], [0, 0, 255]),
        (encoded(two_halves("1", 0, 1)), [0, 0, 0], [255, 255, 255]),
        (encoded(two_halves("L", 7, 200)), [7, 7, 7], [200, 200, 200]),
        (encoded(two_halves("LA", (0, 0), (9, 255))), [255, 255, 255], [9, 9, 9]),
        (encoded(two_halves("RGBA", (0, 0, 0, 0), (255, 0, 0, 51))), [255, 255, 255], [255, 204, 204]),
        (encoded(two_halves("RGB", (1, 2, 3), (9, 9, 9)), transparency=(1, 2, 3)), [255, 255, 255], [9, 9, 9]),
        (encoded(two_halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [255, 0, 0], [0, 0, 0]),
        (sixteen_bits(), [0, 0, 0], [128, 128, 128]),
        (b"P5 2 1 65535\n" + b"\x00\x00\xff\xff", None, None),
        (encoded(two_halves("I", 0, 65535), "TIFF"), [0, 0, 0], [255, 255, 255]),
        (encoded(two_halves("RGB", "red", "blue"), "WEBP", lossless=True), [255, 0, 0], [0, 0, 255]),
        (encoded(two_halves("RGB", "red", "blue"), "GIF"), [255, 0, 0], [0, 0, 255]),
        (encoded(two_halves("RGB", "red", "blue"), "BMP"), [255, 0, 0], [0, 0, 255]),
    ],
    ids=["P", "P-alpha", "1", "L", "LA", "RGBA", "tRNS", "CMYK", "16bit", "PGM16", "I32", "webp", "gif", "bmp"],
)
def test_every_mode_becomes_rgb_on_white(raw, left, right):
    pixels = decode_image(raw, 8)
    assert pixels.shape == (8, 8, 3)
    if left is None:  # 2 x 1 pixels: black beside white, with white bars above and below
        left, right = [0, 0, 0], [255, 255, 255]
    assert ends(pixels) == (left, right)


def test_a_cmyk_jpeg_keeps_its_colours():
    pixels = decode_image(encoded(two_halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "JPEG", quality=100), 8)
    assert np.abs(pixels[4, 0].astype(int) - [255, 0, 0]).max() < 8


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright, turned = two_halves("RGB", "red", "blue"), two_halves("RGB", "red", "blue")
    assert ends(decode_image(encoded(upright), 8)) == ([255, 0, 0], [0, 0, 255])
    assert ends(decode_image(encoded(turned, exif=exif), 8)) == ([0, 0, 255], [255, 0, 0])


def test_proportions_are_kept_with_white_bars_and_nothing_is_cut_off():
    wide = decode_image(encoded(Image.new("RGB", (40, 20), "green")), 8)
    assert (wide[:2] == 255).all()
    assert (wide[6:] == 255).all()
    assert (wide[2:6] == [0, 128, 0]).all()
    sliver = decode_image(encoded(Image.new("RGB", (500, 1), "black")), 8)
    assert (sliver == 0).all(axis=(1, 2)).sum() == 1


def test_shrinking_averages_areas():
    checkers = np.indices((16, 16)).sum(0) % 2 * 200
    pixels = decode_image(encoded(Image.fromarray(checkers.astype(np.uint8))), 4)
    assert (pixels == 100).all()


def test_only_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(raw, 4)[0, 0].tolist() == [255, 0, 0]


def test_a_picture_above_the_pixel_cap_is_refused_before_it_is_decoded(monkeypatch):
    raw = encoded(Image.new("L", (100, 11)))
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"100 x 11 pixels, the limit is .* megapixels; shrink it first"):
        decode_image(raw, 8)


@pytest.mark.parametrize("side", [8001, 9600, 14000], ids=["above ours", "Pillow warns", "Pillow refuses"])
def test_the_cap_is_64_megapixels_also_where_pillow_has_its_own(side):
    raw = encoded(Image.new("1", (side, side)))
    with pytest.raises(ImageError, match="the limit is 64 megapixels; shrink it first"):
        decode_image(raw, 8)


def broken_files() -> dict[str, bytes]:
    png = encoded(Image.effect_noise((64, 64), 90))
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "truncated png": png[: len(png) // 2],
        "truncated jpeg": encoded(Image.effect_noise((64, 64), 90), "JPEG")[:700],
        "bad checksum": png[:40] + bytes([png[40] ^ 255]) + png[41:],
        "header alone": png[:8],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "floating point": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
        "32 bit": encoded(Image.new("I", (4, 4), 70000), "TIFF"),
    }


@pytest.mark.parametrize("kind", broken_files())
def test_what_does_not_decode_is_refused_in_one_line_that_names_the_file_and_a_fix(tmp_path, kind):
    path = tmp_path / "picture.png"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(ImageError) as caught:
        decode_image(path, 8)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "use one of" in message or "save it" in message
    assert isinstance(caught.value, ValueError)


def test_any_damaged_byte_gives_pixels_or_an_image_error_and_nothing_else():
    raw = bytearray(encoded(two_halves("RGB", "red", "blue"), "GIF"))
    for position in range(len(raw)):
        damaged = bytes(raw[:position]) + bytes([raw[position] ^ 0x55]) + bytes(raw[position + 1 :])
        try:
            assert decode_image(damaged, 4).shape == (4, 4, 3)
        except ImageError as error:
            assert f"the picture of {len(raw)} bytes" in str(error)  # noqa: PT017  (either outcome is right)


def test_formats_that_start_other_programs_are_not_even_tried():
    with pytest.raises(ImageError, match="not a picture in a known format; use one of PNG, JPEG"):
        decode_image(encoded(Image.new("RGB", (8, 8), "red"), "EPS"), 8)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(ImageError, match="there is no such file; check the path") as caught:
            decode_image(path, 8)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_size_below_one_pixel_is_refused():
    with pytest.raises(ValueError, match="image_size is 0 px"):
        decode_image(b"", 0)
