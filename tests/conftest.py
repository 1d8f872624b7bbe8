"""Fixtures that more than one package's tests use. Built once a session; copy a cache before changing it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.pocket import build_pocket
from tests.precompute.command import files, precompute
from tests.precompute.pictures import write_pictures
from tests.s3 import s3 as s3

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """What survives a power cut is no test's business here, and waiting for the disk is half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _ctrl_c_still_stops_pytest() -> Iterator[None]:
    """A program that ends in this process leaves Ctrl-C as it wants it for its own last moments."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pocket Kandinsky's repositories prior/ and decoder/."""
    folder = tmp_path_factory.mktemp("models") / "pocket"
    build_pocket(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 24 samples: 22 good ones, one broken, one without a caption."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def cache(pocket: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`pictures` in four parts, columns image, text and latents@64, stored in float32."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    precompute(pictures, folder, pocket, "--dtype", "fp32")
    before = files(folder)
    yield folder
    assert files(folder) == before, "a test has changed the session's cache"


@pytest.fixture(scope="session")
def cache16(pocket: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `cache`, stored in float16, the default."""
    folder = tmp_path_factory.mktemp("caches") / "cache16"
    precompute(pictures, folder, pocket)
    return folder
