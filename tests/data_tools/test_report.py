"""What `data-tools inspect` says: found = cached + rejected, whatever happened to which column."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_tools.cache import report
from data_tools.cache.manifest import Cache
from data_tools.cache.store import LocalStore
from data_tools.cli import cli
from data_tools.errors import DataFault
from tests.data_tools.caches import BUCKETS, build
from tests.data_tools.test_generation import commit_prompts, publish_all


def inspected(root: Path) -> dict:
    return report.inspect(Cache.open(LocalStore(root)))


def test_a_sample_that_two_columns_reject_is_rejected_once(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k3"), ("latents@24", "k3"), ("text", "k8")}))
    found = inspected(tmp_path)
    assert (found["samples"], found["cached"], found["rejects"], found["pending"]) == (14, 12, 2, 0)
    assert found["complete"] is True
    assert [reject["key"] for reject in found["rejected"]] == ["k3", "k8"]
    assert report.count_line(found) == "14 samples found = 12 cached + 2 rejected"


def test_the_equation_holds_while_parts_are_missing(tmp_path: Path) -> None:
    lacking = frozenset({("image", "k3"), ("image", "k7")})
    build(tmp_path, lacking=lacking, unfinished=frozenset({("text", "part-00001")}))
    found = inspected(tmp_path)
    assert (found["samples"], found["cached"], found["rejects"], found["pending"]) == (14, 8, 1, 5)
    assert found["complete"] is False
    assert report.count_line(found).endswith("+ 5 still to encode")


def test_bytes_and_rows_are_those_of_the_fields(tmp_path: Path) -> None:
    made = build(tmp_path, dtype="float16")
    column = inspected(tmp_path)["columns"]["text"]
    rows = [row for key, rows in made["text"].items() for row in rows if key]
    assert column["rows"] == len(rows)
    for field in ("prompt_embeds", "text_encoder_hidden_states"):
        assert column["field_bytes"][field] == sum(row[field].nbytes for row in rows)


def test_text_and_json_are_printed(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k3")}))
    text = CliRunner().invoke(cli, ["inspect", str(tmp_path)]).stdout
    assert "14 samples found = 13 cached + 1 rejected" in text
    assert "k3: not wanted (image)" in text
    assert "(n_tokens, 12)" in text
    data = json.loads(CliRunner().invoke(cli, ["inspect", "--json", str(tmp_path)]).stdout)
    assert data == inspected(tmp_path)


def test_a_column_folder_without_a_declaration_does_not_count(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "columns" / "latents@96").mkdir()
    assert "latents@96" not in inspected(tmp_path)["columns"]


def test_sizes_are_for_people() -> None:
    assert [report.human_bytes(n) for n in (0, 999, 1000, 12_345_678, 5e15)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "12.3 MB",
        "5000.0 TB",
    ]


def test_containers_and_stored_bytes_are_counted(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("text", "k8"), ("text", "k9")}))
    column = inspected(tmp_path)["columns"]["text"]
    files = [path for path in tmp_path.glob("columns/text/*/parts/part-*/**/*") if path.is_file()]
    files += tmp_path.glob("columns/text/*/parts/part-*.npz")
    assert column["containers"] == {"zarr": 3}
    assert column["stored_bytes"] == sum(path.stat().st_size for path in files)
    assert column["rejects_by_reason"] == {"not wanted": 2}


def test_token_lengths_and_shapes_are_counted(tmp_path: Path) -> None:
    made = build(tmp_path)
    lengths = [
        len(row["text_encoder_hidden_states"]) for k, rows in made["text"].items() if k for row in rows
    ]
    columns = inspected(tmp_path)["columns"]
    found = columns["text"]["lengths"]["text_encoder_hidden_states"]
    assert (found["rows"], found["max"]) == (len(lengths), max(lengths))
    assert found["mean"] == round(sum(lengths) / len(lengths), 1)
    for first, last, count in found["bins"]:
        assert count == sum(first <= length <= last for length in lengths)
    assert sum(count for *_, count in found["bins"]) == len(lengths)
    assert columns["latents@24"]["shapes"] == {"latents": {"(4, 3, 3)": 14}}
    assert not {"lengths", "shapes"} & columns["image"].keys()


def test_buckets_are_counted_by_samples(tmp_path: Path) -> None:
    build(tmp_path, buckets=BUCKETS, views=2)
    shapes = {"latents": {"(4, 3, 3)": 6, "(4, 2, 5)": 5, "(4, 4, 2)": 3}}  # of parts of 5, 5 and 4
    assert inspected(tmp_path)["columns"]["latents@24"]["shapes"] == shapes
    assert "(4, 2, 5)                   5" in report.as_text(inspected(tmp_path))


def test_a_published_cache_is_inspected_by_its_generations_alone(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k3"), ("text", "k8")}))
    before = inspected(tmp_path)
    publish_all(tmp_path)
    for pattern in ("columns/*/*/parts", "columns/*/*/commits", "samples"):
        for path in tmp_path.glob(pattern):
            shutil.rmtree(path)
    assert inspected(tmp_path) == before


def test_cached_prompts_are_counted_and_are_no_samples(tmp_path: Path) -> None:
    build(tmp_path)
    before = inspected(tmp_path)
    commit_prompts(tmp_path, "prompts-0000aaaa", "a", "b")
    found = inspected(tmp_path)
    assert found["columns"]["text"].pop("prompts") == 2
    assert before["columns"]["text"].pop("prompts") == 0
    assert found == before
    assert "text: 2 prompts cached" in report.as_text(inspected(tmp_path)).splitlines()


def test_neither_sample_tables_nor_payloads_are_read(tmp_path: Path) -> None:
    build(tmp_path)
    before = inspected(tmp_path)
    for pattern in ("samples/*", "columns/*/*/parts/*.zarr"):
        for path in tmp_path.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert inspected(tmp_path) == before


def test_an_index_that_is_missing_before_there_is_a_generation_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    next(tmp_path.glob("columns/text/*/parts/part-00001-*.npz")).unlink()
    with pytest.raises(DataFault, match=r"column text, part-00001: .*\.npz is missing; .*--repair"):
        inspected(tmp_path)


def test_many_rejects_are_counted_by_reason_and_only_some_named(tmp_path: Path) -> None:
    build(tmp_path, count=40, lacking=frozenset(("image", f"k{i}") for i in range(30)))
    text = report.as_text(inspected(tmp_path))
    assert "30 × not wanted" in text
    assert "and 10 more; --json lists all" in text
    assert len(inspected(tmp_path)["rejected"]) == 30


def test_an_empty_column_has_an_empty_histogram(tmp_path: Path) -> None:
    build(tmp_path, count=3, lacking=frozenset(("text", f"k{i}") for i in range(3)))
    found = inspected(tmp_path)["columns"]["text"]["lengths"]["text_encoder_hidden_states"]
    assert found == {"rows": 0, "mean": None, "max": None, "bins": []}
    assert report.as_text(inspected(tmp_path))
