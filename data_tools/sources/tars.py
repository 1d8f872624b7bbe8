"""webdataset tars: consecutive members whose names are alike up to the first dot are one sample.

A sample is a picture (`jpg`, `png`, …) with a caption in `txt` or `json`, as img2dataset and webdataset
write them. One pass over the headers lists a tar, no index is held, and a picture is one ranged read.
Member names are keys and never paths. A tar that is damaged or cut short gives the samples that are whole,
and then one sample that cannot be used, which has the tar's name as its key and says what is wrong.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.sources.captions import EMPTY, MAX_BYTES, Captions, of_cells, of_file
from data_tools.sources.remote import File, Reader, check_backend, files_of, is_url, opened, read_range
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.tar_headers import Damage, Member, members
from data_tools.sources.walk import picture_suffixes

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"webdataset's split of a name into key and field."
META = re.compile(r"__[^/]*__($|/)")
"webdataset's members that belong to no sample."
MAX_FIELDS = 64
"Members of one sample; further ones are passed over."
TYPO_SAMPLES = 1000
"JSON members without any of the named caption columns, after which the name is taken for a mistake."


@dataclass
class Group:
    """The members of one sample, by their fields (what follows the key: `jpg`, `txt`, `caption.txt`)."""

    key: str
    fields: list[tuple[str, Member]] = field(default_factory=list)
    texts: dict[str, list[bytes | str]] = field(default_factory=dict)
    "Payloads of the members that captions are looked for in, or why one could not be read."


@dataclass
class Faults:
    """What is wrong with a tar: the first of it, and in how many places."""

    first: str = ""
    count: int = 0

    def add(self, what: str) -> None:
        self.first, self.count = self.first or what, self.count + 1


@dataclass(frozen=True)
class TarSource:
    """webdataset tars, in their order."""

    data: str
    tars: tuple[File, ...]
    options: SourceOptions

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "TarSource":
        """`data`: a tar, a folder of tars, or a path or URL with braces. Raises `UserError`."""
        check_backend(data)
        if not is_url(data) and Path(data).is_dir():
            tars = _tars_below(Path(data))
            if not tars:
                raise UserError(f"--data: {data}: no tars found in this folder")
        else:
            tars = files_of(data)
            if not is_url(data) and not any(os.path.lexists(tar.url) for tar in tars):
                more = f" (nor any other of the {len(tars)} that it means)" if len(tars) > 1 else ""
                hint = "; for several tars: the folder, or braces like {00..41}" if "*" in data else ""
                raise UserError(f"--data: {data}: no such file: {tars[0].url}{more}{hint}")
        for tar in tars:
            if tar.name != (name := shown(tar.name)):
                raise UserError(f"--data: {data}: a file name that is not UTF-8: {name}; rename it")
        return cls(data, tars, options)

    @property
    def count(self) -> None:
        """Not known before the headers have been read."""

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {tar.name: tar for tar in self.tars}

    def __iter__(self) -> Iterator[Sample]:
        """Raises `UserError` if none of the samples can be used, or a named caption column is nowhere."""
        usable, problem, columns = False, "", _ColumnCheck(self.options)
        for tar in self.tars:
            for sample in self._listed(tar, columns):
                usable |= not sample.problem
                problem = problem or f"{sample.key}: {sample.problem}"
                yield sample
        if not usable:
            raise UserError(f"--data: {self.data}: no picture found that can be used; {problem}")
        columns.at_end()

    def read(self, sample: Sample) -> bytes:
        """The picture, by one read of its range."""
        if sample.problem:
            raise Unusable(sample.problem)
        name, _, offset = sample.place.rpartition("#")
        if name not in self._by_name or not offset.isdecimal():
            raise Unusable(f"no such tar: {name}")
        return read_range(self._by_name[name], int(offset), sample.num_bytes)

    def _listed(self, tar: File, columns: "_ColumnCheck") -> Iterator[Sample]:
        """All samples of one tar; after them one for what is wrong with the tar itself."""
        faults = Faults()
        marker, found = 0, False
        try:
            with opened(tar) as file:
                marker = file.marker
                for group in _groups(file, self._text_fields(), faults):
                    found = True
                    yield self._sample(tar, marker, group, columns)
        except Unusable as err:
            faults.add(str(err))
        if not faults.count and not found:
            faults.add("no samples in it")
        if faults.count:
            more = f" (and {faults.count - 1} more such places)" if faults.count > 1 else ""
            yield Sample(tar.name, (), tar.name, -1, marker, problem=f"tar: {faults.first}{more}")

    def _sample(self, tar: File, marker: int, group: Group, columns: "_ColumnCheck") -> Sample:
        picture, problem = _picture(group, self.options.image_column)
        captions, caption_problem = self._captions(group, columns)
        size = -1 if problem else picture.size
        place = f"{tar.name}#{picture.offset}"
        return Sample(
            group.key, captions, place, size, marker, problem=problem, caption_problem=caption_problem
        )

    def _text_fields(self) -> set[str]:
        return {"json", "txt", *map(str.lower, self.options.caption_columns)}

    def _captions(self, group: Group, columns: "_ColumnCheck") -> Captions:
        """From the fields and JSON keys that the user named; else from `txt`, else from the usual keys."""
        named = [name for name in self.options.caption_columns if name.lower() != "json"]
        names = named if columns.named else ["txt"]
        found = [self._text(data) for name in names for data in group.texts.get(name.lower(), [])]
        if columns.named or not any(texts for texts, _ in found):
            found += [self._json(data, group, columns) for data in group.texts.get("json", [])]
        texts = tuple(dict.fromkeys(text for texts, _ in found for text in texts))
        problems = [problem for _, problem in found if problem]
        return texts, "" if texts else next(
            (problem for problem in problems if problem != EMPTY), "".join(problems[:1])
        )

    def _text(self, data: bytes | str) -> Captions:
        return ((), data) if isinstance(data, str) else of_file(data, self.options)

    def _json(self, data: bytes | str, group: Group, columns: "_ColumnCheck") -> Captions:
        row = data if isinstance(data, str) else _object(data, self.options.lenient)
        if isinstance(row, str):
            return (), row
        columns.saw(row, group)
        usual = [key for key in ("caption", "text") if row.get(key)][:1]
        keys = self.options.caption_columns if columns.named else usual
        return of_cells([row.get(key) for key in keys], lenient=self.options.lenient)


class _ColumnCheck:
    """Tells a mistyped `--caption-column` from samples that have no caption."""

    def __init__(self, options: SourceOptions) -> None:
        self.named = options.caption_columns != SourceOptions().caption_columns
        self._options, self._missed, self._found = options, 0, not self.named
        self._keys: list[str] = []

    def saw(self, row: dict[str, Any], group: Group) -> None:
        if self._found:
            return
        names = set(self._options.caption_columns)
        self._found = bool(names & (row.keys() | group.texts.keys()))
        self._missed, self._keys = self._missed + 1, self._keys or sorted(row)[:30]
        if self._missed >= TYPO_SAMPLES:
            self.at_end()

    def at_end(self) -> None:
        if not self._found and self._missed:
            names = " or ".join(map(repr, self._options.caption_columns))
            raise UserError(
                f"--caption-column: no {names} in the JSON members; they have: {', '.join(self._keys)}"
            )


def _tars_below(folder: Path) -> tuple[File, ...]:
    """Sorted; hidden files and folders are passed over."""
    found = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.endswith(".tar") and not name.startswith(".")]
    return tuple(File(path.relative_to(folder).as_posix(), str(path)) for path in sorted(found))


def _groups(file: Reader, text_fields: set[str], faults: Faults) -> Iterator[Group]:
    """Samples in their order, with the payloads that hold captions; what is wrong goes to `faults`."""
    group = None
    for member in members(file.read, file.size):
        if isinstance(member, Damage):
            faults.add(member.what)
            continue
        match = KEY.fullmatch(member.name)
        if match is None or META.match(member.name):
            continue
        if group is None or group.key != match[1]:
            if group is not None:
                yield group
            group = Group(match[1])
        name = match[2].lower()
        if len(group.fields) < MAX_FIELDS:
            group.fields.append((name, member))
            if name in text_fields:
                group.texts.setdefault(name, []).append(_payload(file, name, member))
    if group is not None:
        yield group


def _payload(file: Reader, name: str, member: Member) -> bytes | str:
    if member.problem:
        return f"{name}: {member.problem}"
    if member.size > MAX_BYTES:
        return f"{name}: {member.size:,} bytes, wanted a caption"
    try:
        return file.read(member.offset, member.size).removeprefix(codecs.BOM_UTF8)
    except Unusable as err:
        return f"{name}: {err}"


def _object(data: bytes, lenient: bool) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with it."""
    try:
        row = json.loads(data.decode("utf-8", "replace" if lenient else "strict"))
    except UnicodeDecodeError:
        return "json: not UTF-8; --lenient decodes it"
    except (ValueError, RecursionError):
        return "json: no JSON"
    return row if isinstance(row, dict) else "json: no JSON object"


def _picture_fields() -> set[str]:
    return {suffix.removeprefix(".") for suffix in picture_suffixes()}


def _picture(group: Group, wanted: str | None) -> tuple[Member, str]:
    """The picture of a sample and why it cannot be used; without one, its first member."""
    fields = _picture_fields() if wanted is None else {wanted.lower().lstrip(".")}
    pictures = [(name, member) for name, member in group.fields if name in fields]
    names = ", ".join(sorted({name for name, _ in group.fields}))
    if not pictures:
        looked_for = "picture" if wanted is None else f"member .{wanted.lower().lstrip('.')}"
        dotted = wanted is None and any(name.rpartition(".")[2] in fields for name, _ in group.fields)
        hint = "; a key ends at the first dot of a name: rename it, or name the field with --image-column"
        return group.fields[0][1], f"no {looked_for}; found: {names}{hint if dotted else ''}"
    if len(pictures) > 1:
        hint = "" if len({name for name, _ in pictures}) == 1 else "; choose one with --image-column"
        return pictures[0][
            1
        ], f"several pictures under one key: {', '.join(name for name, _ in pictures)}{hint}"
    member = pictures[0][1]
    return member, member.problem and f"{pictures[0][0]}: {member.problem}"
