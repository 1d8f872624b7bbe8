"""Any picture file to upright RGB, and RGB to the square that MoVQ sees. Nothing else decodes pictures.

The geometry and resampling are those of diffusers' Kandinsky 2.2 decoder scripts (centre crop to the
short side, PIL bicubic with `reducing_gap=1`, `/127.5 - 1`). Two things differ from their bare
`convert("RGB")`: EXIF orientation is applied, and alpha is composited on white (`alpha="drop"` keeps theirs).
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_tools.sources.sample import Unusable

MAX_PIXELS = 178_000_000
"Pixels of the largest picture that is decoded: 534 MB as RGB."

ALPHA = ("white", "drop")


def decode(data: bytes, *, alpha: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file's bytes, upright, mode RGB, first frame. Raises `Unusable` with the reason."""
    if not data:
        raise Unusable("zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns at half of its limit; ours is checked below
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise Unusable(f"{image.width}x{image.height} px is over the limit of {max_pixels} pixels")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), alpha=alpha)
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(f"over the limit of {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("not a picture") from None
    except Exception as err:  # Pillow's decoders raise almost anything on broken files
        raise Unusable(f"broken picture: {err or type(err).__name__}") from None


def to_rgb(image: Image.Image, *, alpha: str) -> Image.Image:
    """Any PIL mode to RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    if alpha == "drop" or not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def square(image: Image.Image, resolution: int) -> NDArray[np.float32]:
    """Centre crop and resize to (3, resolution, resolution), values -1 … 1."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.crop((left, top, left + side, top + side))  # crop rounds, as theirs
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC, reducing_gap=1)
    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1  # (H, W, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
