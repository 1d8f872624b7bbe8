"""Captions out of table cells and caption files: text that UTF-8 can hold, or a reason why there is none."""

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from data_tools.sources.inside import read_inside
from data_tools.sources.sample import SourceOptions, Unusable, shown

SUFFIXES = ((".txt", ".TXT"), (".caption", ".CAPTION"))
"Of caption files; the first of a pair that is there is read."
EMPTY = "caption is empty"
MAX_BYTES = 1 << 20
"Of a caption file."

Captions = tuple[tuple[str, ...], str]
"Captions, and why there is none where there is more to say."


def of_cells(cells: Iterable[object], *, lenient: bool, escaped: bool = False) -> Captions:
    """The captions in some cells: strings, UTF-8 bytes, lists of them; None is no caption.

    With `escaped`, bytes that are not UTF-8 stand in strings as Python's `surrogateescape` leaves them;
    otherwise half of a surrogate pair, which JSON may hold, becomes a question mark.
    """
    captions, faults = [], []
    for value in _flat(cells):
        try:
            text = _text(_bytes_again(value) if escaped else value, lenient)
        except Unusable as fault:
            faults.append(str(fault))
            continue
        if text.strip():
            captions.append(text.encode("utf-8", "replace").decode())
        else:
            faults.append(EMPTY)
    return tuple(captions), "" if captions else _first(faults)


def beside(root: str, place: str, options: SourceOptions) -> Captions:
    """The captions in the caption files of a picture; `root` is a resolved path."""
    captions: list[str] = []
    faults = []
    stem = PurePosixPath(place).with_suffix("").as_posix()
    for spellings in SUFFIXES:
        name = next(
            (stem + suffix for suffix in spellings if os.path.lexists(f"{root}/{stem}{suffix}")), None
        )
        if name is None:
            continue
        try:
            data = read_inside(root, name, max_bytes=MAX_BYTES).removeprefix(codecs.BOM_UTF8)
        except Unusable as reason:
            faults.append(f"{shown(name)}: {reason}")
            continue
        found, fault = of_file(data, options)
        captions += found
        faults.append(fault)
    return tuple(captions), "" if captions else _first(faults)


def of_file(data: bytes, options: SourceOptions) -> Captions:
    """The caption, or with `caption_lines` the captions, in the bytes of a caption file."""
    try:
        text = _text(data, options.lenient)
    except Unusable as fault:
        return (), str(fault)
    lines = text.splitlines() if options.caption_lines else [text]
    captions = tuple(line.strip() for line in lines if line.strip())
    return captions, "" if captions else EMPTY


def joined(first: Captions, second: Captions) -> Captions:
    """The captions of both; a reason only if neither has one."""
    captions = first[0] + second[0]
    return captions, "" if captions else _first([first[1], second[1]])


def _flat(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif value is not None:
            yield value


def _text(value: object, lenient: bool) -> str:
    """Raises `Unusable`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise Unusable(f"caption is of type {type(value).__name__}, wanted text")
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        if lenient:
            return value.decode(errors="replace")
        where = f"byte 0x{value[err.start]:02x} at {err.start}"
        raise Unusable(f"caption is not UTF-8 ({where}); --lenient decodes it") from None


def _bytes_again(value: object) -> object:
    """The bytes that a string was decoded from, if they were not UTF-8."""
    if not isinstance(value, str) or not any("\udc80" <= letter <= "\udcff" for letter in value):
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value


def _first(faults: list[str]) -> str:
    """The fault that says most."""
    return next((fault for fault in faults if fault not in ("", EMPTY)), EMPTY if EMPTY in faults else "")
