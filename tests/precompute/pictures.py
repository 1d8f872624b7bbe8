"""A small untidy ImageFolder: modes, sizes, formats and captions as real data has them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 24
BROKEN, SILENT = "07.png", "12.jpg"
LONG = "a very long story about a small house with a garden, " * 20
STYLES = (("jpg", "RGB"), ("png", "RGBA"), ("png", "P"), ("jpg", "L"), ("png", "LA"), ("jpg", "CMYK"))
SIZES = ((96, 96), (120, 80), (64, 150), (200, 90))
CAPTIONS: tuple[str | list[str], ...] = (
    "a red apple",
    ["a black cat sleeping on a yellow sofa", "кошка спит на диване", "一只黑猫在沙发上睡觉"],
    "рисунок кошки, которая спит на диване",
    ["a house", "a simple icon of a house with a garden"],
    "红苹果的图片",
    "two children flying a kite above the beach",
)


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """A smooth random RGB picture, another one for each seed; size is (width, height)."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def picture(index: int) -> tuple[str, bytes]:
    """File name and bytes of picture `index`."""
    extension, mode = STYLES[index % len(STYLES)]
    image = noise(index, SIZES[index % len(SIZES)])
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format={"jpg": "jpeg"}.get(extension, extension))
    return f"{index:02}.{extension}", buffer.getvalue()


def write_pictures(folder: Path, count: int = COUNT) -> None:
    """`count` pictures with metadata.jsonl; where there are enough, one is broken and one has no caption."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        name, data = picture(index)
        broken = index == 7
        name = BROKEN if broken else SILENT if index == 12 else name
        (folder / name).write_bytes(data[: len(data) // 2] if broken else data)
        caption = LONG if index == 10 else CAPTIONS[index % len(CAPTIONS)]
        rows.append({"file_name": name, **({} if name == SILENT else {"text": caption})})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
