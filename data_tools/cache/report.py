"""What is in a cache: the numbers behind `data-tools inspect`, from plan and commit records alone."""

from collections import Counter
from typing import Any

from data_tools.cache.identity import digest
from data_tools.cache.manifest import NULL_PART, Cache, Commit

UNITS = ("B", "KB", "MB", "GB", "TB")


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
        "encode_samples_per_second": round(samples / seconds, 1) if seconds else None,
    }


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
        parts = f"{column['parts']} of {report['parts']} parts"
        lines.append(f"{name}: identity {column['identity'][:12]}, {parts}, made with {model}")
    if report["rejected"]:
        lines += ["", "rejected:"]
        lines += [f"  {r['key']}: {r['reason']} ({r['column']})" for r in report["rejected"]]
    return "\n".join(lines)


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
