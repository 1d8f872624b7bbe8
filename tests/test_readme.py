"""What README.md and the Makefile say is so: flags, files, commands."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from data_tools.cli import cli
from precompute.cli import precompute
from train.decoder import train_decoder
from train.prior import train_prior

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "precompute": precompute,
    "train-prior": train_prior,
    "train-decoder": train_decoder,
    **{f"data-tools {name}": command for name, command in cli.commands.items()},
}


def commands_of(text: str) -> list[str]:
    """Shell commands of ours in a text, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(precompute|train-\w+|data-tools) ", line)]


def flags_of(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}


def named(line: str) -> click.Command:
    return next(command for name, command in COMMANDS.items() if line.startswith(name))


@pytest.mark.parametrize(
    "line", commands_of(README.split("```bash")[1]) + commands_of(Path(ROOT / "Makefile").read_text())
)
def test_every_flag_of_a_command_shown_to_users_exists(line: str) -> None:
    unknown = set(re.findall(r"--[a-z0-9-]+", line)) - flags_of(named(line))
    assert not unknown


def test_flags_named_in_the_readme_exist_somewhere() -> None:
    known = set().union(*(flags_of(command) for command in COMMANDS.values()))
    of_others = {"--help", "--nproc-per-node", "--use-fsdp", "--use-deepspeed"}
    named = re.findall(r"`[^`\n]*?(--[a-z][a-z0-9_-]+)", README)
    assert {flag.replace("_", "-") for flag in named} <= known | of_others


def test_readme_is_at_most_200_lines_and_starts_with_the_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    commands = [line.split("#")[0].strip() for line in lines if line.startswith("    make")]
    assert commands[:2] == ["make demo", "make test"]


def test_the_file_tree_lists_every_source_file_and_no_other() -> None:
    tree = (ROOT / "docs" / "code.md").read_text(encoding="utf-8").split("```")[1]
    listed = set(re.findall(r"[a-z_]+\.py", tree))
    files = [p for name in ("data_tools", "precompute", "train") for p in (ROOT / name).rglob("*.py")]
    assert listed - {"online.py", "hub_server.py"} == {p.name for p in files if not p.name.startswith("__")}


def test_make_help_lists_every_target_with_a_word() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "help"], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    shown = done.stdout
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {line.split()[1] for line in shown.splitlines()} == set(targets)
    assert {"demo", "test", "lint", "help"} <= set(targets)
