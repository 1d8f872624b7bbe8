"""The corruption matrix: whatever happens to a file of a cache, reading is right or an error, and
`verify --full` says so. Never wrong data, never another exception, never a hang."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults.damage import (
    Damage,
    Files,
    Outcome,
    Values,
    deletion,
    flip,
    kind,
    landmarks,
    load,
    outcome,
    read,
    same,
    swaps,
    truncations,
)
from tests.faults.writer import PART_SIZE, fill

SAMPLES = 3
SHOWN = 30
"Lines of a failure."
Whole = tuple[Path, Files, Values]


CACHES = [
    pytest.param(("zarr", True), id="zarr"),
    pytest.param(("webdataset", False), id="webdataset-unpublished"),
    pytest.param(("zarr", False), id="zarr-unpublished", marks=pytest.mark.faults),
    pytest.param(("webdataset", True), id="webdataset", marks=pytest.mark.faults),
]
"Container, and whether generations were written."


@pytest.fixture(scope="module", params=CACHES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """All columns, null conditions, two parts; with two generations, or opened by its commit records."""
    format, published = request.param
    root = tmp_path_factory.mktemp("corruption") / "cache"
    fill(root, format, SAMPLES, parts=1)
    fill(root, format, SAMPLES)
    for path in () if published else root.glob("columns/*/*/generations/*"):
        path.unlink()
    files = load(root)
    assert sum("/generations/" in name for name in files) == 6 * published
    yield root, files, read(root)
    assert load(root) == files, "a damage was not undone"


def assert_told(whole: Whole, damages: Iterable[Damage]) -> None:
    """Each damage, one after the other: right or refused when read, and found."""
    root, files, _ = whole
    lines, count = [], 0
    for damage in damages:
        count += 1
        try:
            found = outcome(root, damage, files)
        except Exception as err:  # the point of the test: only two kinds may come out
            lines.append(f"{damage.what}: {type(err).__name__}: {err}")
            continue
        lines += [f"{damage.what}: {what}" for what in _wrong(damage, found, whole)]
    assert count > 5
    shown = "\n".join(lines[:SHOWN])
    assert not lines, f"{len(lines)} of {count} damages:\n{shown}"


def _wrong(damage: Damage, found: Outcome, whole: Whole) -> Iterator[str]:
    must_be_found = not _is_no_fault(damage, whole[1])
    if found.values is not None and not same(found.values, whole[2]):
        yield "WRONG DATA"
    if "\n" in found.error:
        yield f"more than one line: {found.error}"
    if must_be_found and not found.faults:
        yield f"not found by verify --full (reader: {found.error or 'right'})"
    (name, *others) = damage.changes
    column, part = _place(name)
    if must_be_found and found.faults and column and not others:
        about = [fault for fault in found.faults if fault.column == column]
        if not any(part in (fault.part, "") or part in str(fault) for fault in about):
            yield f"verify does not name {column}, {part}: {found.faults[0]}"
    if found.error and "/parts/" in name and not re.search(_NAMED, found.error):
        yield f"the reader does not name column, part and repair: {found.error}"


_NAMED = r"column (image|text|latents@24), (null|part-0000[01]): .*precompute --repair"


def _place(name: str) -> tuple[str, str]:
    """Column and part that a file belongs to, as far as it does."""
    match = re.match(r"columns/([^/]+)/(?:[^/]+/(?:commits|parts)/(null|part-\d{5}))?", name)
    return (match[1], match[2] or "") if match else ("", "")


def _is_no_fault(damage: Damage, files: Files) -> bool:
    """A generation is a digest that may be lost; a part that neither it nor a record names is not there."""
    if any(content is not None for content in damage.changes.values()):
        return False
    unpublished = not any("/generations/" in name for name in files)
    return all("/generations/" in name or (unpublished and "/commits/" in name) for name in damage.changes)


def test_flipped_bytes(whole: Whole) -> None:
    """One in every file, in every other where the format itself stands."""
    rng = np.random.default_rng(0)

    def damages() -> Iterator[Damage]:
        for number, (name, content) in enumerate(whole[1].items()):
            places = landmarks(name, content) if number % 2 else range(len(content))
            yield flip(name, content, int(rng.choice(places)), int(rng.integers(1, 256)))

    assert_told(whole, damages())


def test_truncated_files(whole: Whole) -> None:
    """Every kind of file, the smallest of each."""
    chosen = ((name, whole[1][name]) for name in smallest(whole[1]))
    assert_told(whole, (damage for item in chosen for damage in truncations(*item)))


def test_missing_files(whole: Whole) -> None:
    assert_told(whole, map(deletion, smallest(whole[1])))


def test_swapped_files(whole: Whole) -> None:
    """Parts, columns and objects of one size; of the many arrays of one size, each with some others."""
    rng = np.random.default_rng(1)
    every = list(swaps(whole[1]))
    objects = [damage for damage in every if all("/parts/" in name for name in damage.changes)]
    others = [damage for damage in every if damage not in objects]
    some = [objects[number] for number in rng.permutation(len(objects))[:30].tolist()]
    assert_told(whole, others + some)


def smallest(files: Files) -> list[str]:
    """One file of each kind."""
    kinds: dict[str, str] = {}
    for name in sorted(files, key=lambda name: len(files[name])):
        kinds.setdefault(kind(name), name)
    return sorted(kinds.values())


@pytest.mark.faults
@pytest.mark.parametrize("whole", CACHES[:2], indirect=True)
def test_every_byte_of_every_kind_of_file(whole: Whole) -> None:
    def damages() -> Iterator[Damage]:
        rng = np.random.default_rng(2)
        for name in smallest(whole[1]):
            for at in range(len(whole[1][name])):
                yield flip(name, whole[1][name], at, int(rng.integers(1, 256)))

    assert_told(whole, damages())


@pytest.mark.faults
@pytest.mark.parametrize("whole", CACHES[:2], indirect=True)
def test_every_landmark_of_every_file(whole: Whole) -> None:
    """And twelve bytes more of each, with another case of letters too: hashes are hexadecimal."""
    rng = np.random.default_rng(3)

    def damages() -> Iterator[Damage]:
        for name, content in whole[1].items():
            for at in (*landmarks(name, content), *rng.integers(0, len(content), 12).tolist()):
                yield flip(name, content, at, 0x20 if rng.random() < 0.3 else int(rng.integers(1, 256)))

    assert_told(whole, damages())


@pytest.mark.faults
def test_every_file_cut_missing_or_swapped(whole: Whole) -> None:
    def damages() -> Iterator[Damage]:
        for name, content in whole[1].items():
            yield from truncations(name, content)
            yield deletion(name)
        yield from swaps(whole[1])

    assert_told(whole, damages())


def test_the_cache_has_several_parts_of_every_column(whole: Whole) -> None:
    """Otherwise the tests above would say little."""
    commits = [name for name in whole[1] if "/commits/" in name]
    assert len(commits) == 3 * -(-SAMPLES // PART_SIZE) + 2
    assert whole[2]["text counts"].max() > 1
    assert len(whole[2]["keys"]) == SAMPLES
