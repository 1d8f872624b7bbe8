"""Several sources as one, a choice of samples, and keys that are the same in two of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.sources import Sample, SourceOptions, Unusable, open_source
from data_tools.sources.several import Several
from tests.data_tools.tars import pictures, tar


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Two folders, three pictures and then two."""
    for name in ("one/a.png", "one/b.png", "one/c.png", "two/d.png", "two/sub/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(f"in {name}".encode())
    return [str(tmp_path / "one"), str(tmp_path / "two")]


@dataclass
class Listed:
    """A source of the given keys that cannot tell how many."""

    keys: list[str]
    count: int | None = None
    gone_through: int = field(default=0)

    def __iter__(self) -> Iterator[Sample]:
        for key in self.keys:
            self.gone_through += 1
            yield Sample(key, (), f"place of {key}", 1, 0)

    def read(self, sample: Sample) -> bytes:
        return sample.key.encode()


def keys_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "keys.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_sources_follow_each_other_and_keep_their_keys(data: list[str]) -> None:
    source = open_source(data)
    samples = list(source)
    assert [(s.key, s.source) for s in samples] == [
        ("a.png", 0), ("b.png", 0), ("c.png", 0), ("d.png", 1), ("sub/a.png", 1)
    ]  # fmt: skip
    assert source.count == 5
    assert [source.read(sample) for sample in samples[2:4]] == [b"in one/c.png", b"in two/d.png"]
    assert samples[:3] == list(open_source(data[:1]))


def test_a_key_in_two_sources_is_one_line_that_names_both(data: list[str]) -> None:
    (Path(data[1]) / "b.png").write_bytes(b"another")
    both = (
        rf"^--data: the key 'b\.png' comes twice, from {data[0]} \(b\.png\) and from {data[1]} \(b\.png\); "
    )
    with pytest.raises(UserError, match=both):
        list(open_source(data))


def test_a_key_that_comes_twice_in_one_source_names_both_places(tmp_path: Path) -> None:
    source = Several((Listed(["a", "b"]), Listed(["c", "d", "c"])), ("x", "y"))
    with pytest.raises(UserError, match=r"'c' comes twice, from y \(place of c\) and from y \(place of c\);"):
        list(source)


def test_the_advice_fits_what_clashes(data: list[str], tmp_path: Path) -> None:
    def advice(*sources: object) -> str:
        with pytest.raises(UserError, match="comes twice, from ") as failure:
            list(open_source([str(source) for source in sources]))
        return str(failure.value).rpartition("; ")[2]

    assert advice(data[0], f"{tmp_path}/./one/") == "give the same --data once"
    members = [(f"{key}.{end}", b"x") for end in ("jpg", "txt") for key in "ab"]
    ungrouped = tar(tmp_path / "0.tar", members)
    assert advice(ungrouped) == "what belongs to one sample must follow each other in a tar or a table"
    other = tar(tmp_path / "1.tar", pictures("b"))
    assert advice(tar(tmp_path / "2.tar", pictures("b")), other).startswith("of two folders")


def test_what_is_wrong_with_two_files_of_one_name_takes_a_number(tmp_path: Path) -> None:
    tars = [tar(tmp_path / name / "0.tar", pictures(name)) for name in "abc"]
    for path in tars:
        path.write_bytes(path.read_bytes()[:2048])
    said = "tar: cut short: there is no end mark"
    samples = list(open_source([str(path) for path in tars]))
    assert [sample.key for sample in samples] == ["a", "0.tar", "b", "0.tar (2)", "c", "0.tar (3)"]
    assert [(s.source, s.place, s.problem) for s in samples[1::2]] == [(n, "0.tar", said) for n in range(3)]
    assert not any(str(tmp_path) in sample.key for sample in samples)


def test_samples_of_one_key_are_not_numbered_though_they_cannot_be_used(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.txt", b"x"), ("b.jpg", b"x"), ("a.txt", b"x")])
    with pytest.raises(UserError, match="the key 'a' comes twice"):
        list(open_source([str(path)]))


@pytest.mark.parametrize("content", [b"", b"<html>" * 200, bytes(10240)], ids=["empty", "html", "no members"])
@pytest.mark.parametrize("first", [True, False])
def test_a_tar_that_cannot_be_used_is_one_sample_beside_others(
    data: list[str], tmp_path: Path, content: bytes, first: bool
) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(content)
    both = [str(bad), data[1]] if first else [data[1], str(bad)]
    found = {sample.key: sample.problem for sample in open_source(both)}
    assert found.pop("bad.tar").startswith("tar: ")
    assert found == {"d.png": "", "sub/a.png": ""}


def test_tars_of_which_none_can_be_used_are_one_line(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("0.tar", "1.tar")]
    for name in names:
        Path(name).touch()
    said = rf"^--data: {names[0]}: no picture found that can be used; 0\.tar: tar: empty"
    with pytest.raises(UserError, match=said):
        list(open_source(names))


@pytest.mark.parametrize(
    "missing", ["{there}/1.tar", "memory://nowhere/1.tar", "memory://nowhere/{{1,2}}.tar"]
)
def test_a_tar_that_is_not_there_is_an_error_beside_others_too(
    data: list[str], tmp_path: Path, missing: str
) -> None:
    with pytest.raises(UserError, match=r"^--data: .*: no such file: .*1\.tar( \(nor any other of the 2 |$)"):
        list(open_source([data[0], missing.format(there=tmp_path)]))


def test_keys_that_differ_only_in_case_or_in_form_are_two(tmp_path: Path) -> None:
    keys = ["A.png", "a.png", "é.png", "e\u0301.png", "a\0.png"]
    assert [sample.key for sample in Several((Listed(keys),), ("x",))] == keys


def test_max_samples_are_the_first_and_no_more_is_listed(data: list[str]) -> None:
    source = open_source(data, max_samples=4)
    assert ([sample.key for sample in source], source.count) == (["a.png", "b.png", "c.png", "d.png"], 4)
    assert open_source(data, max_samples=9).count == 5
    listed = Listed(list("abcdef"))
    assert len(list(Several((listed,), ("x",), max_samples=2))) == listed.gone_through == 2


def test_the_count_is_unknown_if_one_source_cannot_tell() -> None:
    known = Listed(["a"], count=1)
    assert Several((known, Listed(["b"])), ("x", "y")).count is None
    assert Several((known, Listed(["b"], count=1)), ("x", "y")).count == 2


@pytest.mark.parametrize("text", ["sub/a.png\nb.png\n", "\ufeffb.png\r\n\r\nsub/a.png\r\nb.png"])
def test_selected_keys_come_in_the_order_of_the_sources(data: list[str], tmp_path: Path, text: str) -> None:
    source = open_source(data, select=keys_file(tmp_path, text))
    assert [(s.key, s.source) for s in source] == [("b.png", 0), ("sub/a.png", 1)]
    assert source.count == 2
    first = open_source(data, select=keys_file(tmp_path, text), max_samples=1)
    assert ([s.key for s in first], first.count) == (["b.png"], 1)


def test_selected_keys_that_are_nowhere_are_counted_with_an_example(data: list[str], tmp_path: Path) -> None:
    path = keys_file(tmp_path, "a.png\nz.png\ny y.png\n")
    source = open_source(data, select=path)
    with pytest.raises(
        UserError, match=rf"^--select: {path}: 2 of 3 keys are not in --data, for example 'y y\.png'$"
    ):
        list(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [("\n\r\n", "found no key"), (b"a\xff\n", "not UTF-8"), (None, "cannot be read: No such")],
)
def test_a_select_file_that_is_none_is_one_line(
    data: list[str], tmp_path: Path, text: str | bytes | None, said: str
) -> None:
    path = tmp_path / "gone.txt" if text is None else keys_file(tmp_path, text)
    with pytest.raises(UserError, match=rf"^--select: {path}: {said}"):
        open_source(data, select=path)


def test_a_sample_with_a_problem_is_not_read() -> None:
    source = Several((Listed(["a"]),), ("x",))
    (sample,) = source
    assert source.read(sample) == b"a"
    with pytest.raises(Unusable, match=r"^why$"):
        source.read(replace(sample, problem="why"))


def test_options_reach_every_source(data: list[str]) -> None:
    for name, picture in zip(data, ("a", "d")):
        (Path(name) / f"{picture}.txt").write_text("1\n2\n")
    captions = {s.key: s.captions for s in open_source(data, SourceOptions(caption_lines=True))}
    assert captions["a.png"] == captions["d.png"] == ("1", "2")
