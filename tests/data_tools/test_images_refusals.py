"""What is refused says why in one line; what is merely odd beside good pixels is not refused."""

import contextlib
import io
import resource
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from data_tools import images
from data_tools.sources import Unusable
from tests.data_tools.picture_files import file_of, png, tiff, webp

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that `images` sets

GREY = Image.new("L", (4, 4), 90)
FORMATS = "JPEG, PNG, WEBP, GIF, BMP, TIFF"


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(Unusable) as refused:
        images.decode(data, **options)
    return str(refused.value)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_below_the_least_size_is_refused_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.new("RGB", (63, 400)), "jpeg", exif=exif)
    size = "63x400" if orientation == 1 else "400x63"
    assert reason(data, min_size=64) == f"{size} px, wanted at least 64 a side"
    assert min(images.decode(data, min_size=63).size) == 63


def gif_with_screen(width: int, height: int) -> bytes:
    data = bytearray(file_of(GREY, "gif"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def with_size(kind: str, size: int) -> bytes:
    """A JPEG or BMP that claims to be size x size."""
    data = bytearray(file_of(GREY, kind))
    if kind == "bmp":
        data[18:26] = struct.pack("<ii", size, size)
    else:
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", size, size)
    return bytes(data)


BOMBS = {
    "png": png(40_000, 40_000, 8, 0, bytes(100)),
    "png just over": png(13_345, 13_345, 8, 0, bytes(100)),
    "gif": gif_with_screen(65535, 65535),
    "gif just over": gif_with_screen(13_345, 13_345),
    "webp": webp((16384, 16384), GREY.convert("RGB"), (0, 0), alpha=True),
    "webp at its limit": webp((1 << 24, 255), GREY.convert("RGB"), (0, 0), alpha=True),
    "tiff": tiff(bytes(64), 60_000, 60_000, 8),
    "tiff at its limit": tiff(bytes(64), 2**31 - 1, 2**31 - 1, 8),
    "jpeg": with_size("jpeg", 65_000),
    "bmp": with_size("bmp", 65_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_any_format_is_refused_before_it_takes_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "over the limit of 178000000 pixels" in reason(BOMBS[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB; decoded: 530,000


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_that_explodes_is_refused(chunk: bytes) -> None:
    body = b"a\0\1\0\0\0" if chunk == b"iTXt" else b"a\0\0"
    data = png(1, 1, 8, 0, b"\0\0", (chunk, body + zlib.compress(bytes(30_000_000))))
    assert reason(data).startswith("broken picture: Decompressed data too large")


def test_tags_of_a_tiff_may_be_absurd() -> None:
    tiled = tiff(bytes(64), 8, 8, 8, extra=((322, 2**31 - 1), (323, 2**31 - 1), (324, 200), (325, 64)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(Unusable):
        assert images.decode(tiled).size == (8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = file_of(GREY, "jpeg", progressive=True)
    start = data.rindex(b"\xff\xda")  # repeat the last scan
    bomb = data[:start] + data[start:-2] * 200 + data[-2:]
    assert reason(bomb).endswith("scans in one JPEG, over the limit of 100")
    assert images.decode(data).size == (4, 4)


def test_the_limit_may_lie_above_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here Pillow's own limit is lowered, so that no gigabyte is needed to see it give way."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    data = file_of(Image.new("L", (30, 30)))
    assert reason(data, max_pixels=200) == "over the limit of 200 pixels"
    assert images.decode(data, max_pixels=900).size == (30, 30)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "PostScript file"),
        (b"%PDF-1.7\n", "PDF file"),
        (b"8BPS\0\1" + bytes(100), "Photoshop file"),
        (file_of(Image.new("RGBA", (16, 16)), "ico"), "icon file"),
        (file_of(GREY, "jpeg2000"), "JPEG 2000 file"),
        (b"\n <!DOCTYPE html><html>404</html>", "HTML file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic media file"),
    ],
    ids=["eps", "pdf", "psd", "ico", "jpeg 2000", "html", "svg", "heic"],
)
def test_formats_that_are_not_meant_are_named(data: bytes, found: str) -> None:
    assert reason(data).startswith(f"not a picture that is read here: {found}, wanted one of {FORMATS}")


@pytest.mark.parametrize("kind", ["ppm", "tga", "pcx", "sgi", "dds"])
def test_pillows_other_readers_are_never_called(kind: str) -> None:
    assert reason(file_of(Image.new("RGB", (4, 4)), kind)).startswith("not a picture")


def test_a_damaged_header_is_not_called_another_file() -> None:
    assert reason(b"\x89PNG\r\n\x1a\n" + bytes(50)).startswith("broken picture: ")
    assert reason(b"II*\0" + b"\xff" * 50).startswith("broken picture: begins as TIFF")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_an_avif_cut_short_is_broken_and_not_called_another_format() -> None:
    noise = Image.effect_noise((64, 64), 80)
    for share in (0.1, 0.5, 0.9):
        data = file_of(noise, "avif")
        assert reason(data[: int(len(data) * share)]).startswith("broken picture: ")
    assert reason(file_of(noise, "avif")[:100]).startswith("broken picture: begins as AVIF")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_picture_is_never_filled_up(kind: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = file_of(noise, kind)
    for share in (0.3, 0.6, 0.9):
        assert reason(data[: int(len(data) * share)]).startswith(("broken picture: ", "not a picture"))


EXIFS = {
    "garbage": b"Exif\0\0" + b"garbage" * 20,
    "far offset": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "huge, endless": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60_000,
    "header only": b"Exif\0\0",
    "one byte": b"x",
    "wrong type": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4abcd\0\0\0\0",
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("name", EXIFS)
def test_a_broken_exif_block_does_not_reject_a_good_picture(kind: str, name: str) -> None:
    whole = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    found = images.decode(file_of(whole, kind, exif=EXIFS[name], **options))
    assert np.array_equal(np.asarray(found), np.asarray(images.decode(file_of(whole, kind, **options))))


def test_orientation_counts_where_the_rest_of_the_exif_block_is_broken() -> None:
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x8769, 4, 1, 0xFFFFFFF0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + entries + bytes(4)
    assert images.decode(file_of(Image.new("RGB", (24, 16)), "jpeg", exif=exif)).size == (16, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_orientation_is_applied_once_in_every_format(orientation: int, kind: str) -> None:
    stored = np.zeros((16, 24, 3), dtype=np.uint8)
    stored[:8, :12], stored[:8, 12:], stored[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    found = images.decode(file_of(Image.fromarray(stored), kind, exif=exif, **options))
    jpeg_like = images.decode(file_of(Image.fromarray(stored), "png", exif=exif))
    assert found.size == ((24, 16) if orientation < 5 else (16, 24))
    assert np.array_equal(np.asarray(found), np.asarray(jpeg_like))


@pytest.mark.parametrize("key", [b"transparency", b"icc_profile", b"progressive", b"exif", b"xmp", b"frame"])
def test_a_text_of_a_png_is_not_taken_for_what_pillow_keeps_under_its_name(key: bytes) -> None:
    data = png(1, 1, 8, 2, b"\0\1\2\3", (b"tEXt", key + b"\0some\ntext"))
    assert images.decode(data, icc=True).getpixel((0, 0)) == (1, 2, 3)


def test_a_reason_is_one_short_line_without_addresses() -> None:
    err = OSError(f"two\nlines of {io.BytesIO()!r}\x1b[31m " + "long " * 100)
    text = images._one_line(err)
    assert text.startswith("two lines of <_io.BytesIO object>?[31m long")
    assert len(text) == 200
    assert images._one_line(KeyError()) == "KeyError"


def test_threads_that_decode_print_no_warnings() -> None:
    """In a process of its own: pytest sets the warning filters anew for every test."""
    code = (
        "import sys, warnings\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from data_tools import images\n"
        "data = sys.stdin.buffer.read()\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(lambda _: images.decode(data, alpha='drop'), range(200)))\n"
        "warnings.warn('others are still shown')\n"
    )
    data = file_of(Image.linear_gradient("L").convert("P"), transparency=bytes([0, 128, 3]))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    lines = done.stderr.decode().splitlines()
    assert len([line for line in lines if "Warning" in line]) == 1
    assert "others are still shown" in lines[0]


def test_threads_see_the_same_picture() -> None:
    data = file_of(Image.effect_noise((64, 64), 80), "jpeg")
    expected = np.asarray(images.decode(data))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: images.decode(data), range(40)):
            assert np.array_equal(np.asarray(found), expected)
