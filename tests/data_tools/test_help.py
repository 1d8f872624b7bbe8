"""`--help` of every command answers at once, because nothing heavy is imported for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("data_tools", "precompute", "train.prior", "train.decoder")
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "matplotlib")
PROBE = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
except SystemExit as stopped:
    print("exit code", stopped.code, "after importing", *sorted(set(sys.modules) & {%s}))
"""


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """User and system time of a subprocess that must succeed, and what it printed."""
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return spent, done.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_within_half_a_second(module: str) -> None:
    runs = [cpu_seconds([sys.executable, "-m", module, "--help"]) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.5
    assert runs[0][1].startswith("Usage: ")


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_nothing_heavy(module: str) -> None:
    probe = PROBE % ", ".join(repr(name) for name in HEAVY)
    _, printed = cpu_seconds([sys.executable, "-c", probe, module])
    assert "Usage: " in printed
    assert printed.splitlines()[-1].strip() == "exit code 0 after importing"
