"""Run `precompute` as a user does, and look at all that a cache holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from data_tools.cache import report
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from precompute import cli

COLUMNS = ("image", "text", "latents@64")


def arguments(data: Path, cache: Path | str, pocket: Path, *flags: str) -> list[str]:
    """The command line of most tests: small parts, small squares. Later flags win."""
    models = ["--prior-model", str(pocket / "prior"), "--decoder-model", str(pocket / "decoder")]
    sizes = ["--part-size", "7", "--batch-size", "4", "--workers", "2"]
    columns = [] if {"--columns", "--resolution"} & {*flags} else ["--columns", ",".join(COLUMNS)]
    return ["--data", str(data), "--cache", str(cache), *models, *sizes, *columns, *flags]


def precompute(data: Path, cache: Path | str, pocket: Path, *flags: str) -> str:
    """Run the command in this process; returns what it printed, raises what it raises."""
    command_line = arguments(data, cache, pocket, *flags)
    result = CliRunner().invoke(cli.precompute, command_line, standalone_mode=False, catch_exceptions=False)
    return result.stdout


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rows_of(reader: CacheReader, column: str) -> dict[str, np.ndarray]:
    """All rows of a column in the reader's order, gathered in one batch."""
    firsts, counts = reader.rows(column)
    rows = [np.arange(first, first + count) for first, count in zip(firsts, counts)]
    return reader.gather(column, np.concatenate(rows))


def records(root: Path | str, columns: tuple[str, ...] = COLUMNS) -> dict[str, Any]:
    """All that a finished cache says: keys, rows and null conditions of each column, and the rejects."""
    found: dict[str, Any] = {}
    for name in columns:
        reader = CacheReader(root, [name])
        found[f"{name}: keys"] = reader.key_hashes()
        found[f"{name}: counts"] = reader.rows(name)[1]
        found |= {f"{name}: {field}": value for field, value in rows_of(reader, name).items()}
        if reader.columns[name].has_null:
            found |= {f"{name}: null {field}": value for field, value in reader.null(name).items()}
        reader.close()
    found["rejected"] = np.frombuffer(json.dumps(inspect(root)["rejected"]).encode(), np.uint8)
    return found


def inspect(root: Path | str) -> dict[str, Any]:
    return report.inspect(Cache.open(open_store(root)))


def assert_same_records(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert np.array_equal(value, second[name]), name
