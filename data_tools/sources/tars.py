"""webdataset tars: consecutive members whose names are alike up to the first dot are one sample.

A sample is a picture (`jpg`, `png`, …) with a caption in `txt` or `json`, as img2dataset and webdataset
write them. One pass over the headers lists a tar, no index is held, and a picture is one ranged read.
Member names are keys and never paths. A tar that is damaged or cut short, or has members without a key, gives
the samples that are whole, and then one that cannot be used, which has the tar's name as its key and says
what is wrong.
"""

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_tools.errors import UserError
from data_tools.sources.captions import MAX_BYTES
from data_tools.sources.inside import LEAVES
from data_tools.sources.remote import (
    NO_FILE,
    File,
    Reader,
    check_backend,
    files_of,
    is_url,
    opened,
    read_range,
    tars_below,
)
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.several import NothingUsable
from data_tools.sources.tar_captions import ColumnCheck, Payload, captions_of, text_fields
from data_tools.sources.tar_headers import Damage, Member, members
from data_tools.sources.walk import picture_suffixes

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"webdataset's split of a name into key and field."
META = re.compile(r"__[^/]*__($|/)")
"webdataset's members that belong to no sample."
MACOS = re.compile(r"(.*/|)([.]_[^/]*|[.]DS_Store)", re.DOTALL)
"Members that macOS adds of its own."
MAX_FIELDS = 64
"Members of one sample; further ones are passed over."


@dataclass
class Group:
    """The members of one sample, by their fields (what follows the key: `jpg`, `txt`, `caption.txt`)."""

    key: str
    fields: list[tuple[str, Member]] = field(default_factory=list)
    texts: dict[str, list[Payload]] = field(default_factory=dict)
    "Payloads of the members that captions are looked for in."


@dataclass
class Faults:
    """What is wrong with a tar: the first of it, and in how many places."""

    first: str = ""
    count: int = 0
    unnamed: str = ""
    "The first member that no sample can be made of, as its name has no key or no ending."
    unnamed_count: int = 0
    unread: bool = False
    "It could not be read, or not up to its end."

    def add(self, what: str, *, unread: bool = False) -> None:
        self.first, self.count, self.unread = self.first or what, self.count + 1, self.unread or unread

    def pass_over(self, name: str) -> None:
        self.unnamed, self.unnamed_count = self.unnamed or repr(name[:100]), self.unnamed_count + 1

    def __str__(self) -> str:
        """Empty if nothing is wrong."""
        more = f" (and {self.count - 1} more such places)" if self.count > 1 else ""
        faults = [f"{self.first}{more}"] if self.count else []
        if self.unnamed_count:
            named = f"the first {self.unnamed}"
            faults.append(f"members without a name like KEY.ENDING: {self.unnamed_count}, {named}")
        return "; ".join(faults)


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
            tars = tars_below(Path(data))
            if not tars:
                raise UserError(f"--data: {data}: no tars found in this folder")
        else:
            tars = files_of(data)
            if not is_url(data) and not any(os.path.lexists(tar.url) for tar in tars):
                hint = "; for several tars: the folder, or braces like {00..41}" if "*" in data else ""
                raise UserError(f"--data: {data}: {cls(data, tars, options)._missing()}{hint}")
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
        """Raises `UserError` if no tar is there, or a named caption column is nowhere.

        Raises `NothingUsable` if none of the samples can be used.
        """
        usable, missing, problem, columns = False, True, "", ColumnCheck(self.data, self.options)
        for tar in self.tars:
            for sample in self._listed(tar, columns):
                usable |= not sample.problem
                missing &= sample.problem == f"tar: {NO_FILE}"
                problem = problem or f"{sample.key}: {sample.problem}"
                yield sample
        if missing:
            raise UserError(f"--data: {self.data}: {self._missing()}")
        if not usable:
            raise NothingUsable(f"--data: {self.data}: no picture found that can be used; {problem}")
        columns.at_end()

    def _missing(self) -> str:
        others = f" (nor any other of the {len(self.tars)} that it means)" if len(self.tars) > 1 else ""
        return f"{NO_FILE}: {self.tars[0].url}{others}"

    def read(self, sample: Sample) -> bytes:
        """The picture, by one read of its range."""
        if sample.problem:
            raise Unusable(sample.problem)
        name, _, offset = sample.place.rpartition("#")
        if name not in self._by_name or not offset.isdecimal():
            raise Unusable(f"no such tar: {name}")
        return read_range(self._by_name[name], int(offset), sample.num_bytes)

    def _listed(self, tar: File, columns: ColumnCheck) -> Iterator[Sample]:
        """All samples of one tar; after them one for what is wrong with the tar itself."""
        faults = Faults()
        marker, found = 0, False
        try:
            with opened(tar) as file:
                marker = file.marker
                for group in _groups(file, text_fields(self.options), faults):
                    found = True
                    yield self._sample(tar, marker, group, columns)
        except Unusable as err:
            faults.add(str(err), unread=str(err) != LEAVES)
        if not faults.count and not found:
            faults.add("no samples in it")
        if what := str(faults):
            holder = tar.name if tar.name.endswith("/") else f"{tar.name}#"
            unlisted = holder if faults.unread else ""
            yield Sample(tar.name, (), tar.name, -1, marker, problem=f"tar: {what}", unlisted=unlisted)

    def _sample(self, tar: File, marker: int, group: Group, columns: ColumnCheck) -> Sample:
        picture, problem = _picture(group, self.options.image_column)
        fields = [name for name, _ in group.fields]
        captions, caption_problem = captions_of(fields, group.texts, self.options, columns)
        size = -1 if problem else picture.size
        place = f"{tar.name}#{picture.offset}"
        return Sample(
            group.key, captions, place, size, marker, problem=problem, caption_problem=caption_problem
        )


def _groups(file: Reader, caption_fields: set[str], faults: Faults) -> Iterator[Group]:
    """Samples in their order, with the payloads that hold captions; what is wrong goes to `faults`."""
    group = None
    for member in members(file.read, file.size):
        if isinstance(member, Damage):
            faults.add(member.what, unread=member.unread)
            continue
        if META.match(member.name) or MACOS.fullmatch(member.name):
            continue
        match = KEY.fullmatch(member.name)
        if match is None or match[1].endswith("/"):
            faults.pass_over(member.name)
            continue
        if group is None or group.key != match[1]:
            if group is not None:
                yield group
            group = Group(match[1])
        name = match[2].lower()
        if len(group.fields) < MAX_FIELDS:
            group.fields.append((name, member))
            if name in caption_fields:
                group.texts.setdefault(name, []).append(_payload(file, name, member))
    if group is not None:
        yield group


def _payload(file: Reader, name: str, member: Member) -> Payload:
    if member.problem:
        return f"{name}: {member.problem}"
    if member.size > MAX_BYTES:
        return f"{name}: {member.size:,} bytes, wanted a caption"
    try:
        return file.read(member.offset, member.size).removeprefix(codecs.BOM_UTF8)
    except Unusable as err:
        return f"{name}: {err}"


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
