"""Fixtures of the trainers' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train import runs


@pytest.fixture(scope="session")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of an uninterrupted run of each trainer with `runs.STANDARD`. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    return {kind: runs.train(kind, cache, folder / kind, *runs.STANDARD) for kind in runs.KINDS}


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    runs.forget_accelerator()
