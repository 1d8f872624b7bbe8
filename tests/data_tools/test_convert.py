"""`data-tools convert`: another container, dtype or part size; every row as it was, or rounded once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from data_tools.cache import check, convert, report
from data_tools.cache.cast import cast
from data_tools.cache.convert import ConvertOptions
from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore, open_store
from data_tools.cache.writer import PartWriter
from data_tools.cli import cli
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import COLUMNS, Made, build, listed, read, same
from tests.data_tools.origins import build_of, float32, opened, sums
from tests.data_tools.test_damage import flip, payload

LACKING = frozenset({("image", "k3"), ("text", "k8"), ("latents@24", "k3")})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """14 samples in parts of 5, some rejected."""
    folder = tmp_path_factory.mktemp("convert") / "cache"
    return folder, build(folder, lacking=LACKING)


def converted(source: Path, dest: Path, *options: object) -> str:
    return convert.convert(opened(source), open_store(dest), ConvertOptions(*options))


def kinds(root: Path) -> set[str]:
    return {path.suffix for path in root.glob("columns/*/*/parts/*")} - {".npz"}


@pytest.mark.parametrize("part_size", [None, 1, 3, 5, 7, 20])
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_every_row_keeps_its_bytes(
    built: tuple[Path, Made], tmp_path: Path, format: str, part_size: int | None
) -> None:
    dest = tmp_path / "dest"
    converted(built[0], dest, format, 0, None, part_size)
    assert sums(dest) == sums(built[0])  # crc32c of every row
    assert check.verify(opened(dest), full=True).faults == []
    assert same(read(dest), read(built[0]))
    sizes = [part.samples for part in opened(dest).plan()]
    wanted = part_size or 5
    assert sizes == [min(wanted, 14 - start) for start in range(0, 14, wanted)]
    assert kinds(dest) == {".zarr" if format == "zarr" else ".tar"}


def test_there_and_back_gives_the_same_objects(built: tuple[Path, Made], tmp_path: Path) -> None:
    converted(built[0], tmp_path / "tars", "webdataset", 2, None, 4)
    converted(tmp_path / "tars", tmp_path / "back", "zarr", 0, None, 5)

    def hashes(root: Path) -> dict[tuple[str, str], set[str]]:
        columns = [(name, opened(root).column(name)) for name in COLUMNS]
        return {
            (name, part): {item.xxh3_128 for item in commit.objects if item.name != commit.index}
            for name, column in columns
            for part, commit in opened(root).commits(column).items()
        }

    assert hashes(tmp_path / "back") == hashes(built[0])


def test_everything_else_comes_along(built: tuple[Path, Made], tmp_path: Path) -> None:
    """Rejects with reasons, captions, order, identities, model hints, the count of what was found."""
    dest = tmp_path / "dest"
    converted(built[0], dest, "webdataset", 0, None, 4)
    old, new = opened(built[0]), opened(dest)
    assert [row for part in new.plan() for row in new.table(part)] == [
        row for part in old.plan() for row in old.table(part)
    ]
    for name in COLUMNS:
        assert new.column(name) == old.column(name)
    before, after = report.inspect(old), report.inspect(new)
    for key in ("samples", "cached", "rejects", "pending", "complete", "reject_reasons"):
        assert after[key] == before[key]
    listed_rejects = [(r["key"], r["reason"], r["place"], r["column"]) for r in after["rejected"]]
    assert listed_rejects == [(r["key"], r["reason"], r["place"], r["column"]) for r in before["rejected"]]


def test_precompute_would_find_its_own_plan(built: tuple[Path, Made], tmp_path: Path) -> None:
    converted(built[0], tmp_path / "dest", "zarr", 0, None, 4)
    plan = plan_source(open_store(tmp_path / "dest"), listed(14), 4)
    assert plan == opened(tmp_path / "dest").plan()


@pytest.mark.parametrize("found", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_another_dtype_rounds_to_nearest_and_changes_only_the_identity_s_dtype(
    tmp_path: Path, found: str, wanted: str
) -> None:
    made = build(tmp_path / "source", dtype=found, count=4, part_size=3)
    converted(tmp_path / "source", tmp_path / "dest", None, 0, wanted, 2)
    got = read(tmp_path / "dest")
    for column, keys in made.items():
        old, new = opened(tmp_path / "source").column(column), opened(tmp_path / "dest").column(column)
        mark = wanted if wanted == found else f"{wanted} from {found}"
        assert new.identity == {**old.identity, "dtype": mark}
        assert {field.dtype for field in new.fields} == {wanted}
        for key, rows in keys.items():
            for before, after in zip(rows, got[column][key], strict=True):
                for name in before:
                    exact = torch.from_numpy(float32(before[name], found).copy())
                    rounded = exact.to(getattr(torch, wanted)).float().numpy()
                    np.testing.assert_array_equal(float32(after[name], wanted), rounded)
    assert check.verify(opened(tmp_path / "dest"), full=True).faults == []


def test_bfloat16_rounds_ties_to_even_as_torch_does() -> None:
    high = np.random.default_rng(0).integers(0, 2**16, 20_000).astype(np.uint32)
    low = np.tile(np.array([0, 1, 0x7FFF, 0x8000, 0x8001], dtype=np.uint32), 4000)
    values = ((high << 16) | low).view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    wanted = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(cast(values, "float32", "bfloat16"), wanted)


@pytest.mark.parametrize(
    ("dtype", "largest", "above"), [("float16", 65519.0, 65520.0), ("bfloat16", 3.38e38, 3.4e38)]
)
def test_what_would_become_infinite_is_refused_with_its_value(
    dtype: str, largest: float, above: float
) -> None:
    cast(np.array([-largest], dtype=np.float32), "float32", dtype)
    with pytest.raises(ValueError, match=rf"^{above:.6g} is too large for {dtype}".replace("+", r"\+")):
        cast(np.array([1, -above], dtype=np.float32), "float32", dtype)


def test_an_overflow_names_the_sample(tmp_path: Path) -> None:
    build(tmp_path / "source", unfinished=frozenset({("image", "part-00001")}))
    cache = opened(tmp_path / "source")
    writer = PartWriter(cache.store, cache.column("image"), "part-00001")
    for number, row in enumerate(cache.table(cache.plan()[1])):
        value = np.full(12, 1e5 if number == 2 else 1, dtype=np.float32)
        writer.add(number, row["key"], [{"image_embeds": value}])
    writer.commit()
    with pytest.raises(
        DataFault, match=r"column image, part-00001: sample k7: 100000 is too large for float16"
    ):
        converted(tmp_path / "source", tmp_path / "dest", None, 0, "float16")
    converted(tmp_path / "source", tmp_path / "bf16", None, 0, "bfloat16")


@pytest.mark.parametrize("after", [0, 1, 4, 10])
def test_a_killed_conversion_resumes(
    built: tuple[Path, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whatever was committed stays as it is; the rest is added."""
    dest, create = tmp_path / "dest", LocalStore.create
    commits = 0

    def killed(self: LocalStore, name: str, data: bytes) -> bool:
        nonlocal commits
        commits += "/commits/" in name
        if commits > after:
            raise KeyboardInterrupt
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(built[0], dest, "webdataset", 0, None, 3)
    there = {path: path.read_bytes() for path in dest.glob("columns/*/*/commits/*")}
    assert len(there) == after
    assert converted(built[0], dest, "webdataset", 0, None, 3) == f"{dest}: {17 - after} parts copied"
    assert all(path.read_bytes() == data for path, data in there.items())
    assert sums(dest) == sums(built[0])
    last = {path: path.stat().st_mtime_ns for path in dest.rglob("*.*") if path.is_file()}
    assert converted(built[0], dest, "webdataset", 0, None, 3).endswith("nothing to do: every part is there")
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*.*") if path.is_file()} == last


def test_a_conversion_killed_before_its_plan_resumes(
    built: tuple[Path, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "dest"
    with monkeypatch.context() as patch:
        patch.setattr("data_tools.cache.convert.plan_source", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            converted(built[0], dest)
    assert [path.name for path in dest.iterdir()] == ["conversion.json"]
    converted(built[0], dest)
    assert sums(dest) == sums(built[0])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("zarr", 0, None, 3), r"format webdataset → zarr"),
        (("webdataset", 2, None, 3), "tar_block 0 → 2"),
        (("webdataset", 0, "float16", 3), "dtype null → float16"),
        (("webdataset", 0, None, 4), "part_size 3 → 4"),
    ],
)
def test_another_conversion_into_the_same_folder_is_refused(
    built: tuple[Path, Made], tmp_path: Path, options: tuple[object, ...], key: str
) -> None:
    converted(built[0], tmp_path / "dest", "webdataset", 0, None, 3)
    with pytest.raises(UserError, match=rf"^DEST: .*dest was begun by another command \({key}\)"):
        converted(built[0], tmp_path / "dest", *options)


def test_folders_of_others_are_refused_and_left_alone(built: tuple[Path, Made], tmp_path: Path) -> None:
    root = Path(shutil.copytree(built[0], tmp_path / "cache"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    build_of(tmp_path / "other", [1, 2])
    converted(tmp_path / "other", tmp_path / "dest", None, 0, None, 5)
    before = set(tmp_path.rglob("*"))
    for dest in ("full", "cache", "cache/inside", "other", "dest"):
        with pytest.raises(UserError, match=rf"^DEST: {tmp_path / dest} "):
            converted(root, tmp_path / dest, None, 0, None, 5)
    assert set(tmp_path.rglob("*")) == before


def test_what_the_source_lacks_waits_and_is_added_later(tmp_path: Path) -> None:
    made = build(tmp_path / "source", unfinished=frozenset({("text", "part-00001")}))
    said = converted(tmp_path / "source", tmp_path / "dest", None, 0, None, 4)
    assert "parts of 2 text wait for the source" in said.splitlines()[0]
    assert report.inspect(opened(tmp_path / "dest"))["columns"]["text"]["parts"] == 2
    cache = opened(tmp_path / "source")
    writer = PartWriter(cache.store, cache.column("text"), "part-00001")
    for number, row in enumerate(cache.table(cache.plan()[1])):
        writer.add(number, row["key"], made["text"]["k0"] * len(row["captions"]))
    writer.commit()
    assert converted(tmp_path / "source", tmp_path / "dest", None, 0, None, 4).endswith(": 2 parts copied")
    assert sums(tmp_path / "dest") == sums(tmp_path / "source")


def test_a_damaged_source_is_named_and_nothing_of_the_part_is_written(
    built: tuple[Path, Made], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built[0], tmp_path / "cache"))
    flip(payload(root, "text"), 17)
    with pytest.raises(DataFault, match=rf"^{root}: column text, part-00001: .*crc32c .*precompute --repair"):
        converted(root, tmp_path / "dest", "webdataset")
    assert not list(tmp_path.glob("dest/columns/text/*/commits/part-00001.json"))
    payload(root, "text").unlink()
    with pytest.raises(DataFault, match=r"column text, part-00001: .*is missing"):
        converted(root, tmp_path / "dest", "webdataset")


def test_memory_is_bounded_by_a_part(built: tuple[Path, Made], tmp_path: Path) -> None:
    """No object of the source is read twice in a row, and at most once for each new part it goes into."""
    cache, names = opened(built[0]), []
    read_whole = cache.store.read
    cache.store.read = lambda name: names.append(name) or read_whole(name)
    convert.convert(cache, open_store(tmp_path / "dest"), ConvertOptions(part_size=3))
    read_often = [name for name in names if "/c/0" in name]
    assert len(read_often) == len(set(read_often))


def test_the_hint_to_a_local_model_is_moved_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare = Cache.declare

    def with_path(self: Cache, column: object) -> None:
        declare(self, column.__class__(**{**vars(column), "model": {"path": "../models/prior"}}))

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "declare", with_path)
        build(tmp_path / "source", count=2)
    converted(tmp_path / "source", tmp_path / "far" / "away" / "dest")
    model = opened(tmp_path / "far" / "away" / "dest").column("image").model
    assert model == {"path": "../../../models/prior"}


def test_the_command_converts_and_plain_zarr_opens_the_result(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    made = build(tmp_path / "source", count=3)
    arguments = ["convert", str(tmp_path / "source"), str(tmp_path / "dest"), "--dtype", "fp16"]
    result = CliRunner().invoke(cli, [*arguments, "--format", "zarr"])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'dest'}: 5 parts copied\n")
    (group,) = tmp_path.glob("dest/columns/image/*/parts/part-00000-*.zarr")
    stored = zarr.open_group(group, mode="r")["image_embeds"][:]
    wanted = np.stack([made["image"][f"k{i}"][0]["image_embeds"] for i in range(3)]).astype(np.float16)
    assert np.array_equal(stored, wanted)
    assert json.loads((tmp_path / "dest" / "conversion.json").read_text())["dtype"] == "float16"
    refused = CliRunner().invoke(cli, [*arguments[:3], "--format", "zarr", "--tar-block", "2"])
    assert str(refused.exception).startswith("--tar-block: is for --format webdataset")
