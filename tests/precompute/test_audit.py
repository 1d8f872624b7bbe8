"""`precompute --audit`: what is stored is what the encoders make, and where it is not, that shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.records import ColumnRecords
from data_tools.cache.store import open_store
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault
from precompute import cli
from precompute.audit import draw
from precompute.comparison import Comparison, Errors
from tests.precompute.command import COLUMNS, arguments, files, precompute
from tests.precompute.pictures import BROKEN, SILENT, write_pictures
from tests.precompute.test_refusals import refused as refused  # a fixture
from tests.s3 import S3Server

FP32 = ("--dtype", "fp32")
ALL = ("--audit", "100")


def audited(data: Path, cache: Path | str, pocket: Path, *flags: str) -> dict[str, Any]:
    """What `--audit` finds, as JSON; it must find nothing wrong."""
    found: dict[str, Any] = json.loads(precompute(data, cache, pocket, *flags, "--json"))
    assert found["within_tolerance"] is True
    return found


def rows(found: dict[str, Any], column: str) -> int:
    """Rows compared, of each of a column's fields."""
    (count,) = {field["rows"] for field in found["columns"][column]["fields"].values()}
    return int(count)


def fault(data: Path, cache: Path, pocket: Path, *flags: str) -> tuple[str, str]:
    """What an audit that fails prints, and its last line."""
    command_line = arguments(data, cache, pocket, *FP32, *flags)
    result = CliRunner().invoke(cli.precompute, command_line, standalone_mode=False)
    assert isinstance(result.exception, DataFault), result.exception
    return result.stdout, str(result.exception)


def falsify(root: Path, column: str, part: str, position: int, change: float) -> str:
    """Commit a part again with one number changed: sound bytes, a wrong value, or none if `change` is NaN.

    The key of its sample.
    """
    cache, reader = Cache.open(open_store(root)), CacheReader(root, [column])
    about, plan = reader.columns[column], cache.plan()
    numbers = [each.name for each in plan].index(part)
    records = ColumnRecords(cache, about, plan)
    index, start = records.index(records.number[part]), int(records.starts[records.number[part]])
    table, writer = cache.table(plan[numbers]), PartWriter(cache.store, about, part)
    for at, number in enumerate(index.sample_index.tolist()):
        span = range(*index.row_offsets[at : at + 2].tolist())
        batches = [records.gather(np.array([start + row])) for row in span]
        made = [{each.name: batch[each.name][0] for each in about.fields} for batch in batches]
        writer.add(number, table[number]["key"], made)
        if number == position:  # only now, as `add` takes no NaN
            made[0][about.fields[-1].name].reshape(-1)[3] += change
    for old in (*root.glob(f"columns/{column}/*/commits/{part}.json"), *root.glob("columns/*/*/generations")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    assert writer.commit()
    return str(table[position]["key"])


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def test_every_row_null_condition_and_prompt_is_compared_and_nothing_is_written(
    copy: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\nsomething else")
    precompute(pictures, copy, pocket, *FP32, "--prompts", str(tmp_path / "prompts.txt"))
    before = files(copy)
    found = audited(pictures, copy, pocket, *FP32, *ALL)
    assert files(copy) == before
    assert found["not_as_cached"] == []
    assert [found["columns"][name]["samples"] for name in COLUMNS] == [23, 23, 23]
    null, prompts = 1, 2
    assert [rows(found, name) for name in COLUMNS] == [23 + null, 35 + null + prompts, 23]
    for column in found["columns"].values():
        for field in column["fields"].values():
            assert field["mean_error"] <= field["largest_error"] <= 1e-5
            assert field["rms"] > 0.05


def test_the_text_has_a_line_for_each_field(cache16: Path, pictures: Path, pocket: Path) -> None:
    lines = precompute(pictures, cache16, pocket, "--audit", "5").splitlines()
    assert lines[0] == "5 samples drawn at random, encoded again on cpu, in float32"
    assert [line.split(",")[0] for line in lines[3:7]] == ["image", "text", "text", "latents@64"]
    assert lines[2].split()[-4:] == ["largest/RMS", "tolerance", "mean/RMS", "tolerance"]
    for line in lines[3:7]:
        largest, tolerance, mean, of_mean = map(float, line.split()[-4:])
        assert 0 <= mean <= largest <= tolerance == pytest.approx(4 * of_mean, rel=0.01)
    assert lines[-1] == "nothing was written (--audit)"


def test_draws_are_the_same_again_and_a_larger_one_adds_to_a_smaller(cache: Path) -> None:
    opened = Cache.open(open_store(cache))
    plan, found = opened.plan(), {}
    for count in (3, 8, 8, 100):
        columns = {}
        for name in ("image", "text"):
            about = opened.column(name)
            assert about is not None
            columns[name] = Comparison(None, ColumnRecords(opened, about, plan))  # type: ignore[arg-type]
        drawn = {each.sample.key: set(each.rows) for each in draw(opened, plan, columns, count)}
        assert drawn == {**drawn, **found}
        found = drawn
        assert len(drawn) == min(count, 24)
    assert found[BROKEN] == {"text"}
    assert found[SILENT] == {"image"}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_value_is_found_and_named(column: str, copy: Path, pictures: Path, pocket: Path) -> None:
    key = falsify(copy, column, "part-00002", 4, 0.5)
    printed, line = fault(pictures, copy, pocket, *ALL)
    assert line.startswith(f"--audit: {column}, ")
    assert f"of sample {key!r} is off by " in line
    assert "; " not in line
    assert "nothing was written (--audit)" in printed
    audited(pictures, copy, pocket, *FP32, *ALL, "--tolerance", "5")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_stored_and_no_number_is_a_fault_and_hides_no_other(
    column: str, value: float, copy: Path, pictures: Path, pocket: Path
) -> None:
    spoiled = falsify(copy, column, "part-00000", 1, value)
    wrong = falsify(copy, column, "part-00002", 4, 0.5)
    printed, line = fault(pictures, copy, pocket, *ALL, "--tolerance", "0.1")
    assert line.startswith(f"--audit: {column}, ")
    assert f": NaN or infinity is stored for sample {spoiled!r}; {column}, " in line
    assert f" of sample {wrong!r} is off by " in line
    assert "nan" not in printed
    only = fault(pictures, copy, pocket, *ALL, "--tolerance", "5", "--columns", column)[1]
    assert only.endswith(f": NaN or infinity is stored for sample {spoiled!r}")


def test_an_error_of_every_number_by_one_share_is_found() -> None:
    """Each is within the limit for one number."""
    stored = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    errors, limit = Errors(), 0.14
    errors.add("sound", stored, stored + np.float32(0.01), "float32")
    assert not [*errors.faults(limit)]
    errors.add("scaled", stored, stored * np.float32(1.1), "float32")
    errors.add("later", stored, stored, "float32")
    assert errors.distance < limit
    (line,) = errors.faults(limit)
    assert line == "scaled is off by 0.08 of its RMS in the mean, wanted at most 0.035"
    errors.add("one", stored, stored + np.float32(1) * (np.arange(4096) == 7), "float32")
    assert [each.split()[0] for each in errors.faults(limit)] == ["one", "scaled"]


@pytest.mark.parametrize("flags", [("--dtype", "fp16"), ("--dtype", "bf16", "--precision", "bf16")])
def test_other_batch_shapes_are_within_the_default_tolerance(
    flags: tuple[str, ...], pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    precompute(pictures, tmp_path / "cache", pocket, *flags, "--batch-size", "7")
    found = audited(pictures, tmp_path / "cache", pocket, *flags, "--batch-size", "1", *ALL)
    assert found["tolerance"] == pytest.approx(18 / 128 if "bf16" in flags else 2 / 1024, rel=0.02)


def test_views_and_buckets_are_compared(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    flags = ("--flip", "--buckets", "--resolution", "128")
    precompute(pictures, tmp_path / "cache", pocket, *flags)
    found = audited(pictures, tmp_path / "cache", pocket, *flags, *ALL)
    assert rows(found, "latents@128") == 2 * 23
    assert rows(found, "image") == 2 * 23 + 1


def test_pictures_that_have_changed_or_are_gone_are_named_and_no_errors(
    copy: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "00.jpg").unlink()
    shutil.copy(data / "06.jpg", data / "03.jpg")
    found = audited(data, copy, pocket, *FP32, *ALL)
    assert sorted(found["not_as_cached"]) == ["00.jpg", "03.jpg"]
    assert found["columns"]["image"]["samples"] == 21
    printed = precompute(data, copy, pocket, *FP32, *ALL)
    assert "left out, as their pictures have changed or are gone: 2 (00.jpg, 03.jpg)" in printed


def test_pictures_that_the_source_has_elsewhere_now_are_found(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "other", 1)
    (tmp_path / "other" / "00.jpg").rename(tmp_path / "other" / "another.jpg")
    (tmp_path / "other" / "metadata.jsonl").unlink()
    found = audited(tmp_path / "other", cache, pocket, *FP32, "--data", str(pictures), *ALL)
    assert found["not_as_cached"] == []
    assert found["columns"]["image"]["samples"] == 23


def test_pictures_that_are_all_gone_are_refused(refused, cache: Path, pocket: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 2)
    for name in ("00.jpg", "01.png"):
        (tmp_path / "data" / name).rename(tmp_path / "data" / f"other-{name}")
    line = refused(*FP32, "--columns", "image", "--audit", "3", data=tmp_path / "data", cache=cache)
    assert line.startswith("--audit: none of the 3 samples drawn is in --data as it was cached (")
    assert line.endswith("; give the data that the cache was made from\n")


def test_what_is_stored_but_refused_now_is_a_fault(cache: Path, pictures: Path, pocket: Path) -> None:
    line = fault(pictures, cache, pocket, *ALL, "--columns", "image", "--min-size", "90")[1]
    assert line.startswith("--audit: image: sample ")
    assert "is stored but cannot be encoded again (" in line
    assert "wanted at least 90 a side)" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--audit", "0"), "--audit: 0 is not in the range"),
        (("--tolerance", "1"), "--tolerance: is for --audit COUNT, which is not given"),
        (("--audit", "1", "--dry-run"), "--audit: only looks, and here; leave --dry-run out"),
        (("--audit", "1", "--repair"), "--audit: only looks, and here; leave --repair out"),
        (("--audit", "1", "--dtype", "bf16"), "--cache: {cache}: column image was made otherwise (dtype "),
        (
            ("--audit", "1", "--columns", "text,latents@128"),
            "--audit: {cache} holds nothing of column latents@128 (it has: image, latents@64, text); name",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused(
    refused, cache: Path, flags: tuple[str, ...], message: str
) -> None:
    assert refused(*FP32, *flags, cache=cache).startswith(message.format(cache=cache))


def test_a_cache_that_is_not_there_is_refused(refused, tmp_path: Path) -> None:
    assert refused("--audit", "1").startswith(f"--cache: {tmp_path / 'cache'} has no plan yet")


def test_a_cache_on_s3(s3: S3Server, pocket: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 5)
    place = s3.place()
    precompute(tmp_path / "data", place, pocket, *FP32)
    found = audited(tmp_path / "data", place, pocket, *FP32, *ALL)
    assert [rows(found, name) for name in COLUMNS] == [5 + 1, 8 + 1, 5]


def test_a_distance_is_a_share_of_the_rms_or_of_a_larger_value() -> None:
    errors, stored = Errors(), np.array([3.0, -3.0, 3.0, -3.0], dtype=np.float32)
    errors.add("small", stored, stored + np.float32([0, 0.3, 0, 0]), "float32")
    assert (errors.distance, errors.largest, errors.worst) == (
        pytest.approx(0.1),
        pytest.approx(0.3),
        "small",
    )
    spiky = np.zeros(10_000, dtype=np.float32)
    spiky[0] = 100.0  # an RMS of 1
    errors.add("large", spiky, spiky * np.float32(1.0625), "float32")
    assert (errors.largest, errors.worst) == (6.25, "small")
    errors.add("off", spiky, spiky + np.float32(0.5), "float32")
    assert (errors.distance, errors.worst, errors.rows) == (pytest.approx(0.5), "off", 3)
    with pytest.raises(ValueError, match="stored is"):
        errors.add("short", stored, stored[:3], "float32")
