"""What `data-tools inspect` says: found = cached + rejected, whatever happened to which column."""

import json
from pathlib import Path

from click.testing import CliRunner

from data_tools.cache import report
from data_tools.cache.manifest import Cache
from data_tools.cache.store import LocalStore
from data_tools.cli import cli
from tests.data_tools.caches import build


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
