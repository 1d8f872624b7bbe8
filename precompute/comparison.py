"""Encoded rows against stored ones, number by number, and how far apart they may be.

The distance of a number is its absolute error as a share of the RMS of its row, or of the stored number
itself where that is larger: CLIP's states have a few numbers a hundred times as large as the others, and
rounding is relative to each number. A row's mean distance is the mean of its errors as a share of its RMS.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.cast import to_float32
from data_tools.cache.fields import Row, finite
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
MEAN = 4
"""The mean distance of a row may be this part of the largest, as rounding makes few numbers much worse than
the others, and an error of every number by one share does not. Random weights at full depth in bfloat16
against float32: the text encoder's mean is 0.012 and MoVQ's 0.010, a fifth of their largest; two runs may
differ by 1.4 times that, and the limit is twice as much."""
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
    mean: float = 0.0
    "The largest mean distance of a row."
    worst_mean: str = ""
    "Whose that is."

    def add(self, what: str, stored: NDArray[Any], made: NDArray[Any], dtype: str) -> None:
        """Another row, of any shape, finite and in stored dtype. Raises `ValueError` if the shapes differ."""
        if stored.shape != made.shape:
            raise ValueError(f"stored is {stored.shape}, made {made.shape}")
        if not stored.size:
            return
        old = to_float32(stored, dtype).astype(np.float64)
        error = np.abs(to_float32(made, dtype) - old)
        rms = max(float(np.sqrt(np.mean(old**2))), float(np.finfo(np.float32).tiny))
        distance, mean = float(np.max(error / np.maximum(np.abs(old), rms))), float(error.mean()) / rms
        self.rows += 1
        self.numbers += old.size
        self.squares += float(np.sum(old**2))
        self.total += float(error.sum())
        self.largest = max(self.largest, float(error.max()))
        if distance > self.distance or not self.worst:
            self.distance, self.worst = distance, what
        if mean > self.mean or not self.worst_mean:
            self.mean, self.worst_mean = mean, what

    def faults(self, limit: float) -> Iterator[str]:
        """What is too far off, in words; a row is named once."""
        if self.distance > limit:
            yield f"{self.worst} is off by {self.distance:.2g} of its RMS, wanted at most {limit:.2g}"
            if self.worst == self.worst_mean:
                return
        if self.mean > limit / MEAN:
            most = f"wanted at most {limit / MEAN:.2g}"
            yield f"{self.worst_mean} is off by {self.mean:.2g} of its RMS in the mean, {most}"

    def to_json(self) -> dict[str, Any]:
        count = max(self.numbers, 1)
        return {
            "rows": self.rows,
            "rms": (self.squares / count) ** 0.5,
            "largest_error": self.largest,
            "mean_error": self.total / count,
            "largest_relative_error": self.distance,
            "worst": self.worst,
            "largest_relative_mean_error": self.mean,
            "worst_mean": self.worst_mean,
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
    spoiled: dict[str, str] = field(default_factory=dict)
    "What is stored with NaN or infinity → the field."
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
                is_sound = finite(found[about.name], about.dtype)
                if not is_sound:
                    self.spoiled.setdefault(what, about.name)
                try:
                    about.check(row[about.name])
                except ValueError as err:  # NaN or infinity
                    self.refused[what] = str(err)
                    continue
                if not is_sound:
                    continue
                try:
                    errors.add(what, found[about.name][0], row[about.name], about.dtype)
                except ValueError as err:
                    raise DataFault(f"--audit: {column.name}, {about.name} of {what}: {err}") from None


def faults(columns: dict[str, Comparison], tolerance: float) -> Iterator[str]:
    """What is wrong, in words: what is stored and no number, a field that is too far off, what cannot be
    encoded any more."""
    for name, each in columns.items():
        if each.spoiled:
            fields = ", ".join(dict.fromkeys(each.spoiled.values()))
            yield f"{name}, {fields}: NaN or infinity is stored for {shown([*each.spoiled])}"
        for about, errors in each.errors.items():
            yield from (f"{name}, {about} of {fault}" for fault in errors.faults(tolerance))
        for what, reason in [*each.refused.items()][:1]:
            yield f"{name}: {what} is stored but cannot be encoded again ({reason})"


def as_table(columns: dict[str, Comparison], tolerance: float) -> list[str]:
    """A line for each field; a tolerance is of what stands before it."""
    heads = ["samples", "rows", "RMS", "largest error", "mean error"]
    heads += ["largest/RMS", "tolerance", "mean/RMS", "tolerance"]
    lines = [f"{'column':<26}" + "".join(f"{head:>14}" for head in heads)]
    for name, each in columns.items():
        for about, errors in each.errors.items():
            found = errors.to_json()
            numbers = [found[key] for key in ("rms", "largest_error", "mean_error")]
            numbers += [errors.distance, tolerance, errors.mean, tolerance / MEAN]
            cells = [f"{each.samples}", f"{errors.rows}", *(f"{n:.3g}" for n in numbers)]
            lines.append(f"{f'{name}, {about}':<26}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def as_json(columns: dict[str, Comparison], gone: list[str], tolerance: float) -> dict[str, Any]:
    """The same as plain JSON values, and the keys of what was left out."""
    found = {
        name: {
            "samples": each.samples,
            "fields": {about: errors.to_json() for about, errors in each.errors.items()},
            "refused": each.refused,
            "not_finite": [*each.spoiled],
        }
        for name, each in columns.items()
    }
    within = not any(faults(columns, tolerance))
    limits = {"tolerance": tolerance, "mean_tolerance": tolerance / MEAN, "within_tolerance": within}
    return {**limits, "columns": found, "not_as_cached": gone}


def shown(keys: Sequence[str]) -> str:
    """Some keys, for a line."""
    return ", ".join(keys[:SHOWN]) + f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN)
