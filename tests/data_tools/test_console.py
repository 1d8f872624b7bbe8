"""How commands end: one line on stderr, exit code 2 for the user's mistakes and 1 for faults in the data."""

import sys
from pathlib import Path

import click
import pytest

from data_tools import console
from data_tools.cli import cli
from data_tools.errors import DataFault, UserError
from precompute.cli import precompute
from tests.data_tools.caches import build


@click.command(name="sample", context_settings=console.CONTEXT)
@click.option("--train-data-dir", required=True)
@click.option("--mode", type=click.Choice(["plain", "user", "data", "file", "stop", "bug"]), default="plain")
@click.option("--count", type=click.IntRange(min=1), default=1)
def sample(train_data_dir: str, mode: str, count: int) -> None:
    """Ends as it is told."""
    if mode == "user":
        raise UserError("--train-data-dir: nothing there")
    if mode == "data":
        raise DataFault("--cache: part-00000 is damaged")
    if mode == "file":
        Path(train_data_dir, "gone.txt").read_text()
    if mode == "stop":
        raise KeyboardInterrupt
    if mode == "bug":
        raise ZeroDivisionError
    click.echo(f"{train_data_dir} {count}")


def end(
    command: click.Command,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command started with these arguments."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as stopped:
        console.run(command)
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--mode", "user"], 2, "--train-data-dir: nothing there"),
        (["--mode", "data"], 1, "--cache: part-00000 is damaged"),
        (["--mode", "file"], 2, "here/gone.txt: no such file or directory"),
        (["--mod", "user"], 2, "--mod: no such option; did you mean --mode?"),
        (["--quiet"], 2, "--quiet: no such option; see --help"),
        (
            ["--mode", "loud"],
            2,
            "--mode: 'loud' is not one of 'plain', 'user', 'data', 'file', 'stop', 'bug'",
        ),
        (["--count", "0"], 2, "--count: 0 is not in the range x>=1"),
        (["--count", "many"], 2, "--count: 'many' is not a valid integer range"),
        (["--count"], 2, "--count: Option '--count' requires an argument"),
        (["stray"], 2, "stray: unexpected argument; see --help"),
    ],
)
def test_every_bad_end_is_one_line_that_begins_with_the_flag_or_file(
    arguments: list[str],
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command_line = ["--train-data-dir", "here", *arguments]
    assert end(sample, command_line, monkeypatch, capsys) == (code, "", line + "\n")


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = end(sample, ["--train-data-dir", "here", "--mode", "stop"], monkeypatch, capsys)
    assert (code, out) == (130, "")  # the line break is click's, after the terminal's ^C
    assert err == "\ninterrupted; the same command continues where this one stopped\n"


def test_a_missing_flag_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(sample, [], monkeypatch, capsys) == (2, "", "--train-data-dir: missing; see --help\n")
    code, _, err = end(precompute, ["--cache", "x"], monkeypatch, capsys)
    assert (code, err) == (2, "--data: missing; see --help\n")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--train-data-dir", "here", "--mode", "bug"])
    with pytest.raises(ZeroDivisionError):
        console.run(sample)


@pytest.mark.parametrize(
    "arguments",
    [["--train-data-dir", "a_b/c", "--count", "2"], ["--train_data_dir=a_b/c", "--count=2"]],
)
def test_underscores_are_dashes_in_flags_and_stay_in_values(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(sample, arguments, monkeypatch, capsys) == (0, "a_b/c 2\n", "")


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["inspect", "gone"], "CACHE: gone is not a cache"),
        (["inspect"], "CACHE: missing"),
        (["inspct", "x"], "No such command 'inspct'"),
        (["demo-data", "x", "--count", "2"], "--count: 2 is not in the range x>=8"),
    ],
)
def test_data_tools_names_what_is_wrong(
    arguments: list[str], beginning: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = end(cli, arguments, monkeypatch, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(beginning)


def test_inspect_of_a_damaged_cache_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path)
    (commit,) = tmp_path.glob("columns/text/*/commits/part-00000.json")
    commit.write_text("")
    code, out, err = end(cli, ["inspect", str(tmp_path)], monkeypatch, capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(commit) in err
