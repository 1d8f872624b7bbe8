"""`data-tools export`: classic webdataset tars, one sample a key, for programs that do not know this cache.

    DEST/00000000.tar      <key>.json                                       key, captions, place
                           <key>.image_embeds.npy                           (D)
                           <key>.latents.npy                                (C, h, w), of its own bucket
                           <key>.latents.1.npy                              of the second view, and so on
                           <key>.prompt_embeds.npy                          (captions, D)
                           <key>.text_encoder_hidden_states.npy             (tokens of all captions, D)
                           <key>.text_encoder_hidden_states_offsets.npy     (captions + 1) int64
    DEST/null/<field>.npy  the null condition, one row
    DEST/export.json       of which cache, with which options

Fields of `text` always have the leading axis of captions, of one caption too: caption j is `prompt_embeds[j]`
and `text_encoder_hidden_states[offsets[j] : offsets[j + 1]]`, its words `captions[j]`. Other fields have no
leading axis: the first view stands under the field's plain name, so that who knows of no views reads the same
rank in every sample; further views are numbered from 1, and may be of other shapes. bfloat16 is written as
float32 (the same numbers), since `.npy` has no bfloat16. Two columns of latents are told apart by name,
`latents@512` and `latents@768`.

`<key>` is the sample's key with everything but letters, digits, `_`, `-` and `~` percent-encoded (so no dots
and no slashes, and it can be undone); a longer one than 150 characters ends in its hash instead. Samples that
one of the columns lacks are left out, and so are cached prompts. Members are sorted and carry no times: equal
caches give equal bytes.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache.cast import to_float32
from data_tools.cache.convert import columns_of
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.identity import differences, digest
from data_tools.cache.manifest import NULL_PART, Cache, Commit, Part, dump, plan_hash
from data_tools.cache.payload import PartPayload
from data_tools.cache.store import Store
from data_tools.errors import UserError

ABOUT = "export.json"
LONGEST_KEY = 150


@dataclass(frozen=True)
class ExportOptions:
    columns: tuple[str, ...] | None = None
    "None: all."
    samples_per_tar: int = 2048


@dataclass(frozen=True)
class _Chosen:
    """One sample of the export: where it stands."""

    number: int
    "In the export."
    part: Part
    position: int
    "In the part's sample table."


def export(cache: Cache, dest: Store, options: ExportOptions) -> str:
    """Write the tars that `dest` lacks; returns a closing line.

    Raises `UserError` for an unfinished column and a `dest` that holds something else, `DataFault` for a
    damaged part.
    """
    plan = cache.plan()
    columns = _columns(cache, options.columns)
    _refuse_unfinished(cache, plan, columns)
    names = member_names(columns)
    _claim(dest, cache, plan, columns, options)
    for column in columns:
        if column.has_null:
            _write_null(cache, dest, column, names)
    total = sum(part.live for part in plan)
    samples = written = tars = 0
    with tqdm(total=total, unit=" samples", desc="export", delay=1) as bar:
        opened = _Opened(cache, columns)
        by_tar = groupby(_common(opened, plan), lambda chosen: chosen.number // options.samples_per_tar)
        for number, group in by_tar:
            members = list(group)
            samples, tars = samples + len(members), tars + 1
            if dest.size(f"{number:08d}.tar") is None:
                dest.put(f"{number:08d}.tar", _tar(opened, members, names))
                written += 1
            bar.update(len(members))
    left_out = f", {total - samples} left out that a column lacks" if samples < total else ""
    word = f"{written} tars written" if written else "nothing to do"
    return f"{dest.url}: {samples} samples in {tars} tars{left_out}; {word}"


def safe_key(key: str) -> str:
    """A sample's key as webdataset can take it: without dots and slashes, different for different keys."""
    safe = quote(key, safe="").replace(".", "%2E")
    if len(safe) > LONGEST_KEY:
        return f"{safe[: LONGEST_KEY - 33]}-{xxhash.xxh3_128_hexdigest(key.encode())}"
    return safe


def member_names(columns: Sequence[Column]) -> dict[tuple[str, str], str]:
    """(column, field) → its name in the tars."""
    all_fields = [field.name for column in columns for field in column.fields]
    return {
        (column.name, field.name): field.name
        if all_fields.count(field.name) == 1
        else f"{field.name}@{column.name.partition('@')[2] or column.name}"
        for column in columns
        for field in column.fields
    }


def _columns(cache: Cache, names: tuple[str, ...] | None) -> list[Column]:
    found = {column.name: column for column in columns_of(cache)}
    for name in names or ():
        if name not in found:
            raise UserError(
                f"--columns: {cache.store.url} has no column {name!r} (it has: {', '.join(found)})"
            )
    return [found[name] for name in names or found]


def _refuse_unfinished(cache: Cache, plan: list[Part], columns: list[Column]) -> None:
    for column in columns:
        for part in [part.name for part in plan] + [NULL_PART] * column.has_null:
            if cache.commit(column, part) is None:
                raise UserError(
                    f"CACHE: {cache.store.url} is unfinished: column {column.name} lacks {part}; "
                    "run precompute again, or leave the column out with --columns"
                )


def _claim(
    dest: Store, cache: Cache, plan: list[Part], columns: list[Column], options: ExportOptions
) -> None:
    """Begin in an empty folder, or find that this very export was begun here. Raises `UserError`."""
    about = {
        "plan": plan_hash(plan),
        "columns": {column.name: digest(column.identity) for column in columns},
        "samples_per_tar": options.samples_per_tar,
    }
    if not dest.names(""):
        dest.create(ABOUT, dump(about))
    if dest.size(ABOUT) is None:
        raise UserError(f"DEST: {dest.url} is neither empty nor begun by this command; give a new folder")
    try:
        found = json.loads(dest.read(ABOUT))
    except ValueError:
        found = {}
    if found != about:
        keys = "; ".join(differences(found if isinstance(found, dict) else {}, about))
        raise UserError(f"DEST: {dest.url} holds another export ({keys}); give a new folder")


class _Opened:
    """The part at hand in all columns; the one before is let go."""

    def __init__(self, cache: Cache, columns: Sequence[Column]) -> None:
        self.cache, self.columns = cache, columns
        self._part = ""
        self._payloads: list[PartPayload] = []
        self._table: list[dict[str, Any]] = []

    def part(self, part: Part) -> tuple[list[PartPayload], list[dict[str, Any]]]:
        """A payload for each column, and the sample table."""
        if self._part != part.name:
            self._payloads = []  # let go of the old ones first
            self._payloads = [
                PartPayload.open(self.cache, c, self.commit(c, part.name)) for c in self.columns
            ]
            self._table, self._part = self.cache.table(part), part.name
        return self._payloads, self._table

    def commit(self, column: Column, part: str) -> Commit:
        commit = self.cache.commit(column, part)
        assert commit is not None, part  # looked at before
        return commit


def _common(opened: _Opened, plan: list[Part]) -> Iterator[_Chosen]:
    """The samples that are live and in all columns, in the plan's order. Reads extent indices only."""
    number = 0
    for part in plan:
        common = part.positions()
        for column in opened.columns:
            index = PartPayload.open(opened.cache, column, opened.commit(column, part.name)).index
            common = np.intersect1d(common, index.sample_index, assume_unique=True)
        for position in common.tolist():
            yield _Chosen(number, part, position)
            number += 1


def _tar(opened: _Opened, chosen: list[_Chosen], names: dict[tuple[str, str], str]) -> Iterator[bytes]:
    """The bytes of one tar."""
    for one in chosen:
        payloads, table = opened.part(one.part)
        about = {name: table[one.position][name] for name in ("key", "captions", "place")}
        members = {"json": json.dumps(about, ensure_ascii=False).encode()}
        for payload in payloads:
            place = int(np.searchsorted(payload.index.sample_index, one.position))
            for name, value in _arrays(payload.column, payload.rows(place), names).items():
                members[f"{name}.npy"] = npy(value)
        key = safe_key(about["key"])
        for extension, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(data)
            yield info.tobuf(format=tarfile.PAX_FORMAT)  # plain USTAR unless a name is too long for it
            yield data
            yield bytes(-len(data) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _arrays(column: Column, rows: list[Row], names: dict[tuple[str, str], str]) -> dict[str, NDArray[Any]]:
    """Name in the tar → array, for the rows of one sample."""
    arrays: dict[str, NDArray[Any]] = {}
    for field in column.fields:
        name, values = names[column.name, field.name], [_plain(row[field.name], field) for row in rows]
        if field.ragged:
            arrays[name] = np.concatenate(values)
            arrays[f"{name}_offsets"] = np.cumsum([0, *map(len, values)]).astype(np.int64)
        elif column.name == "text":
            arrays[name] = np.stack(values)
        else:
            arrays |= {f"{name}.{view}" if view else name: value for view, value in enumerate(values)}
    return arrays


def _plain(value: NDArray[Any], field: Field) -> NDArray[Any]:
    """As numpy knows it: the same numbers."""
    return to_float32(value, field.dtype) if field.dtype == "bfloat16" else value


def _write_null(cache: Cache, dest: Store, column: Column, names: dict[tuple[str, str], str]) -> None:
    """One `.npy` for each field, without an axis of captions."""
    commit = cache.commit(column, NULL_PART)
    assert commit is not None  # looked at before
    fields = {field.name: f"null/{names[column.name, field.name]}.npy" for field in column.fields}
    if all(dest.size(name) is not None for name in fields.values()):
        return
    (row,) = PartPayload.open(cache, column, commit).rows(0)
    for field in column.fields:
        dest.put(fields[field.name], [npy(_plain(row[field.name], field))])


def npy(value: NDArray[Any]) -> bytes:
    """The bytes of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return buffer.getvalue()
