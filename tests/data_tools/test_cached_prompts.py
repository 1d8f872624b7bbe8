"""Sets of cached prompts go with the text column through convert and merge, and verify looks at them."""

from pathlib import Path

import pytest

from data_tools.cache import check, convert, merge
from data_tools.cache.convert import ConvertOptions
from data_tools.cache.manifest import Cache
from data_tools.cache.merge import MergeOptions
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.cache.writer import PartWriter
from tests.data_tools.caches import build, same
from tests.data_tools.origins import add_prompts, build_of, opened, stored, sums
from tests.data_tools.test_damage import flip

CATS = ("a cat", "two cats in the snow", "кот")
DOGS = ("a dog", "a cat")


def prompts_of(root: Path) -> dict[str, tuple[str, ...]]:
    column = opened(root).column("text")
    assert column is not None
    return {part: commit.prompts for part, commit in opened(root).commits(column).items() if commit.prompts}


def faults(root: Path) -> list[str]:
    return [str(fault) for fault in check.verify(opened(root), full=True).faults]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_converted_cache_has_the_same_prompts(tmp_path: Path, format: str) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    made = build(source, count=4)
    made["text"] |= add_prompts(source, CATS)
    convert.convert(opened(source), LocalStore(dest), ConvertOptions(format=format, part_size=3))
    assert prompts_of(dest) == prompts_of(source)
    assert same(stored(dest), made)
    assert sums(dest) == sums(source)
    assert faults(dest) == []
    found = CacheReader(dest, ["text"]).prompts("text")
    assert set(found) == set(CATS)
    for text, row in found.items():
        assert row["prompt_embeds"].tobytes() == made["text"][text][0]["prompt_embeds"].tobytes()


def test_prompts_that_were_added_later_are_added_by_the_same_command(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    build(source, count=4)
    convert.convert(opened(source), LocalStore(dest), ConvertOptions())
    add_prompts(source, CATS)
    said = convert.convert(opened(source), LocalStore(dest), ConvertOptions())
    assert said == f"{dest}: 1 parts copied"
    assert sums(dest) == sums(source)


def test_a_merged_cache_has_the_prompts_of_all_sources_and_the_first_s_of_a_common_set(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    build_of(first, range(3))
    build_of(second, range(2, 6))
    add_prompts(first, CATS)
    add_prompts(second, CATS, seed=1)
    add_prompts(second, DOGS, seed=2)
    merge.merge([opened(first), opened(second)], LocalStore(tmp_path / "d"), MergeOptions())
    assert prompts_of(tmp_path / "d") == prompts_of(second)
    assert len(prompts_of(second)) == 2
    for prompt in CATS[1:]:
        assert sums(first)["text", prompt] != sums(second)["text", prompt]
        assert sums(tmp_path / "d")["text", prompt] == sums(first)["text", prompt]
    assert faults(tmp_path / "d") == []


def test_verify_finds_a_damaged_set_and_one_that_is_not_of_its_prompts(tmp_path: Path) -> None:
    build(tmp_path, count=4)
    rows = add_prompts(tmp_path, CATS)
    assert faults(tmp_path) == []
    (part,) = prompts_of(tmp_path)
    (shard,) = tmp_path.glob(f"columns/text/*/parts/{part}-*.zarr/prompt_embeds/c/0/0")
    flip(shard, 5)
    found = faults(tmp_path)
    assert found[1] == f"text, {part}: prompt_embeds: crc32c differs in row 0"
    flip(shard, 5)
    cache = Cache.open(LocalStore(tmp_path))
    column = cache.column("text")
    assert column is not None
    writer = PartWriter(cache.store, column, "prompts-00000000")
    writer.prompts = CATS
    for number, prompt in enumerate(CATS[::-1]):
        writer.add(number, prompt, rows[prompt])
    assert writer.commit()
    assert faults(tmp_path) == ["text, prompts-00000000: rows are not those of its prompts"]
