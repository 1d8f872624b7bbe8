"""The cluster that all tests of a session share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster, missing


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Two nodes."""
    if missing():
        pytest.skip(f"Slurm cannot be started here, it lacks {', '.join(missing())}; run make test-slurm")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge wants a path that all may enter
    folder.chmod(0o755)
    with cluster(folder) as made:
        yield made
    shutil.rmtree(folder)
