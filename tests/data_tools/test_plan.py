"""A plan is made once, is the same for all who make it, and notices another source."""

import dataclasses
from pathlib import Path

import pytest

from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from data_tools.errors import UserError
from tests.data_tools.caches import Listed, listed


def test_parts_are_runs_of_samples_in_the_order_of_the_source(tmp_path: Path) -> None:
    plan = plan_source(LocalStore(tmp_path), listed(12), 5)
    assert [(part.name, part.samples) for part in plan] == [
        ("part-00000", 5),
        ("part-00001", 5),
        ("part-00002", 2),
    ]


def test_planning_again_changes_nothing_even_with_another_part_size(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan = plan_source(store, listed(12), 5)
    before = sorted(tmp_path.rglob("*"))
    assert plan_source(store, listed(12), 3) == plan
    assert sorted(tmp_path.rglob("*")) == before


def test_without_write_nothing_is_written(tmp_path: Path) -> None:
    plan = plan_source(LocalStore(tmp_path / "cache"), listed(12), 5, write=False)
    assert [part.samples for part in plan] == [5, 5, 2]
    assert not (tmp_path / "cache").exists()


def test_a_changed_source_is_refused_with_counts_and_an_example(tmp_path: Path) -> None:
    store, source = LocalStore(tmp_path), listed(12)
    plan_source(store, source, 5)
    first, *rest = source.samples
    recaptioned = dataclasses.replace(rest[3], captions=("another",))
    changed = Listed((*rest[:3], recaptioned, *rest[4:], dataclasses.replace(first, key="new")))
    with pytest.raises(UserError, match=r"^--data: .*1 new, 1 changed, 1 removed; for example k0\)"):
        plan_source(store, changed, 5)
    with pytest.raises(UserError, match="for example the order of the samples"):
        plan_source(store, Listed(source.samples[::-1]), 5)
    with pytest.raises(UserError, match="0 new, 0 changed, 2 removed"):
        plan_source(store, Listed(source.samples[:-2]), 5)


@pytest.mark.parametrize("change", [{"num_bytes": 1}, {"mtime_ns": 2}, {"place": "elsewhere.png"}])
def test_a_rewritten_picture_is_a_change(tmp_path: Path, change: dict) -> None:
    store, source = LocalStore(tmp_path), listed(3)
    plan_source(store, source, 5)
    changed = Listed((*source.samples[:2], dataclasses.replace(source.samples[2], **change)))
    with pytest.raises(UserError, match="0 new, 1 changed, 0 removed; for example k2"):
        plan_source(store, changed, 5)
