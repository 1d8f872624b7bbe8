"""An RGB picture to the pixels that an encoder sees.

MoVQ sees the centre square, or the centre of an aspect-ratio bucket. Geometry and resampling of the square
are those of diffusers' Kandinsky 2.2 decoder scripts: crop to the short side, PIL bicubic with
`reducing_gap=1`. A bucket is cropped and resized in the same way, to its own shape. CLIP sees the centre of
the shorter side.

Pixels stay 8 bits a channel, a quarter of the floats' bytes on every way they go; `LEVELS` makes them floats.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.sources.sample import Unusable

Size = tuple[int, int]
"Width and height in pixels, as Pillow has them."

STEP = 64
"Sides are multiples of it: MoVQ and UNet halve them 6 times."

MAX_ASPECT = 2.0
"Of a bucket, either way."

MAX_RESIZED = 178_000_000
"Pixels of a picture whose shorter side has been made as long as CLIP wants it."

LEVELS: NDArray[np.float32] = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
"Value of a channel → what MoVQ takes, -1 … 1."


def cover(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """The largest centred part of a picture of the shape of `size`, resized to it: (height, width, 3)."""
    width, height = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    if left or top:  # else a crop only copies
        box = (left, top, left + width * scale, top + height * scale)
        image = image.crop(box)  # crop rounds, as theirs
    pixels: NDArray[np.uint8] = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1))
    return pixels


def short_side(image: Image.Image, side: int, crop: int) -> NDArray[np.uint8]:
    """The picture with its shorter side `side` long, and of that the centre: (crop, crop, 3), crop ≤ side.

    What CLIP's PIL image processor does, to the bit and in half the time: it goes through arrays. Raises
    `Unusable` for a picture so thin that it would fill the memory.
    """
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    if size[0] * size[1] > MAX_RESIZED:
        raise Unusable(f"{width}x{height} px: too thin; at {side} px a side it has over {MAX_RESIZED} pixels")
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    pixels: NDArray[np.uint8] = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return pixels


@cache
def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """Every size whose area is `resolution`² or the least below it, with an aspect ratio of at most 2:1."""
    found = set()
    for long in range(resolution // STEP * STEP, int(resolution * math.sqrt(MAX_ASPECT)) + STEP, STEP):
        short = resolution**2 // long // STEP * STEP
        if short and long <= MAX_ASPECT * short:
            found |= {(long, short), (short, long)}
    return tuple(sorted(found))


def nearest(size: Size, sizes: tuple[Size, ...]) -> Size:
    """The bucket whose aspect ratio is nearest to a picture's, by its logarithm; of equals the largest."""
    aspect = math.log(size[0] / size[1])
    return min(sizes, key=lambda each: (abs(math.log(each[0] / each[1]) - aspect), -each[0] * each[1]))
