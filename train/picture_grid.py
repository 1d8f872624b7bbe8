"""One picture of many: a row for each prompt, which stands beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
"Pixels around everything."
MIN_TEXT_WIDTH = 200
"Pixels; else half of a picture."
BACKGROUND, INK = "white", "black"


def picture_grid(pictures: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Prompt → its pictures, all of one size, as one RGB picture. A row is as high as its prompt needs."""
    width, height = next(iter(pictures.values()))[0].size
    text_width = max(MIN_TEXT_WIDTH, width // 2)
    font = ImageFont.truetype(_font_file(), size=max(12, width // 24))
    ascent, descent = font.getmetrics()
    texts = ["\n".join(wrapped(prompt, font, text_width)) for prompt in pictures]
    spacing = 4
    rows = [max(height, (text.count("\n") + 1) * (ascent + descent + spacing)) for text in texts]
    columns = max(len(row) for row in pictures.values())
    size = (MARGIN + text_width + columns * (MARGIN + width) + MARGIN, sum(rows) + MARGIN * (len(rows) + 1))
    grid = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(grid)
    top = MARGIN
    for text, row, row_height in zip(texts, pictures.values(), rows, strict=True):
        draw.multiline_text((MARGIN, top), text, fill=INK, font=font, spacing=spacing)
        for column, picture in enumerate(row):
            grid.paste(picture, (MARGIN + text_width + MARGIN + column * (MARGIN + width), top))
        top += row_height + MARGIN
    return grid


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of a text no wider than `width` pixels, broken between words, within one where it must be."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] * bool(lines[-1])
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font_file() -> Path:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
