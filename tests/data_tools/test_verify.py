"""`data-tools verify` lists every fault there is, and none where there is none."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from data_tools.cache import check, zarr_part
from data_tools.cache.fields import Field
from data_tools.cache.generation import publish
from data_tools.cache.manifest import Cache
from data_tools.cache.store import open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cli import cli
from data_tools.errors import UserError
from data_tools.sources import Sample
from tests.data_tools.caches import COLUMNS, build
from tests.data_tools.test_damage import flip, payload


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "cache"
    build(folder, lacking=frozenset({("image", "k3"), ("text", "k8")}))
    cache = Cache.open(open_store(folder))
    for name in COLUMNS:
        publish(cache, cache.column(name), cache.plan())
    return folder


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(built, tmp_path / "cache"))


def faults(root: Path, *, full: bool = True) -> list[str]:
    return [str(fault) for fault in check.verify(Cache.open(open_store(root)), full=full).faults]


def command(root: Path, *flags: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(root), *flags])


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_cache_has_no_faults(built: Path, full: bool) -> None:
    found = check.verify(Cache.open(open_store(built)), full=full)
    files = [path for path in built.glob("columns/*/*/parts/**/*") if path.is_file()]
    assert found.faults == []
    assert (found.parts, found.objects, found.missing) == (11, len(files), 0)
    assert found.num_bytes == sum(path.stat().st_size for path in files)


def test_rows_in_many_chunks_and_in_tars_are_cut_out_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 300)  # rows run over one or several gaps
    build(tmp_path / "zarr", count=6, part_size=3)
    assert faults(tmp_path / "zarr") == []
    for block in (1, 3):
        monkeypatch.setattr("data_tools.cache.writer.ZarrPart", lambda block=block: TarPart(block))
        build(tmp_path / f"tar{block}", count=6, part_size=3, dtype="bfloat16")
        assert faults(tmp_path / f"tar{block}") == []


def test_parts_that_are_not_there_yet_are_no_faults(tmp_path: Path) -> None:
    build(tmp_path, unfinished=frozenset({("text", "part-00001"), ("image", "part-00000")}))
    found = check.verify(Cache.open(open_store(tmp_path)))
    assert (found.faults, found.missing) == ([], 2)
    assert "2 parts still to encode" in command(tmp_path).stdout


def test_all_faults_are_listed_and_the_repair_is_named(root: Path) -> None:
    payload(root, "image").unlink()
    lost = payload(root, "text", "part-00002")
    lost.write_bytes(lost.read_bytes()[:-1])
    (index,) = root.glob("columns/latents@24/*/parts/part-00000-*.npz")
    flip(index, 100)
    result = command(root)
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert [line.split(": ")[0] for line in lines] == [
        "latents@24, part-00000",
        "image, part-00001",
        "text, part-00002",
    ]
    assert "changed bytes" in lines[0]
    assert "is missing" in lines[1]
    assert re.search(r"has \d+ bytes, wanted \d+ bytes", lines[2])
    last = str(result.exception)
    assert last.startswith(f"{root}: 3 faults in 3 places; redo with: precompute --repair --cache {root} ")
    assert "\n" not in last


@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_bit_in_a_payload_is_found_in_full_only(root: Path, column: str) -> None:
    flip(payload(root, column), 17)
    assert faults(root, full=False) == []
    first, second = faults(root)
    assert re.fullmatch(rf"{column}, part-00001: .*has changed bytes \(xxh3-128 differs\)", first)
    assert re.fullmatch(rf"{column}, part-00001: \w+: crc32c differs in row 0", second)


def test_a_flipped_bit_anywhere_in_any_file_is_found(tmp_path: Path) -> None:
    """Also in what readers never look at: sample tables, zarr metadata, chunk checksums, generations."""
    build(root := tmp_path / "cache", count=3, part_size=2)
    cache, rng = Cache.open(open_store(root)), np.random.default_rng(0)
    for name in COLUMNS:
        publish(cache, cache.column(name), cache.plan())
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != "cache.json"):
        whole = path.read_bytes()
        flip(path, int(rng.integers(len(whole) - 1)), 0x10)
        found = faults(root)
        path.write_bytes(whole)
        assert found, path
    assert faults(root) == []


@pytest.mark.parametrize(
    ("pattern", "where", "remedy"),
    [
        ("plans/000001.json", "plan", "from a copy"),
        ("samples/part-00001-*.jsonl", "part-00001", "precompute --repair"),
        ("columns/text/column.json", "text, declaration", "precompute --repair"),
    ],
)
def test_what_precompute_cannot_make_again_is_told_apart(
    root: Path, pattern: str, where: str, remedy: str
) -> None:
    (path,) = root.glob(pattern)
    flip(path, 30)
    assert faults(root, full=False)[0].startswith(f"{where}: ")
    said = str(command(root).exception)
    assert remedy in said
    assert ("--repair" in said) == ("--repair" in remedy)


def test_a_damaged_record_hides_no_other_fault(root: Path) -> None:
    (record,) = root.glob("columns/text/*/commits/part-00000.json")
    record.write_text("{")
    flip(payload(root, "text", "null"), 3)
    found = faults(root)
    assert [line.split(": ")[0] for line in found] == ["text, null", "text, null", "text, part-00000"]


def test_values_that_are_not_finite_are_found_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Field, "check", lambda *_: None)  # a writer that does not look
    build(tmp_path, unfinished=frozenset({("image", "part-00001")}))
    cache = Cache.open(open_store(tmp_path))
    column, part = cache.column("image"), cache.plan()[1]
    writer = PartWriter(cache.store, column, part.name)
    for number, row in enumerate(cache.table(part)):
        value = np.full(12, np.nan if number in (1, 3) else 1.0, dtype=np.float32)
        writer.add(number, row["key"], [{"image_embeds": value}])
    assert writer.commit()
    assert faults(tmp_path, full=False) == []
    assert faults(tmp_path) == ["image, part-00001: image_embeds: NaN or infinity in 2 rows (1, 3)"]


def test_a_part_that_does_not_fit_the_plan_is_found(tmp_path: Path) -> None:
    """Whole and sealed, but of other samples, and one of them neither cached nor rejected."""
    made = build(tmp_path, unfinished=frozenset({("text", "part-00000")}))
    cache = Cache.open(open_store(tmp_path))
    column, part = cache.column("text"), cache.plan()[0]
    writer = PartWriter(cache.store, column, part.name)
    for number, row in enumerate(cache.table(part)[:4]):
        key = "k5" if number == 0 else row["key"]
        writer.add(number, key, made["text"]["k5"] if number != 2 else made["text"]["k6"])
    writer.reject(Sample(**cache.table(part)[4]), "no caption")
    writer.reject(Sample(**cache.table(part)[4]), "twice")
    writer.commit()
    text = [line.removeprefix("text, part-00000: ") for line in faults(tmp_path, full=False)]
    assert text == [
        "4 samples and 2 rejects are not the plan's 5",
        "keys are not those of the sample table",
        "rows are not as many as captions",
    ]
    assert "delete the part's commit record" in str(command(tmp_path).exception)


def test_a_generation_of_an_older_attempt_is_found(root: Path) -> None:
    (record,) = root.glob("columns/image/*/commits/part-00000.json")
    older = json.loads(record.read_text())["attempt"]
    record.unlink()
    cache = Cache.open(open_store(root))
    (line,) = faults(root)
    assert line.startswith("image, part-00000: generation")
    writer = PartWriter(cache.store, cache.column("image"), "part-00000")
    for number, row in enumerate(cache.table(cache.plan()[0])):
        writer.add(number, row["key"], [{"image_embeds": np.zeros(12, dtype=np.float32)}])
    assert writer.commit()
    assert json.loads(record.read_text())["attempt"] != older
    assert faults(root) == ["image, part-00000: the latest generation names another attempt"]


def test_no_cache_and_no_plan_are_mistakes_not_faults(root: Path, tmp_path: Path) -> None:
    assert isinstance(command(tmp_path / "gone").exception, UserError)
    (root / "plans" / "000001.json").unlink()
    assert isinstance(command(root).exception, UserError)
