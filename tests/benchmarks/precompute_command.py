"""`precompute` in this process, as a user gives it, and what it says at its end."""

import json
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any


def arguments(data: Path, models: Path, cache: Path, columns: Sequence[str], *flags: object) -> list[str]:
    places = {"--data": data, "--cache": cache, "--columns": ",".join(columns)}
    places |= {"--prior-model": models / "prior", "--decoder-model": models / "decoder"}
    return [*(str(word) for pair in places.items() for word in pair), *map(str, flags), "--json"]


def run(given: list[str]) -> dict[str, Any]:
    """The closing JSON and `wall`, seconds of the whole command; `seconds` are of encoding and writing."""
    from precompute import cli

    said, started = StringIO(), time.perf_counter()
    with redirect_stdout(said), redirect_stderr(StringIO()):
        cli.precompute.main(given, prog_name="precompute", standalone_mode=False)
    return {**json.loads(said.getvalue()), "wall": time.perf_counter() - started}
