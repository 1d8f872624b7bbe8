"""Encoded rows against stored ones, number by number, and how far apart they may be.

The distance of a number is its absolute error as a share of the RMS of its row, or of the stored number
itself where that is larger: CLIP's states have a few numbers a hundred times as large as the others, and
rounding is relative to each number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.cast import to_float32
from data_tools.cache.fields import Row
from data_tools.cache.records import ColumnRecords
from data_tools.errors import DataFault
from data_tools.sources import Sample
from precompute.encoders import Encoder
from precompute.options import EncoderOptions

ULP = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"Between neighbours just above 1."
TF32 = 2.0**-10
"The same of CUDA's convolutions in float32."
STORED = 2
"Ulps: two numbers that hardly differ may be rounded to neighbours, up or down."
COMPUTED = {"float32": 256, "float16": 16, "bfloat16": 16}
"""Ulps of the encoders' own arithmetic: other batch shapes and other hardware add up in another order. Random
weights at full depth on a CPU, against float64: MoVQ is off by 64 in float32, CLIP by 8 in the 16-bit formats
and MoVQ by 6 in bfloat16. The limit is twice that, as two runs may differ, and twice more in float32."""
SHOWN = 5
"Keys in a line."


def default_tolerance(options: EncoderOptions) -> float:
    """The largest distance of equal encoders: some ulps of the stored dtype and some of their arithmetic."""
    computed = COMPUTED[options.precision] * ULP[options.precision]
    if options.precision == "float32" and options.device.startswith("cuda"):
        computed = COMPUTED["float16"] * TF32
    return STORED * ULP[options.dtype] + computed


@dataclass
class Errors:
    """Of one field, over all rows that were compared."""

    rows: int = 0
    numbers: int = 0
    squares: float = 0.0
    "Sum over the stored numbers."
    total: float = 0.0
    "Sum of the absolute errors."
    largest: float = 0.0
    "Absolute error."
    distance: float = 0.0
    "The largest one; see above."
    worst: str = ""
    "Whose that is."

    def add(self, what: str, stored: NDArray[Any], made: NDArray[Any], dtype: str) -> None:
        """Another row, of any shape, both in stored dtype. Raises `ValueError` if the shapes differ."""
        if stored.shape != made.shape:
            raise ValueError(f"stored is {stored.shape}, made {made.shape}")
        if not stored.size:
            return
        old = to_float32(stored, dtype).astype(np.float64)
        error = np.abs(to_float32(made, dtype) - old)
        scale = np.maximum(np.abs(old), np.sqrt(np.mean(old**2)))
        distance = float(np.max(error / np.maximum(scale, np.finfo(np.float32).tiny)))
        self.rows += 1
        self.numbers += old.size
        self.squares += float(np.sum(old**2))
        self.total += float(error.sum())
        self.largest = max(self.largest, float(error.max()))
        if distance > self.distance or not self.worst:
            self.distance, self.worst = distance, what

    def to_json(self) -> dict[str, Any]:
        count = max(self.numbers, 1)
        return {
            "rows": self.rows,
            "rms": (self.squares / count) ** 0.5,
            "largest_error": self.largest,
            "mean_error": self.total / count,
            "largest_relative_error": self.distance,
            "worst": self.worst,
        }


@dataclass
class Comparison:
    """Of one column. In the pipeline it stands where a run has a writer."""

    encoder: Encoder
    records: ColumnRecords
    rows: dict[int, range] = field(default_factory=dict)
    "The stored rows of the samples under way, by position."
    samples: int = 0
    errors: dict[str, Errors] = field(default_factory=dict)
    "Field → its errors."
    refused: dict[str, str] = field(default_factory=dict)
    "What is stored, but can no longer be encoded → why."
    encode_seconds: float = 0.0

    def add(self, sample_index: int, key: str, rows: list[Row]) -> None:
        """What the encoder makes of a sample now. Raises `DataFault` if that has another shape."""
        self.compare(f"sample {key!r}", rows, self.rows.pop(sample_index))
        self.samples += 1

    def reject(self, sample: Sample, reason: str) -> None:
        """A stored sample that cannot be encoded now."""
        self.refused[f"sample {sample.key!r}"] = reason

    def compare(self, what: str, rows: Sequence[Row], stored: range) -> None:
        """Rows with the stored ones of these numbers."""
        column = self.encoder.column
        if len(rows) != len(stored):
            raise DataFault(
                f"--audit: {column.name} of {what}: {len(stored)} rows are stored, {len(rows)} made"
            )
        for number, row in zip(stored, rows):
            found = self.records.gather(np.array([number]))
            for about in column.fields:
                errors = self.errors.setdefault(about.name, Errors())
                try:
                    about.check(row[about.name])
                except ValueError as err:  # NaN or infinity
                    self.refused[what] = str(err)
                    continue
                try:
                    errors.add(what, found[about.name][0], row[about.name], about.dtype)
                except ValueError as err:
                    raise DataFault(f"--audit: {column.name}, {about.name} of {what}: {err}") from None


def faults(columns: dict[str, Comparison], tolerance: float) -> Iterator[str]:
    """What is wrong, in words: a field that is too far off, what cannot be encoded any more."""
    for name, each in columns.items():
        for about, errors in each.errors.items():
            if errors.distance > tolerance:
                yield (
                    f"{name}, {about} of {errors.worst} is off by {errors.distance:.2g} of its RMS, "
                    f"wanted at most {tolerance:.2g}"
                )
        for what, reason in [*each.refused.items()][:1]:
            yield f"{name}: {what} is stored but cannot be encoded again ({reason})"


def as_table(columns: dict[str, Comparison], tolerance: float) -> list[str]:
    """A line for each field."""
    heads = ("samples", "rows", "RMS", "largest error", "mean error", "largest/RMS", "tolerance")
    lines = [f"{'column':<40}" + "".join(f"{head:>15}" for head in heads)]
    for name, each in columns.items():
        for about, errors in each.errors.items():
            found = errors.to_json()
            numbers = [found[key] for key in ("rms", "largest_error", "mean_error", "largest_relative_error")]
            cells = [f"{each.samples}", f"{errors.rows}", *(f"{n:.3g}" for n in (*numbers, tolerance))]
            lines.append(f"{f'{name}, {about}':<40}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def as_json(columns: dict[str, Comparison], gone: list[str], tolerance: float) -> dict[str, Any]:
    """The same as plain JSON values, and the keys of what was left out."""
    found = {
        name: {
            "samples": each.samples,
            "fields": {about: errors.to_json() for about, errors in each.errors.items()},
            "refused": each.refused,
        }
        for name, each in columns.items()
    }
    within = not any(faults(columns, tolerance))
    return {"tolerance": tolerance, "within_tolerance": within, "columns": found, "not_as_cached": gone}


def shown(keys: Sequence[str]) -> str:
    """Some keys, for a line."""
    return ", ".join(keys[:SHOWN]) + f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN)
