"""This checkout is what is tested, and its files and functions stay small."""

import ast
import configparser
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_tools", "precompute", "train")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_checkout(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).resolve() == ROOT / package / "__init__.py"


def test_every_package_has_an_init_file() -> None:
    folders = {path.parent for path in MODULES}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_files_stay_under_300_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length >= 300}
    assert long == {}


def test_functions_stay_under_60_lines() -> None:
    long = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length >= 60:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}


def test_extras_named_to_users_are_there() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    named = set(re.findall(r"kandinsky-cache\[(\w+)\]", source))
    assert named >= {"slurm", "ray", "xformers"}
    assert named <= {*config["options.extras_require"]}
