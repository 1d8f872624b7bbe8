"""Not a cache, half a cache, a newer format, another identity: one line that says so, and nothing touched."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.cache.manifest import VERSION
from data_tools.cli import cli
from precompute.cli import precompute as command
from tests.data_tools.test_console import end
from tests.faults.damage import load
from tests.precompute.command import arguments, precompute
from tests.train import runs

COMMANDS = {
    "inspect": "inspect {bad}",
    "inspect --json": "inspect {bad} --json",
    "verify": "verify {bad}",
    "verify --full": "verify {bad} --full",
    "gc": "gc {bad} --older-than 0",
    "convert": "convert {bad} {new}",
    "merge first": "merge {new} {bad} {good}",
    "merge second": "merge {new} {good} {bad}",
    "export": "export {bad} {new}",
}
READERS = ("export", "train-prior", "train-decoder")
COPIERS = ("convert", "merge first", "merge second")
LOOKERS = ("inspect", "inspect --json", "verify", "verify --full")
EVERY = (*COMMANDS, "train-prior", "train-decoder")
Ended = tuple[int, str, list[str]]
"Exit code, stdout, lines of stderr."


def nothing(bad: Path) -> None:
    shutil.rmtree(bad)


def folder_of_others(bad: Path) -> None:
    nothing(bad)
    bad.mkdir()
    (bad / "notes.txt").write_text("mine")


def file(bad: Path) -> None:
    nothing(bad)
    bad.write_text("mine")


def unreadable(bad: Path) -> None:
    (bad / "cache.json").write_bytes(b"\xff\x00")


def newer(bad: Path) -> None:
    (bad / "cache.json").write_text(f'{{"format": "kandinsky-cache", "version": {VERSION + 1}}}')


def unplanned(bad: Path) -> None:
    for name in ("plans", "samples", "columns"):
        shutil.rmtree(bad / name)


def unencoded(bad: Path) -> None:
    shutil.rmtree(bad / "columns")


def unfinished(bad: Path) -> None:
    for path in (*bad.glob("columns/*/*/generations/*"), *bad.glob("columns/*/*/commits/part-00001.json")):
        path.unlink()


def without_null(bad: Path) -> None:
    for path in (*bad.glob("columns/*/*/generations/*"), *bad.glob("columns/*/*/commits/null.json")):
        path.unlink()


NO_CACHE = r"{bad} is not a cache \(it has no cache\.json\)$"
NO_JSON = r"{bad}: cache\.json is not readable JSON$"
VERSIONS = rf"{{bad}} has format version {VERSION + 1}, this program reads {VERSION}$"
NO_PLAN = r"{bad} has no plan yet; run precompute$"
NOTHING_YET = r"{bad}:? has no (plan yet|columns?|latents)\b.*precompute"
CASES: list[tuple[Callable[[Path], None], tuple[str, ...], str]] = [
    (nothing, EVERY, NO_CACHE),
    (folder_of_others, EVERY, NO_CACHE),
    (file, EVERY, NO_JSON),
    (unreadable, (*EVERY, "precompute"), NO_JSON),
    (newer, (*EVERY, "precompute"), VERSIONS),
    (unplanned, LOOKERS, NO_PLAN),
    (unplanned, (*COPIERS, *READERS), NOTHING_YET),
    (unencoded, (*COPIERS, *READERS), NOTHING_YET),
    (unfinished, READERS, r"{bad} is unfinished: column image lacks part-00001; run precompute again"),
    (without_null, ("export",), r"{bad} is unfinished: column image lacks null; run precompute again"),
]


@pytest.fixture
def run(
    cache: Path,
    pictures: Path,
    pocket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Ended]:
    """Any of the commands at {bad}, as a program."""

    def run(name: str) -> Ended:
        bad, new = tmp_path / "bad", tmp_path / "new"
        if name.startswith("train-"):
            ended = runs.program(name.removeprefix("train-"), *runs.arguments(bad, new))
            return ended.code, ended.stdout, ended.lines
        if name == "precompute":
            code, out, err = end(command, arguments(pictures, bad, pocket), monkeypatch, capsys)
        else:
            words = [word.format(bad=bad, new=new, good=cache) for word in COMMANDS[name].split()]
            code, out, err = end(cli, words, monkeypatch, capsys)
        return code, out, err.splitlines()

    return run


@pytest.fixture
def bad(cache: Path, tmp_path: Path) -> Path:
    """A copy of a sound cache, to be spoiled."""
    return Path(shutil.copytree(cache, tmp_path / "bad"))


@pytest.mark.parametrize(("spoil", "names", "line"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_it_is_refused_in_one_line_and_nothing_is_touched(
    bad: Path,
    tmp_path: Path,
    run: Callable[[str], Ended],
    spoil: Callable[[Path], None],
    names: tuple[str, ...],
    line: str,
) -> None:
    spoil(bad)
    before = load(tmp_path)
    for name in names:
        code, out, lines = run(name)
        assert (code, out, len(lines)) == (2, "", 1), (name, lines)
        assert re.match(rf"((--cache|CACHE|SOURCE): )?{line.format(bad=re.escape(str(bad)))}", lines[0]), (
            name,
            lines,
        )
        assert load(tmp_path) == before, name
        assert not (tmp_path / "new").exists(), name


@pytest.mark.parametrize("spoil", [unencoded, unfinished, without_null])
def test_half_a_cache_can_be_looked_at_and_stays_as_it_is(
    bad: Path, run: Callable[[str], Ended], spoil: Callable[[Path], None]
) -> None:
    spoil(bad)
    before = load(bad)
    for name in LOOKERS:
        code, out, lines = run(name)
        assert (code, lines) == (0, []), (name, lines)
        if name.startswith("verify") and spoil is not unencoded:
            assert re.search(r"no faults; [23] parts still to encode", out)
        if name == "inspect --json":
            assert '"complete": false' in out
        assert load(bad) == before, name


def test_half_a_cache_loses_in_gc_only_what_is_not_committed(bad: Path, run: Callable[[str], Ended]) -> None:
    unfinished(bad)
    before = load(bad)
    assert run("gc")[0] == 0
    gone = before.keys() - load(bad).keys()
    assert gone
    assert all("/parts/part-00001-" in name for name in gone)


def test_caches_of_another_identity_are_not_merged_and_both_are_named(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path, run: Callable[[str], Ended]
) -> None:
    precompute(pictures, tmp_path / "bad", pocket, "--dtype", "bf16")
    before = load(tmp_path)
    for name, order in (
        ("merge first", (tmp_path / "bad", cache)),
        ("merge second", (cache, tmp_path / "bad")),
    ):
        code, out, lines = run(name)
        assert (code, out, len(lines)) == (2, "", 1)
        assert lines[0].startswith("SOURCE: column ")
        assert lines[0].index(str(order[0])) < lines[0].index(str(order[1]))
        assert re.search(r"dtype (bfloat16 → float32|float32 → bfloat16)", lines[0])
        assert load(tmp_path) == before


def test_another_identity_is_not_encoded_into_a_cache(bad: Path, run: Callable[[str], Ended]) -> None:
    """The cache holds float32, the command would store float16."""
    before = load(bad)
    code, out, lines = run("precompute")
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"--cache: {bad}: column image was made otherwise (dtype float32 → float16")
    assert load(bad) == before
