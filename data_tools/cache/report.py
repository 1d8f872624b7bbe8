"""What is in a cache: the numbers behind `data-tools inspect`.

From the plan and the columns' latest generations, so a cache of any size answers at once; of parts committed
since, the commit records and extent indices. Sample tables and payloads are never read.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache import redo
from data_tools.cache.fields import Column
from data_tools.cache.generation import Generation, current
from data_tools.cache.identity import digest
from data_tools.cache.manifest import NULL_PART, Cache, Part

UNITS = ("B", "KB", "MB", "GB", "TB")
BIN = 8
"Width of the bins of lengths: 1 to 8, 9 to 16, …"
MOST_LISTED = 20
"Rejects named in the text; JSON has all."


def inspect(cache: Cache, names: Collection[str] | None = None) -> dict[str, Any]:
    """A cache, or some columns of it, as plain JSON values.

    `samples` found by the plan = `cached` (in every column) + `rejects` (refused by at least one column)
    + `pending` (not yet encoded). `retired` ones are none of these, but their rows are still stored: `rows`,
    bytes and histograms of a column count them too. `complete` is True when no column lacks a part. Raises
    `DataFault` for a damaged record.
    """
    plan = cache.plan()
    columns: dict[str, Any] = {}
    rejected: dict[str, dict[str, str]] = {}
    done = np.ones(len(plan), dtype=bool)
    parts = np.array([part.name for part in plan], dtype=np.bytes_)
    gone = _Retired(cache, plan)
    for name in cache.column_names():
        if names is not None and name not in names:
            continue
        column = cache.column(name)
        if column is None:  # of a run that was stopped before it declared the column
            continue
        found = current(cache, column, plan)
        planned = np.isin(found.part, parts)
        done &= np.isin(parts, found.part)
        refused = [reject for reject in found.rejects() if gone.leaves(reject)]
        for reject in refused:
            rejected.setdefault(reject["key"], {**reject, "column": name})
        null = not column.has_null or NULL_PART.encode() in found.part.tolist()
        columns[name] = {
            "fields": {f.name: {"dtype": f.dtype, "shape": list(f.shape)} for f in column.fields},
            "identity": digest(column.identity),
            "model": column.model,
            "parts": int(planned.sum()),
            "complete": null and int(planned.sum()) == len(plan),
            "samples": _samples(plan, found, planned) - len(refused),
            **_sums(column, found, planned),
            "rejects_by_reason": dict(Counter(reject["reason"] for reject in refused)),
            **_histograms(column, found, int(found.samples[planned].sum())),
            "prompts": len(found.prompts()),
            "redo": _redo(cache, name, plan),
        }
    reached_parts = {part.name: part.live for part, whole in zip(plan, done) if whole and columns}
    samples, reached = sum(part.live for part in plan), sum(reached_parts.values())
    rejects = sum(reject["part"] in reached_parts for reject in rejected.values())
    return {
        "samples": samples,
        "cached": reached - rejects,
        "rejects": rejects,
        "pending": samples - reached,
        "retired": sum(part.samples - part.live for part in plan),
        "complete": bool(columns) and all(column["complete"] for column in columns.values()),
        "parts": len(plan),
        "columns": columns,
        "reject_reasons": dict(Counter(reject["reason"] for reject in rejected.values())),
        "rejected": sorted(rejected.values(), key=lambda reject: reject["key"]),
    }


class _Retired:
    """Tells rejects of retired samples from those of others. Reads the sample tables of parts with both."""

    def __init__(self, cache: Cache, plan: list[Part]) -> None:
        self.cache = cache
        self.parts = {part.name: part for part in plan}
        self._keys: dict[str, set[str]] = {}

    def leaves(self, reject: dict[str, str]) -> bool:
        """True if the plan still has that sample in that part."""
        part = self.parts.get(reject["part"])
        if part is None or not part.retired:
            return part is not None
        if part.name not in self._keys:
            table, live = self.cache.table(part), part.is_live()
            self._keys[part.name] = {row["key"] for row, is_live in zip(table, live) if not is_live}
        return reject["key"] not in self._keys[part.name]


def _samples(plan: list[Part], found: Generation, planned: NDArray[np.bool_]) -> int:
    """Samples that are not retired, in the parts that a column has."""
    committed = {name.decode() for name in found.part[planned].tolist()}
    return sum(part.live for part in plan if part.name in committed)


def _sums(column: Column, found: Generation, planned: NDArray[np.bool_]) -> dict[str, Any]:
    """Over the plan's parts, retired samples too."""
    samples, seconds = int(found.samples[planned].sum()), float(found.encode_seconds[planned].sum())
    field_bytes = found.field_bytes[planned].sum(axis=0).tolist()
    containers = Counter(name.decode() for name in found.container[planned].tolist())
    return {
        "rows": int(found.rows[planned].sum()),
        "field_bytes": {field.name: count for field, count in zip(column.fields, field_bytes)},
        "stored_bytes": int(found.stored_bytes[planned].sum()),
        "containers": dict(containers),
        "encode_samples_per_second": round(samples / seconds, 1) if seconds else None,
    }


def _histograms(column: Column, found: Generation, samples: int) -> dict[str, Any]:
    """`lengths`: {field: {rows, mean, max, bins: [[first, last, rows], …]}} of ragged fields.

    `shapes`: {field: {shape: samples}} of fields whose rows are pictures of a sort.
    """
    lengths = {
        field.name: _bins(counts) for field, counts in zip(column.fields, found.lengths) if field.ragged
    }
    shapes: dict[str, dict[str, int]] = {}
    for field in column.fields:
        if field.bucketed:
            kinds, place = np.unique(found.shape, axis=0, return_inverse=True)
            counts = np.bincount(place.reshape(-1), weights=found.shape_samples).astype(int).tolist()
            by_shape = Counter({str(tuple(kind)): count for kind, count in zip(kinds.tolist(), counts)})
            shapes[field.name] = dict(by_shape.most_common())
        elif len(field.shape) > 2:
            shapes[field.name] = {str(field.shape): samples} if samples else {}
    return {name: value for name, value in (("lengths", lengths), ("shapes", shapes)) if value}


def _bins(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Of the number of rows of each length."""
    rows = int(counts.sum())
    if not rows:
        return {"rows": 0, "mean": None, "max": None, "bins": []}
    lengths = np.arange(len(counts))
    longest = int(lengths[counts > 0].max())
    sums = np.bincount((lengths - 1).clip(0)[: longest + 1] // BIN, weights=counts[: longest + 1])
    bins = [[n * BIN + 1, (n + 1) * BIN, count] for n, count in enumerate(sums.astype(int).tolist())]
    return {"rows": rows, "mean": round(float(lengths @ counts) / rows, 1), "max": longest, "bins": bins}


def _redo(cache: Cache, name: str, plan: list[Part]) -> dict[str, Any] | None:
    """How far a redo has come, None if none is under way."""
    made = redo.pending(cache, name)
    if made is None:
        return None
    done = cache.committed(made)
    return {"identity": digest(made.identity), "parts": sum(part.name in done for part in plan)}


def as_text(report: dict[str, Any]) -> str:
    """The same report for people."""
    lines = [
        count_line(report),
        *[f"{report['retired']} more are retired: no longer in the source, or changed since"]
        * bool(report["retired"]),
        "",
        f"{'column':<14}{'field':<30}{'dtype':<10}{'shape':<20}{'rows':>9}{'size':>12}",
    ]
    for name, column in report["columns"].items():
        for field, spec in column["fields"].items():
            shape = f"({', '.join(map(str, spec['shape']))})"
            size = human_bytes(column["field_bytes"].get(field, 0))
            lines.append(f"{name:<14}{field:<30}{spec['dtype']:<10}{shape:<20}{column['rows']:>9}{size:>12}")
    lines.append("")
    for name, column in report["columns"].items():
        model = column["model"].get("hub") or column["model"].get("path", "?")
        parts = f"{column['parts']} of {report['parts']} parts{_kinds(column['containers'])}"
        size = human_bytes(column["stored_bytes"])
        lines.append(f"{name}: identity {column['identity'][:12]}, {parts}, {size} stored, made with {model}")
        lines += [f"{name}: {column['prompts']} prompts cached"] * bool(column["prompts"])
        if column["redo"] is not None:
            made, done = column["redo"]["identity"][:12], column["redo"]["parts"]
            lines.append(f"{name}: redo in progress: {done} of {report['parts']} parts of identity {made}")
    for name, column in report["columns"].items():
        lines += _histogram_lines(name, column)
    if report["rejected"]:
        lines += ["", "rejected:"]
        lines += [f"  {count} × {reason}" for reason, count in report["reject_reasons"].items()]
        shown = report["rejected"][:MOST_LISTED]
        lines += [f"  {r['key']}: {r['reason']} ({r['column']})" for r in shown]
        more = len(report["rejected"]) - len(shown)
        lines += [f"  and {more} more; --json lists all"] * bool(more)
    return "\n".join(lines)


def _kinds(containers: dict[str, int]) -> str:
    if len(containers) < 2:
        return "".join(f" ({name})" for name in containers)
    return f" ({', '.join(f'{count} {name}' for name, count in containers.items())})"


def _histogram_lines(name: str, column: dict[str, Any]) -> list[str]:
    lines = []
    for field, found in column.get("lengths", {}).items():
        most = max((rows for _, _, rows in found["bins"]), default=1)
        lines += ["", f"{name}: tokens of {field} (mean {found['mean']}, longest {found['max']})"]
        for first, last, rows in found["bins"]:
            lines.append(f"  {first:>4} to {last:<4}{rows:>9}  {'█' * round(40 * rows / most)}")
    for field, found in column.get("shapes", {}).items():
        lines += ["", f"{name}: shapes of {field}"]
        lines += [f"  {shape:<20}{samples:>9}" for shape, samples in found.items()]
    return lines


def count_line(report: dict[str, Any]) -> str:
    """The equation every run ends with."""
    line = f"{report['samples']} samples found = {report['cached']} cached + {report['rejects']} rejected"
    return line if report["complete"] else f"{line} + {report['pending']} still to encode"


def human_bytes(count: float) -> str:
    """12.3 MB; powers of 1000."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
