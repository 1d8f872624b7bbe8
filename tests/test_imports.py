"""The import table of the design: who may import whom, wherever in a file the import stands."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_tools", "precompute", "train")
NEVER = {
    "data_tools": {"torch", "diffusers", "transformers", "accelerate", "precompute", "train", "tests"},
    "precompute": {"train", "tests"},
    "train": {"precompute", "transformers", "tests"},
}
PREVIEWS = {("train/preview.py", "transformers")}
"Asked-for previews run the whole pipeline; they are the exception that the design makes."


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports; a relative import is '.'."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        name = path.relative_to(ROOT).as_posix()
        wrong = {found for found in imported(path) & NEVER[package] if (name, found) not in PREVIEWS}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_import_is_relative(package: str) -> None:
    assert [path for path in modules(package) if "." in imported(path)] == []
