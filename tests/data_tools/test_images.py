"""Any picture file becomes the same upright RGB that a person sees, or a reason why not."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools import colours, images
from data_tools.sources import Unusable

FORMATS = {  # mode → a format that keeps it
    "1": "png",
    "L": "png",
    "LA": "png",
    "P": "png",
    "RGB": "png",
    "RGBA": "png",
    "CMYK": "tiff",
    "I;16": "png",
    "I": "tiff",
    "F": "tiff",
}


def file_of(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """40x20, black on the left, white on the right: representable in every mode."""
    half = np.zeros((20, 40), dtype=np.uint8)
    half[:, 20:] = 255
    if mode == "I;16":
        return Image.fromarray(half.astype(np.uint16) * 257)
    return Image.fromarray(half).convert(mode if mode == "1" else "RGB").convert(mode)


def rgb(data: bytes, **options: Any) -> np.ndarray:
    image = images.decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", FORMATS)
def test_every_mode_shows_the_same_picture(mode: str) -> None:
    image = quarters(mode)
    assert image.mode == mode
    data = file_of(image, FORMATS[mode])
    assert Image.open(io.BytesIO(data)).mode == mode
    pixels = rgb(data)
    assert pixels.shape == (20, 40, 3)
    assert pixels[:, :18].max() <= 2
    assert pixels[:, 22:].min() >= 253


def test_ycbcr_shows_the_same_picture() -> None:
    """In memory: Pillow 12 does not read the YCbCr files that it writes."""
    pixels = np.asarray(colours.to_rgb(quarters("YCbCr"), alpha="white"))
    assert pixels[:, :18].max() <= 2
    assert pixels[:, 22:].min() >= 253


def test_a_16_bit_grey_keeps_its_brightness() -> None:
    """Pillow's own convert would clip everything above 255 of 65535 to white."""
    data = file_of(Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16)))
    assert (rgb(data) == 128).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),  # to be shown turned by 90 degrees clockwise
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(rgb(file_of(stored, exif=exif)), upright)


def see_through() -> Image.Image:
    """Red, opaque on the left, clear on the right, half in the middle."""
    pixels = np.zeros((4, 6, 4), dtype=np.uint8)
    pixels[..., 0], pixels[:, :2, 3], pixels[:, 2:4, 3] = 200, 255, 128
    return Image.fromarray(pixels)


def test_transparency_is_laid_on_white() -> None:
    pixels = rgb(file_of(see_through()))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 5].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 3].astype(int) - [227, 127, 127]).max() <= 1


def test_alpha_can_be_dropped_as_the_reference_does() -> None:
    data = file_of(see_through())
    assert np.array_equal(rgb(data, alpha="drop"), np.asarray(see_through().convert("RGB")))
    assert rgb(data, alpha="drop")[0, 5].tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_one_colour_marked_transparent_is_laid_on_white(mode: str) -> None:
    image = Image.fromarray(np.array([[10, 10, 90, 90]] * 4, dtype=np.uint8)).convert(mode)
    marked = {"P": 10, "L": 10, "RGB": (10, 10, 10)}[mode]
    pixels = rgb(file_of(image, transparency=marked))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == 90).all()
    assert (rgb(file_of(image, transparency=marked), alpha="drop")[:, :2] == 10).all()


def test_grey_with_alpha_is_laid_on_white() -> None:
    pixels = np.zeros((4, 4, 2), dtype=np.uint8)
    pixels[:, :2, 1] = 255
    assert rgb(file_of(Image.fromarray(pixels)))[0].tolist() == [[0] * 3] * 2 + [[255] * 3] * 2


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (rgb(data) == (255, 0, 0)).all()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello", "not a picture"),
        (b"\0" * 1000, "not a picture"),
        (file_of(NOISE, "png")[:600], "broken picture"),
        (file_of(NOISE, "jpeg")[:600], "broken picture"),
        (file_of(NOISE, "webp")[:300], "broken picture|not a picture"),
        (file_of(NOISE, "png")[:20], "not a picture|broken picture"),
    ],
    ids=["zero bytes", "text", "zeros", "cut png", "cut jpeg", "cut webp", "header only"],
)
def test_what_cannot_be_decoded_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unusable, match=f"^({reason})"):
        images.decode(data)


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded() -> None:
    data = file_of(NOISE)
    assert images.decode(data, max_pixels=32 * 32).size == (32, 32)
    with pytest.raises(Unusable, match=r"^32x32 px is over the limit of 1023 pixels$"):
        images.decode(data, max_pixels=32 * 32 - 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [13_400, 40_000])
def test_a_decompression_bomb_is_refused_without_a_warning(side: int) -> None:
    """Sides just over our limit, and so far over it that Pillow itself refuses to open the file."""
    data = bytearray(file_of(Image.new("1", (64, 64))))
    data[16:24] = side.to_bytes(4, "big") * 2  # IHDR: width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(Unusable, match="over the limit of 178000000 pixels"):
        images.decode(bytes(data))
