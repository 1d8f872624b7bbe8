"""Small webdataset tars, and what a source of them lists."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from data_tools.sources.sample import Sample, SourceOptions
from data_tools.sources.tars import TarSource


def tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def pictures(*keys: str) -> list[tuple[str, bytes]]:
    return [
        item
        for key in keys
        for item in ((f"{key}.jpg", f"picture {key}".encode()), (f"{key}.txt", key.encode()))
    ]


def opened(data: object, **options: object) -> TarSource:
    return TarSource.open(str(data), SourceOptions(**options))  # type: ignore[arg-type]


def listing(data: object, **options: object) -> dict[str, Sample]:
    samples = list(opened(data, **options))
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.key: sample for sample in samples}


def readable(data: object, **options: object) -> dict[str, bytes]:
    source = opened(data, **options)
    return {sample.key: source.read(sample) for sample in source if not sample.problem}


def problems(data: object, **options: object) -> dict[str, str]:
    return {key: sample.problem for key, sample in listing(data, **options).items() if sample.problem}
