"""`data-tools` as a program: exit codes, one line for each mistake, no bar on short work, nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import console
from data_tools.cli import cli
from tests.data_tools.caches import build
from tests.data_tools.test_console import end
from tests.data_tools.test_damage import payload

ROOT = Path(__file__).parents[2]
COMMANDS = ("inspect", "verify", "gc", "convert", "merge", "export", "demo-data")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "cache"
    build(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["verify", "gone"], "CACHE: gone is not a cache"),
        (["gc", "gone"], "CACHE: gone is not a cache"),
        (["gc", "{cache}", "--older-than", "-1"], "--older-than: -1.0 is not in the range"),
        (["convert", "{cache}"], "DEST: missing"),
        (["convert", "gone", "{new}"], "SOURCE: gone is not a cache"),
        (["convert", "{cache}", "{cache}"], "DEST: {cache} lies in {cache}"),
        (["convert", "{cache}", "{new}", "--dtype", "int8"], "--dtype: 'int8' is not one of"),
        (["convert", "{cache}", "{new}", "--part-size", "0"], "--part-size: 0 is not in the range"),
        (["convert", "{cache}", "{new}", "--format", "zarr", "--tar-block", "2"], "--tar-block: is for"),
        (["convert", "{cache}", "ftp://x/y"], "DEST: found ftp://x/y, wanted a folder"),
        (["merge", "{new}"], "SOURCE...: missing"),
        (["merge", "{new}", "{cache}", "gone"], "SOURCE: gone is not a cache"),
        (["merge", "{new}", "{cache}", "--columns", "mask"], "SOURCE: {cache} has no column mask"),
        (["export", "{cache}", "{new}", "--columns", "mask"], "--columns: {cache} has no column 'mask'"),
        (["export", "{cache}", "{cache}"], "DEST: {cache} is neither empty nor begun by this command"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str],
    beginning: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"cache": str(cache), "new": str(tmp_path / "new")}
    before = sorted(cache.rglob("*"))
    code, out, err = end(cli, [word.format(**names) for word in arguments], monkeypatch, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(beginning.format(**names))
    assert not (tmp_path / "new").exists()
    assert sorted(cache.rglob("*")) == before


def test_short_work_shows_no_bar_and_ends_with_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["verify", str(cache), "--full"],
        ["gc", str(cache), "--dry_run", "--older_than", "1"],
        ["convert", str(cache), str(tmp_path / "c"), "--tar_block", "0"],
        ["export", str(cache), str(tmp_path / "e")],
    ):
        code, out, err = end(cli, arguments, monkeypatch, capsys)
        assert (code, out.count("\n"), err) == (0, 1, "")


def test_faults_are_lines_on_stdout_and_the_summary_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path)
    for column in ("image", "text"):
        payload(tmp_path, column).unlink()
    code, out, err = end(cli, ["verify", str(tmp_path)], monkeypatch, capsys)
    assert (code, out.count("\n"), err.count("\n")) == (1, 2, 1)
    assert "precompute --repair" in err


def test_every_command_has_help_and_none_imports_torch() -> None:
    assert tuple(cli.commands) == COMMANDS
    probe = (
        "import sys; from data_tools.cli import cli\n"
        "from data_tools.cache import check, convert, export, gc, merge, report\n"
        "assert not {'torch', 'zarr', 'webdataset', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)
    for command in cli.commands.values():
        assert command.help
        assert len(command.help.splitlines()[0]) < 120
    assert console.CONTEXT["max_content_width"] == 110
