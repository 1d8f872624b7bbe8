"""What is in a cache: the numbers behind `data-tools inspect`.

From plan and commit records alone, but for two histograms: lengths of ragged rows (tokens) and shapes of rows
where they can differ (buckets) stand in the extent indices. Of a column of more than `MOST_INDICES` parts
only so many indices, spread evenly, are read, and the report says so. Sample tables and payloads never are.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_tools.cache.fields import Column, Field
from data_tools.cache.identity import digest
from data_tools.cache.manifest import NULL_PART, Cache, Commit
from data_tools.cache.payload import container_of
from data_tools.cache.verify import load_index

UNITS = ("B", "KB", "MB", "GB", "TB")
MOST_INDICES = 64
"Extent indices of one column that are read for the histograms."
BIN = 8
"Width of the bins of lengths: 1 to 8, 9 to 16, …"
MOST_LISTED = 20
"Rejects named in the text; JSON has all."


def inspect(cache: Cache) -> dict[str, Any]:
    """A cache as plain JSON values.

    `samples` found by the plan = `cached` (in every column) + `rejects` (refused by at least one column)
    + `pending` (not yet encoded). `complete` is True when no column lacks a part.
    """
    plan = cache.plan()
    columns: dict[str, Any] = {}
    rejected: dict[str, dict[str, str]] = {}
    done = {part.name for part in plan}
    for name in cache.column_names():
        column = cache.column(name)
        if column is None:  # of a run that was stopped before it declared the column
            continue
        commits = cache.commits(column)
        null = commits.pop(NULL_PART, None)
        done &= commits.keys()
        for commit in commits.values():
            for reject in commit.rejects:
                rejected.setdefault(reject["key"], {**reject, "column": name, "part": commit.part})
        columns[name] = {
            "fields": {f.name: {"dtype": f.dtype, "shape": list(f.shape)} for f in column.fields},
            "identity": digest(column.identity),
            "model": column.model,
            "parts": len(commits),
            "complete": len(commits) == len(plan) and (null is not None or not column.has_null),
            **_sums(list(commits.values())),
            **_histograms(cache, column, list(commits.values())),
        }
    samples = sum(part.samples for part in plan)
    reached = sum(part.samples for part in plan if part.name in done) if columns else 0
    rejects = sum(reject["part"] in done for reject in rejected.values())
    return {
        "samples": samples,
        "cached": reached - rejects,
        "rejects": rejects,
        "pending": samples - reached,
        "complete": bool(columns) and all(column["complete"] for column in columns.values()),
        "parts": len(plan),
        "columns": columns,
        "reject_reasons": dict(Counter(reject["reason"] for reject in rejected.values())),
        "rejected": sorted(rejected.values(), key=lambda reject: reject["key"]),
    }


def _sums(commits: list[Commit]) -> dict[str, Any]:
    field_bytes: Counter[str] = Counter()
    for commit in commits:
        field_bytes.update(commit.field_bytes)
    seconds = sum(commit.encode_seconds for commit in commits)
    samples = sum(commit.samples for commit in commits)
    return {
        "samples": samples,
        "rows": sum(commit.rows for commit in commits),
        "field_bytes": dict(field_bytes),
        "stored_bytes": sum(item.size for commit in commits for item in commit.objects),
        "containers": dict(Counter(container_of(commit) for commit in commits)),
        "rejects_by_reason": dict(Counter(r["reason"] for commit in commits for r in commit.rejects)),
        "encode_samples_per_second": round(samples / seconds, 1) if seconds else None,
    }


def _histograms(cache: Cache, column: Column, commits: Sequence[Commit]) -> dict[str, Any]:
    """`lengths` (field → bins) and `shapes` (field → shape → rows), and `counted_parts` they are from.

    `lengths`: {field: {rows, mean, max, bins: [[first, last, rows], …]}}. A part whose index cannot be read
    is left out; `data-tools verify` says why.
    """
    lengths: dict[str, list[Any]] = {field.name: [] for field in column.fields if field.ragged}
    shapes: dict[str, Counter[str]] = {field.name: Counter() for field in _shaped(column)}
    if not lengths and not shapes:
        return {}
    chosen = np.linspace(0, len(commits) - 1, min(len(commits), MOST_INDICES)).astype(int).tolist()
    counted = 0
    for number in chosen:
        try:
            index = load_index(cache.store, commits[number])
        except (ValueError, FileNotFoundError):
            continue
        counted += 1
        for name in lengths:
            lengths[name].append(index.fields[name].shape[:, 0])
        for name, counter in shapes.items():
            found, rows = np.unique(index.fields[name].shape, axis=0, return_counts=True)
            counter.update({str(tuple(shape)): int(n) for shape, n in zip(found.tolist(), rows)})
    report: dict[str, Any] = {"counted_parts": counted}
    if lengths:
        report["lengths"] = {name: _bins(np.concatenate([[], *found])) for name, found in lengths.items()}
    if shapes:
        report["shapes"] = {name: dict(counter.most_common()) for name, counter in shapes.items()}
    return report


def _shaped(column: Column) -> list[Field]:
    """Fields whose rows are pictures of a sort: their shape is worth counting."""
    return [field for field in column.fields if len(field.shape) > 2]


def _bins(lengths: Any) -> dict[str, Any]:
    if not len(lengths):
        return {"rows": 0, "mean": None, "max": None, "bins": []}
    counts = np.bincount((lengths.astype(np.int64) - 1).clip(0) // BIN).tolist()
    bins = [[number * BIN + 1, (number + 1) * BIN, count] for number, count in enumerate(counts)]
    mean = round(float(lengths.mean()), 1)
    return {"rows": len(lengths), "mean": mean, "max": int(lengths.max()), "bins": bins}


def as_text(report: dict[str, Any]) -> str:
    """The same report for people."""
    lines = [
        count_line(report),
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
    counted, parts = column.get("counted_parts", 0), column["parts"]
    if not counted:
        return []
    where = f", counted in {counted} of {parts} parts" if counted < parts else ""
    lines = []
    for field, found in column.get("lengths", {}).items():
        most = max((rows for _, _, rows in found["bins"]), default=1)
        lines += ["", f"{name}: tokens of {field} (mean {found['mean']}, longest {found['max']}{where})"]
        for first, last, rows in found["bins"]:
            lines.append(f"  {first:>4} to {last:<4}{rows:>9}  {'█' * round(40 * rows / most)}")
    for field, found in column.get("shapes", {}).items():
        lines += ["", f"{name}: shapes of {field}{where}"]
        lines += [f"  {shape:<20}{rows:>9}" for shape, rows in found.items()]
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
