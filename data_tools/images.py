"""Any picture file to upright RGB. Nothing else decodes pictures.

What differs from the diffusers scripts' bare `convert("RGB")`: EXIF orientation is applied, alpha is
composited on white (`alpha="drop"` keeps theirs), grey of more than 8 bits keeps its brightness, and ICC
profiles are applied where `icc=True`.
"""

import io
import re
import warnings
from functools import cache

from PIL import Image, ImageFile, UnidentifiedImageError

from data_tools.colours import Box, to_rgb
from data_tools.sources.sample import Unusable

MAX_PIXELS = 178_000_000
"Pixels of the largest picture that is decoded: 712 MB at Pillow's four bytes a pixel."

MAX_SCANS = 100
"Scans of a progressive JPEG: real ones have about ten; a small file of thousands takes minutes."

ALPHA = ("white", "drop")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"What is read: MPO counts as JPEG; AVIF if Pillow was built with it. Pillow's other readers are never called."

BEGINNINGS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}
"First bytes of the formats that are read."

OTHER_FILES = {
    b"%!ps": "PostScript",
    b"%pdf": "PDF",
    b"8bps": "Photoshop",
    b"\0\0\1\0": "icon",
    b"\0\0\0\x0cjxl ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjp  ": "JPEG 2000",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<!doctype html": "HTML",
    b"<html": "HTML",
}
"First bytes, in lower case → what else is found behind a picture's name."

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"EXIF orientation → what makes the picture upright."

# Once, for all threads: `catch_warnings` is not for threads. What Pillow warns of is our reason or nothing.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(
    data: bytes, *, alpha: str = "white", max_pixels: int = MAX_PIXELS, min_size: int = 1, icc: bool = False
) -> Image.Image:
    """The picture in a file's bytes, upright, mode RGB, first frame or page.

    `max_pixels` is checked before anything is decoded, `min_size` holds for the smaller side. Raises
    `Unusable` with the reason, one line, whatever the bytes are.
    """
    if not data:
        raise Unusable("zero bytes")
    if max_pixels > MAX_PIXELS:  # Pillow's own limit lies just above ours and would fire first
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = _open(data, max_pixels)
        frame = _first_frame(image, data)
        image.load()
        turn = TURNS.get(_orientation(image))
        upright = to_rgb(image, alpha=alpha, icc=icc, frame=frame)
        if turn is not None:
            upright = upright.transpose(turn)
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(f"over the limit of {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Unusable(_what_else(data)) from None
    except MemoryError:
        raise Unusable("more memory needed to decode it than there is") from None
    except Exception as err:  # Pillow's decoders raise almost anything on broken files
        raise Unusable(f"broken picture: {_one_line(err)}") from None
    if min(upright.size) < min_size:
        raise Unusable(f"{upright.width}x{upright.height} px, wanted at least {min_size} a side")
    return upright


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The picture with its header read and its size checked, nothing decoded."""
    image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height > max_pixels:
        raise Unusable(f"{image.width}x{image.height} px is over the limit of {max_pixels} pixels")
    if image.info.get("progressive") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise Unusable(f"{scans} scans in one JPEG, over the limit of {MAX_SCANS}")
    if image.format == "PNG":  # its colour key has the file's bit depth, Pillow's pixels have 8
        depth, key = data[24], image.info.get("transparency")
        if image.mode == "L" and isinstance(key, int):
            image.info["transparency"] = key * 255 // (2**depth - 1)
        elif image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        elif isinstance(key, str):  # a text of that name
            del image.info["transparency"]
    return image


def _first_frame(image: ImageFile.ImageFile, data: bytes) -> Box | None:
    """Where the first frame of an animation that is not loaded yet lies: it need not fill the picture."""
    if image.format == "GIF":
        left, top, right, bottom = image.tile[0][1] or (0, 0, *image.size)
    elif image.format == "WEBP" and (start := data.find(b"ANMF")) > 0:
        numbers = (int.from_bytes(data[at : at + 3], "little") for at in range(start + 8, start + 20, 3))
        left, top, width, height = (next(numbers) * 2, next(numbers) * 2, next(numbers), next(numbers))
        right, bottom = left + width + 1, top + height + 1
    else:
        return None
    width, height = image.size
    box = (min(left, width), min(top, height), min(right, width), min(bottom, height))
    return None if box == (0, 0, width, height) else box


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8; a broken EXIF block in a good picture counts as none."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow's EXIF reader raises almost anything too
        return 1


def _what_else(data: bytes) -> str:
    """Why Pillow finds none of our formats in the bytes."""
    wanted = ", ".join(_formats())
    head = data[:512].lstrip().lower()
    damaged = "broken picture: begins as {}, but the header is damaged or of a kind that is not read"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace").strip()
        if brand in ("avif", "avis") and "AVIF" in _formats():
            return damaged.format("AVIF")
        return f"not a picture that is read here: {_printable(brand)} media file, wanted one of {wanted}"
    for first, name in OTHER_FILES.items():
        if head.startswith(first):
            return f"not a picture that is read here: {name} file, wanted one of {wanted}"
    for first, name in BEGINNINGS.items():
        if data.startswith(first):
            return damaged.format(name)
    return "not a picture"


def _one_line(err: Exception) -> str:
    """What an exception says, for a reject list: one line, at most 200 characters, the same in every run."""
    text = re.sub(r"\s*at 0x[0-9a-fA-F]+", "", " ".join(str(err).split()))
    return _printable(text)[:200] or type(err).__name__


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
