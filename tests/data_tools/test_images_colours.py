"""Bit depths, colour keys, colour spaces, profiles and first frames: the picture that its maker saw."""

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools import colours, images
from data_tools.sources import Unusable
from tests.data_tools import picture_files
from tests.data_tools.picture_files import file_of, png, tiff

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that `images` sets

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)
"16-bit grey of an 8x8 picture."
SCALED = np.rint(RAMP / 257).reshape(8, 8)


def rgb(data: bytes, **options: Any) -> np.ndarray:
    image = images.decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(data: bytes) -> np.ndarray:
    pixels = rgb(data)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_divided_by_257(order: str) -> None:
    stored = RAMP.astype(f"{order}u2").tobytes()
    assert np.array_equal(grey(tiff(stored, 8, 8, 16, order=order)), SCALED)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RAMP.reshape(8, 8))
    assert np.array_equal(grey(png(8, 8, 16, 0, rows)), SCALED)


def test_grey_tiff_may_have_12_bits_or_a_white_that_is_zero() -> None:
    assert np.array_equal(grey(tiff(RAMP.tobytes(), 8, 8, 16, photometric=0)), 255 - SCALED)
    values = np.linspace(0, 4095, 64).astype(int)
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(96, "big")
    assert np.array_equal(grey(tiff(packed, 8, 8, 12)), np.rint(values / 4095 * 255).reshape(8, 8))


def test_16_bit_colour_keeps_the_high_byte() -> None:
    colour = struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF)
    assert rgb(png(1, 1, 16, 2, b"\0" + colour))[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("highest", "white"), [(0.5, 1), (1, 1), (1.9, 1), (100, 255), (255, 255), (260, 255), (65535, 65535)]
)
def test_white_of_float_grey_is_found_by_its_largest_value(highest: float, white: int) -> None:
    values = np.linspace(0, highest, 64, dtype=np.float32)
    expected = np.rint((values * (255 / white)).clip(0, 255)).reshape(8, 8)
    found = grey(tiff(values.tobytes(), 8, 8, 32, sample_format=3))
    assert np.abs(found - expected).max() <= (0 if white != 65535 else 1)


@pytest.mark.parametrize(("highest", "white"), [(3, 255), (255, 255), (256, 65535), (65535, 65535)])
def test_white_of_32_bit_grey_is_found_by_its_largest_value(highest: int, white: int) -> None:
    values = np.linspace(0, highest, 64).astype("<i4")
    found = grey(tiff(values.tobytes(), 8, 8, 32, sample_format=2))
    assert np.array_equal(found, np.rint(values * (255 / white)).reshape(8, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_grey_without_a_known_white_is_refused(value: float) -> None:
    values = np.full(64, value, dtype=np.float32)
    with pytest.raises(Unusable, match=r"^grey values up to .*, wanted finite ones up to \(1, 255, 65535\)$"):
        images.decode(tiff(values.tobytes(), 8, 8, 32, sample_format=3))


def test_below_zero_is_black() -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32)
    assert grey(tiff(values.tobytes(), 8, 8, 32, sample_format=3))[0, 0] == 0


@pytest.mark.parametrize(
    ("depth", "colour", "key", "rows"),
    [
        (2, 0, b"\0\1", b"\0" + bytes([0b01000000])),
        (4, 0, b"\0\5", b"\0" + bytes([0x50])),
        (16, 0, b"\x80\0", b"\0\x80\0\0\0"),
        (16, 2, b"\x80\x12\0\0\0\0", b"\0\x80\x12\0\0\0\0" + bytes(6)),
    ],
    ids=["2-bit grey", "4-bit grey", "16-bit grey", "16-bit colour"],
)
def test_a_colour_key_of_any_depth_is_laid_on_white(depth: int, colour: int, key: bytes, rows: bytes) -> None:
    data = png(2, 1, depth, colour, rows, (b"tRNS", key))
    assert rgb(data)[0].tolist() == [[255] * 3, [0] * 3]


def test_a_palette_with_opacities_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 200, 0, 0, 0, 200, 0])
    found = rgb(file_of(image, transparency=bytes([255, 0, 128])))
    assert found[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert np.abs(found[0, 2].astype(int) - [127, 227, 127]).max() <= 1
    assert rgb(file_of(image, transparency=bytes([255, 0, 128])), alpha="drop")[0, 1].tolist() == [200, 0, 0]


def test_a_palette_with_an_alpha_channel_beside_it_is_laid_on_white() -> None:
    image = Image.new("PA", (2, 1))
    image.putpalette([200, 0, 0])
    image.putalpha(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    found = colours.to_rgb(image, alpha="white")
    assert np.asarray(found)[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_transparency_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 20, 4), dtype=np.uint8)
    data = file_of(Image.fromarray(pixels))
    whole = rgb(data)
    monkeypatch.setattr("data_tools.colours.STRIP_PIXELS", 70)  # three rows at a time
    assert np.array_equal(rgb(data), whole)


def test_the_picture_given_is_left_as_it_is() -> None:
    image = Image.new("RGB", (2, 2), (9, 9, 9))
    image.info["transparency"] = (9, 9, 9)
    assert colours.to_rgb(image, alpha="white").getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((0, 0)) == (9, 9, 9)


def test_cmyk_of_jpeg_and_tiff() -> None:
    """Adobe's JPEGs hold inverted ink; Pillow writes them so, with Adobe's marker."""
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = file_of(image, "jpeg", quality=95)
    assert b"Adobe" in data
    assert np.abs(rgb(data).astype(int) - [255, 0, 0]).max() <= 3
    assert (rgb(file_of(image, "tiff")) == [255, 0, 0]).all()


def test_lab_is_converted_to_srgb() -> None:
    found = rgb(file_of(Image.new("LAB", (4, 4), (138, 128 + 81, 128 + 70)), "tiff"))  # sRGB's red
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 8  # Lab in 8 bits


def test_profiles_are_applied_only_on_demand() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    data = file_of(red, icc_profile=picture_files.swapped_profile())
    assert (rgb(data) == [255, 0, 0]).all()
    assert np.abs(rgb(data, icc=True).astype(int) - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_a_profile_without_gamma_brightens(kind: str) -> None:
    data = file_of(
        Image.new("RGB", (16, 16), (128, 128, 128)), kind, icc_profile=picture_files.swapped_profile()
    )
    assert np.abs(rgb(data, icc=True).astype(int) - 188).max() <= 2


def test_profiles_of_grey_cmyk_palette_and_transparent_pictures() -> None:
    linear, cyan = picture_files.grey_profile(), picture_files.cyan_profile()
    found = rgb(file_of(Image.new("L", (4, 4), 128), icc_profile=linear), icc=True)
    assert np.abs(found.astype(int) - 188).max() <= 2
    inks = Image.fromarray(np.array([[[255, 0, 0, 0], [0, 255, 255, 255]]], dtype=np.uint8), mode="CMYK")
    found = rgb(file_of(inks, "tiff", icc_profile=cyan), icc=True)
    assert found[0, 0].max() <= 3
    assert found[0, 1].min() >= 252
    swapped = picture_files.swapped_profile()
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 0))
    found = rgb(file_of(red, icc_profile=swapped), icc=True)
    assert np.abs(found[0].astype(int) - [[0, 0, 255], [255, 255, 255]]).max() <= 2
    found = rgb(file_of(Image.new("RGB", (1, 1), (255, 0, 0)).convert("P"), icc_profile=swapped), icc=True)
    assert np.abs(found[0, 0].astype(int) - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [b"", b"broken", picture_files.swapped_profile()[:200], picture_files.grey_profile(), bytes(5000)],
    ids=["empty", "text", "cut", "of grey", "zeros"],
)
def test_a_profile_that_is_broken_or_of_other_pixels_is_not_applied(profile: bytes) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert (rgb(file_of(red, icc_profile=profile), icc=True) == [255, 0, 0]).all()


def test_inks_are_not_read_by_a_profile_of_rgb() -> None:
    inks = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    data = file_of(inks, "tiff", icc_profile=picture_files.swapped_profile())
    assert (rgb(data, icc=True) == [255, 0, 0]).all()


FRAME = Image.new("RGB", (4, 4), (200, 0, 0))


def placed(found: np.ndarray) -> None:
    """The frame at (2, 4) of 16x12, white around it."""
    expected = np.full((12, 16, 3), 255)
    expected[4:8, 2:6] = (200, 0, 0)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("alpha", [True, False])
def test_a_webp_whose_first_frame_is_smaller_is_white_around_it(alpha: bool) -> None:
    placed(rgb(picture_files.webp((16, 12), FRAME, (2, 4), alpha=alpha)))


@pytest.mark.parametrize("transparency", [None, 5])
def test_a_gif_whose_first_frame_is_smaller_is_white_around_it(transparency: int | None) -> None:
    options = {} if transparency is None else {"transparency": transparency}
    data = bytearray(file_of(FRAME.convert("P", palette=Image.Palette.ADAPTIVE), "gif", **options))
    start = data.index(b",\0\0\0\0\x04\0\x04\0")  # image descriptor
    data[6:10] = struct.pack("<HH", 16, 12)
    data[start + 1 : start + 5] = struct.pack("<HH", 2, 4)
    placed(rgb(bytes(data)))


def test_a_smaller_first_frame_may_have_clear_pixels_itself() -> None:
    frame = FRAME.convert("RGBA")
    frame.putpixel((1, 1), (0, 0, 0, 0))
    found = rgb(picture_files.webp((16, 12), frame, (2, 4), alpha=True))
    assert found[5, 3].tolist() == [255, 255, 255]
    assert found[5, 4].tolist() == [200, 0, 0]


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "mpo"])
def test_of_several_frames_or_pages_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    found = rgb(file_of(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 2
