"""The JSON files of a cache, as pure data: plan, sample tables, column declarations, commit records.

    cache.json                                     {"format": "kandinsky-cache", "version": 1}
    plans/000001.json                              `Plan`: which samples make which part; the last one counts
    samples/part-00000-<hash>.jsonl                one line a sample, in the part's order
    columns/<column>/column.json                   `Column` (`data_tools.cache.fields`)
    columns/<column>/redo.json                     `Column` to take its place (`data_tools.cache.redo`)
    columns/<column>/<identity>/commits/<part>.json            `Commit`, written last
    columns/<column>/<identity>/parts/<part>-<attempt>.zarr/   a plain zarr v3 group
    columns/<column>/<identity>/parts/<part>-<attempt>.npz     its extent index (`data_tools.cache.extents`)

<identity> is the first 12 hex digits of the column's identity. Besides the plan's parts a column has a
part `null`, the condition that the pipelines use for classifier-free guidance, and `text` may have parts
`prompts-<8 hex digits>`, each a set of prompts for validation. Readers trust commit records only; a file
that none of them names does not count. There is no absolute path anywhere.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.fields import Column
from data_tools.cache.identity import digest
from data_tools.cache.store import Store
from data_tools.errors import DataFault, UserError

VERSION = 1
NULL_PART = "null"
PROMPTS = "prompts-"
"Beginning of the names of the parts that hold prompts; their hash follows."
PLAN = "plans/000001.json"
"Name of the first plan."
HEADER = {"format": "kandinsky-cache", "version": VERSION}
"Of `cache.json`."
REPAIR = "precompute --repair and the options this cache was made with"
"Ends a line about damage."
SEAL = "xxh3_128"
"Key of the hash that plan, column declarations and commit records carry of themselves."


@dataclass(frozen=True)
class Part:
    name: str
    samples: int
    "Number of samples in the plan; those rejected later are among them."
    table: str
    "Name of its sample table."
    xxh3_128: str
    "Hash of the sample table."
    retired: tuple[tuple[int, int], ...] = ()
    """Runs of positions in the sample table, from the first up to but without the second: samples that are
    no longer in the source, or are in a later part with what has changed of them."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Part":
        retired = tuple((int(start), int(stop)) for start, stop in data.get("retired", ()))
        return cls(**{**data, "retired": retired})

    def to_json(self) -> dict[str, Any]:
        """`retired` is left out where there is none."""
        return {name: value for name, value in vars(self).items() if value != ()}

    @property
    def live(self) -> int:
        """Samples that are not retired."""
        return self.samples - sum(stop - start for start, stop in self.retired)

    def is_live(self) -> NDArray[np.bool_]:
        """Which positions of the sample table are not retired: (samples,)."""
        live = np.ones(self.samples, dtype=bool)
        for start, stop in self.retired:
            live[start:stop] = False
        return live

    def positions(self) -> NDArray[np.int64]:
        """Those positions: (live,)."""
        return np.flatnonzero(self.is_live())


@dataclass(frozen=True)
class Plan:
    """Which samples make which part. Plans are numbered from 1; the last one counts."""

    number: int
    part_size: int
    "Samples in each part but the last of those that one plan has added."
    next_part: int
    "Number of the next part to add: no number is ever used again."
    parts: tuple[Part, ...]
    "Those with a sample that is not retired."


@dataclass(frozen=True)
class Object:
    """A file (or stored object) of a committed part."""

    name: str
    size: int
    "Bytes."
    xxh3_128: str


@dataclass(frozen=True)
class Commit:
    """A part of a column is whole if and only if this record of it exists."""

    column: str
    part: str
    identity: str
    "Hex sha256 of the column's identity."
    attempt: str
    samples: int
    "Samples with at least one row."
    rows: int
    field_bytes: dict[str, int]
    "Payload bytes of each field."
    index: str
    "Name of the extent index."
    objects: tuple[Object, ...]
    rejects: tuple[dict[str, str], ...] = ()
    "key, reason and place of each sample that this column cannot have."
    encode_seconds: float = 0.0
    "Seconds the encoder worked on it."
    prompts: tuple[str, ...] = ()
    "What a part of prompts holds, one a row; empty for any other part."

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Commit":
        lists = {name: tuple(data.get(name, ())) for name in ("rejects", "prompts")}
        return cls(**{**data, **lists, "objects": tuple(Object(**item) for item in data["objects"])})


@dataclass
class Cache:
    """A cache's JSON files, opened. Nothing in here touches records."""

    store: Store
    _columns: dict[str, Column] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, *, flag: str = "--cache") -> "Cache":
        """Raises `UserError` if there is no cache or one of another format version."""
        try:
            data = store.read("cache.json")
            header = json.loads(data)
        except FileNotFoundError:
            raise UserError(f"{flag}: {store.url} is not a cache (it has no cache.json)") from None
        except (ValueError, NotADirectoryError):
            raise UserError(f"{flag}: {store.url}: cache.json is not readable JSON") from None
        version = header.get("version") if isinstance(header, dict) else None
        if version != VERSION:
            raise UserError(f"{flag}: {store.url} has format version {version}, this program reads {VERSION}")
        if data != dump(HEADER):
            raise DataFault(f"{store.url}/cache.json: has changed bytes, wanted {json.dumps(HEADER)}")
        return cls(store)

    def plan(self) -> list[Part]:
        """The parts, in order. Raises `UserError` while nothing has been planned."""
        return list(self.latest_plan().parts)

    def latest_plan(self) -> Plan:
        """The plan that counts. Raises `UserError` while there is none."""
        number = latest_plan_number(self.store)
        if not number:
            raise UserError(f"--cache: {self.store.url} has no plan yet; run precompute")
        found = self.read_json(plan_name(number))
        parts = tuple(Part.from_json(part) for part in found["parts"])
        return Plan(number, int(found["part_size"]), int(found.get("next_part", len(parts))), parts)

    def part_size(self) -> int:
        """Samples in each part, but the last ones that a plan has added."""
        return self.latest_plan().part_size

    def column_names(self) -> list[str]:
        return self.store.names("columns")

    def column(self, name: str) -> Column | None:
        """The declaration of a column, or None."""
        if name not in self._columns:
            path = f"columns/{name}/column.json"
            if self.store.size(path) is None:
                return None
            column = Column.from_json(self.read_json(path))
            if column.name != name:
                raise DataFault(
                    f"{self.store.url}/{path}: is the declaration of column {column.name}{remedy(path)}"
                )
            self._columns[name] = column
        return self._columns[name]

    def forget(self, name: str) -> None:
        """Read the declaration of a column again when it is next asked for."""
        self._columns.pop(name, None)

    def declare(self, column: Column) -> None:
        """Add a column, or put it in the place of one of another identity that holds nothing yet.

        Meant for one whose identity has been compared (`is_empty`).
        """
        path, found = f"columns/{column.name}/column.json", self.column(column.name)
        if found is None:
            self.store.create(path, sealed(column.to_json()))
        elif found.identity != column.identity:
            self.store.put(path, [sealed(column.to_json())])
        self.forget(column.name)

    def is_empty(self, column: Column) -> bool:
        """True if nothing of a column has been committed."""
        return not self.committed(column)

    def committed(self, column: Column) -> set[str]:
        """Names of the parts of a column that are committed; their records are listed, not read."""
        names = self.store.names(f"{column_folder(column)}/commits")
        return {name.removesuffix(".json") for name in names}

    def commit(self, column: Column, part: str) -> Commit | None:
        """The commit record of a part of a column, or None. Raises `DataFault` for that of another one."""
        path = f"{column_folder(column)}/commits/{part}.json"
        if self.store.size(path) is None:
            return None
        commit = Commit.from_json(self.read_json(path))
        found = commit.column, commit.part, commit.identity
        if found != (column.name, part, digest(column.identity)):
            raise DataFault(
                f"{self.store.url}/{path}: is the commit record of {', '.join(found)}{remedy(path)}"
            )
        return commit

    def commits(self, column: Column) -> dict[str, Commit]:
        """All commit records of a column, by part, each read (`data_tools.cache.generation` is faster)."""
        found = ((part, self.commit(column, part)) for part in sorted(self.committed(column)))
        return {part: commit for part, commit in found if commit is not None}

    def table(self, part: Part) -> list[dict[str, Any]]:
        """The sample table of a part: the fields of each sample that are not empty."""
        data = self.store.read(part.table) if self.store.size(part.table) is not None else b""
        if xxhash.xxh3_128_hexdigest(data) != part.xxh3_128:
            fault = f"sample table of {part.name}: missing or changed{remedy(part.table)}"
            raise DataFault(f"{self.store.url}/{part.table}: {fault}")
        return [json.loads(line) for line in data.splitlines()]

    def read_json(self, name: str) -> dict[str, Any]:
        """A sealed file, without its seal. Raises `DataFault` for one that is missing or has changed."""
        try:
            content = self.store.read(name)
            data: dict[str, Any] = json.loads(content)
        except (ValueError, FileNotFoundError) as err:
            raise DataFault(f"{self.store.url}/{name}: not readable JSON: {err}{remedy(name)}") from None
        sound = isinstance(data, dict) and dump(data) == content  # every byte, white space too
        if not sound or data.pop(SEAL, None) != xxhash.xxh3_128_hexdigest(dump(data)):
            raise DataFault(f"{self.store.url}/{name}: has changed bytes ({SEAL} differs){remedy(name)}")
        return data


def plan_name(number: int) -> str:
    return f"plans/{number:06d}.json"


def latest_plan_number(store: Store) -> int:
    """Number of the plan that counts, 0 if there is none."""
    names = store.names("plans")
    number = max((int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name)), default=0)
    while store.size(plan_name(number + 1)) is not None:  # a listing may be behind
        number += 1
    return number


def remedy(name: str) -> str:
    """What helps when a file of the cache is damaged, as the end of a line."""
    if name.startswith("plans/"):
        return "; put it back from a copy"
    return f"; mend it with: {REPAIR}"


def plan_hash(plan: list[Part]) -> str:
    """Which samples in which parts, and which of them are retired: equal for a copy of the same samples."""
    parts = [[part.name, part.samples, part.xxh3_128, *part.retired] for part in plan]
    return xxhash.xxh3_128_hexdigest(dump(parts))


def column_folder(column: Column) -> str:
    return f"columns/{column.name}/{digest(column.identity)[:12]}"


def sealed(data: Any) -> bytes:
    """As `dump`, with the hash of all the rest in it: a changed byte is noticed when it is read."""
    plain = json.loads(dump(data))
    return dump({**plain, SEAL: xxhash.xxh3_128_hexdigest(dump(plain))})


def dump(data: Any) -> bytes:
    """JSON as it stands in the cache: sorted keys, readable."""
    plain = asdict(data) if hasattr(data, "__dataclass_fields__") else data
    return (json.dumps(plain, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()
