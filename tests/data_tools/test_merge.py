"""`data-tools merge`: every sample of every source once, with the rows of the first that lists it."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_tools.cache import check, merge, report
from data_tools.cache.merge import MergeOptions
from data_tools.cache.store import LocalStore, open_store
from data_tools.cli import cli
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import COLUMNS, build, read, same
from tests.data_tools.origins import build_of, opened, sums
from tests.data_tools.test_damage import flip, payload


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """k0…k8 in parts of 4, k6…k13 in parts of 5, k20…k22 in one; k7 and k12 rejected by the second."""
    folder = tmp_path_factory.mktemp("merge")
    lacking = frozenset({("image", "k7"), ("image", "k12"), ("text", "k12"), ("latents@24", "k20")})
    build_of(folder / "a", range(9), part_size=4)
    build_of(folder / "b", range(6, 14), part_size=5, lacking=lacking)
    build_of(folder / "c", range(20, 23), lacking=lacking)
    return [folder / name for name in "abc"]


def merged(dest: Path, sources: list[Path], **options: object) -> str:
    return merge.merge([opened(source) for source in sources], open_store(dest), MergeOptions(**options))


def keys(root: Path) -> list[str]:
    cache = opened(root)
    return [row["key"] for part in cache.plan() for row in cache.table(part)]


@pytest.mark.parametrize("part_size", [None, 1, 6, 100])
def test_every_sample_is_kept_once_and_as_it_was(
    sources: list[Path], tmp_path: Path, part_size: int | None
) -> None:
    said = merged(tmp_path / "d", sources, part_size=part_size)
    assert keys(tmp_path / "d") == [f"k{i}" for i in [*range(14), *range(20, 23)]]
    wanted: dict[tuple[str, str], dict[str, list[int]]] = {}
    for source in reversed(sources):  # the first one has the last word
        wanted |= sums(source)
    rejected = {("image", "k12"), ("text", "k12"), ("latents@24", "k20")}
    assert sums(tmp_path / "d") == {place: found for place, found in wanted.items() if place not in rejected}
    assert check.verify(opened(tmp_path / "d"), full=True).faults == []
    assert opened(tmp_path / "d").plan()[0].samples == min(part_size or 4, 17)
    assert "3 samples were in more than one source and are kept once" in said


def test_rejects_are_kept_of_the_source_that_the_sample_is_kept_from(
    sources: list[Path], tmp_path: Path
) -> None:
    merged(tmp_path / "d", sources)
    found = report.inspect(opened(tmp_path / "d"))
    assert report.count_line(found) == "17 samples found = 15 cached + 2 rejected"
    assert {reject["key"] for reject in found["rejected"]} == {"k12", "k20"}  # k7 is the first source's
    merged(tmp_path / "e", [sources[1], sources[0]])
    assert {r["key"] for r in report.inspect(opened(tmp_path / "e"))["rejected"]} == {"k7", "k12"}


def test_one_source_alone_is_a_copy(sources: list[Path], tmp_path: Path) -> None:
    merged(tmp_path / "d", sources[:1], format="webdataset", part_size=2)
    assert same(read(tmp_path / "d"), read(sources[0]))


def test_null_conditions_come_from_the_first_and_differences_are_said(
    sources: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(sources[0], tmp_path / "a2")
    said = merged(tmp_path / "d", [sources[0], tmp_path / "a2", sources[1]])
    for name in ("image", "text"):
        assert sums(tmp_path / "d")[name, ""] == sums(sources[0])[name, ""]
        assert f"null condition of {name}: from {sources[0]}; those of {sources[1]} differ" in said
    assert "bit-equal in all sources" in merged(tmp_path / "e", [sources[0], tmp_path / "a2"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": ("another",)}, r"captions \['caption 0 of 6'\] and \['another'\]"),
        ({"num_bytes": 7}, r"num_bytes 106 and 7"),
    ],
)
def test_one_key_with_two_contents_is_refused_naming_both(
    sources: list[Path], tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    build_of(tmp_path / "other", [30, 6], changes=changes)
    both = rf"{sources[0]} and {tmp_path / 'other'}"
    with pytest.raises(UserError, match=rf"^SOURCE: sample k6 is not the same in {both} \({said}\)"):
        merged(tmp_path / "d", [sources[0], tmp_path / "other"])
    assert not (tmp_path / "d").exists()


def test_a_sample_that_was_only_moved_or_touched_is_the_same(sources: list[Path], tmp_path: Path) -> None:
    build_of(tmp_path / "other", [30, 6], changes={"place": "elsewhere.png", "mtime_ns": 9})
    merged(tmp_path / "d", [sources[0], tmp_path / "other"])
    assert keys(tmp_path / "d") == [f"k{i}" for i in [*range(9), 30]]


def test_columns_made_otherwise_are_refused_with_both_places_and_the_keys(
    sources: list[Path], tmp_path: Path
) -> None:
    build_of(tmp_path / "other", [40, 41], dtype="float16")
    both = rf"{sources[0]} and {tmp_path / 'other'}"
    with pytest.raises(UserError, match=rf"^SOURCE: column image .*{both} \(dtype float32 → float16\)$"):
        merged(tmp_path / "d", [sources[0], tmp_path / "other"])
    assert not (tmp_path / "d").exists()


def test_a_column_that_one_source_lacks_is_named_and_may_be_left_out(
    sources: list[Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(sources[2], tmp_path / "other"))
    shutil.rmtree(other / "columns" / "latents@24")
    for pair in ([sources[0], other], [other, sources[0]]):
        with pytest.raises(UserError, match=rf"^SOURCE: {other} has no column latents@24; .*--columns"):
            merged(tmp_path / "d", pair)
    merged(tmp_path / "d", [sources[0], other], columns=("image", "text"))
    assert opened(tmp_path / "d").column_names() == ["image", "text"]
    assert {column for column, _ in sums(tmp_path / "d")} == {"image", "text"}


def test_a_killed_merge_resumes(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(tmp_path / "whole", sources, part_size=3)
    create, commits = LocalStore.create, 0

    def killed(self: LocalStore, name: str, data: bytes) -> bool:
        nonlocal commits
        commits += "/commits/" in name
        if commits > 5:
            raise KeyboardInterrupt
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            merged(tmp_path / "d", sources, part_size=3)
    parts = 3 * 6 + 2
    assert merged(tmp_path / "d", sources, part_size=3).endswith(f"{parts - 5} parts copied")
    assert sums(tmp_path / "d") == sums(tmp_path / "whole")
    assert merged(tmp_path / "d", sources, part_size=3).endswith("nothing to do: every part is there")
    with pytest.raises(UserError, match=r"begun by another command \(source 1 .*source 2 "):
        merged(tmp_path / "d", [sources[1], sources[0], sources[2]], part_size=3)


def test_a_damaged_source_is_named(sources: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(sources[1], tmp_path / "other"))
    flip(payload(other, "latents@24"), 40)
    with pytest.raises(DataFault, match=rf"^{other}: column latents@24, part-00001: .*--repair"):
        merged(tmp_path / "d", [sources[0], other])


def test_samples_are_told_apart_in_constant_memory_a_sample(sources: list[Path]) -> None:
    origins, repeated = merge.without_repeats([merge.copy.Origin.whole(opened(s)) for s in sources])
    assert [origin.keep.tolist() for origin in origins] == [
        [True] * 9,
        [False] * 3 + [True] * 5,
        [True] * 3,
    ]
    assert repeated == 3


def test_the_command_merges_and_names_its_mistakes(sources: list[Path], tmp_path: Path) -> None:
    arguments = ["merge", str(tmp_path / "d"), *map(str, sources)]
    result = CliRunner().invoke(cli, [*arguments, "--format", "webdataset", "--columns", "image,text"])
    assert result.exit_code == 0
    assert result.stdout.endswith(f"{tmp_path / 'd'}: 12 parts copied\n")
    assert {path.suffix for path in tmp_path.glob("d/columns/*/*/parts/*")} == {".tar", ".npz"}
    inside = CliRunner().invoke(cli, ["merge", str(sources[0] / "x"), *map(str, sources)])
    assert str(inside.exception).startswith(f"DEST: {sources[0] / 'x'} lies in {sources[0]}")
    gone = CliRunner().invoke(cli, ["merge", str(tmp_path / "e"), str(tmp_path / "gone")])
    assert str(gone.exception).startswith(f"SOURCE: {tmp_path / 'gone'} is not a cache")


def test_an_unfinished_source_waits(tmp_path: Path) -> None:
    build_of(tmp_path / "a", range(4), part_size=2, unfinished=frozenset({("text", "part-00001")}))
    build_of(tmp_path / "b", range(4, 6), part_size=2)
    said = merged(tmp_path / "d", [tmp_path / "a", tmp_path / "b"])
    assert "parts of 1 text wait for the source" in said
    found = report.inspect(opened(tmp_path / "d"))
    assert {name: found["columns"][name]["parts"] for name in COLUMNS} == {
        "image": 3,
        "text": 2,
        "latents@24": 3,
    }
    assert (found["cached"], found["pending"]) == (4, 2)


def test_build_of_makes_the_samples_asked_for(tmp_path: Path) -> None:
    made = build_of(tmp_path / "a", [7, 5])
    assert keys(tmp_path / "a") == ["k7", "k5"]
    assert made.keys() == build(tmp_path / "b", count=2).keys()
