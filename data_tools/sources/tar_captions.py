"""Captions of a sample in a webdataset tar: its text members, the keys of its JSON member."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_tools.errors import UserError
from data_tools.sources.captions import EMPTY, Captions, of_cells, of_file
from data_tools.sources.sample import SourceOptions

TYPO_SAMPLES = 1000
"Samples without any of the named caption columns, after which the name is taken for a mistake."
SHOWN_SAMPLES = 10
"Samples from which the message takes what they have."
MAX_SHOWN = 30
"Names in that message."

Payload = bytes | str
"Of a member; a string says why it could not be read."


class ColumnCheck:
    """Tells a mistyped `--caption-column` from samples that have no caption."""

    def __init__(self, data: str, options: SourceOptions) -> None:
        self.named = bool(options.caption_columns)
        self._data, self._names, self._missed, self._found = data, options.caption_columns, 0, not self.named
        self._fields: set[str] = set()
        self._keys: set[str] = set()

    def saw(self, fields: Sequence[str], rows: Sequence[dict[str, Any] | str]) -> None:
        """A sample's members and its JSON; raises `UserError` if it is one too many without the column."""
        if self._found or any(isinstance(row, str) for row in rows):  # what cannot be read may have had it
            return
        keys = {key for row in rows for key in row}
        self._found = any(name in keys or name.lower() in fields for name in self._names)
        self._missed += 1
        if self._missed <= SHOWN_SAMPLES:
            self._fields.update(fields)
            self._keys.update(keys)
        if self._missed >= TYPO_SAMPLES:
            self.at_end()

    def at_end(self) -> None:
        """Raises `UserError` for a mistake."""
        if self._found or not self._missed:
            return
        names = " or ".join(map(repr, self._names))
        members = " ".join(f".{name}" for name in sorted(self._fields)[:MAX_SHOWN])
        keys = f"the JSON keys {', '.join(sorted(self._keys)[:MAX_SHOWN])}" if self._keys else "no JSON"
        raise UserError(
            f"--caption-column: {self._data} has no {names}; it has the members {members} and {keys}"
        )


def text_fields(options: SourceOptions) -> set[str]:
    """Members that captions are looked for in."""
    return {"json", "txt", *map(str.lower, options.caption_columns)}


def captions_of(
    fields: Sequence[str],
    texts: Mapping[str, Sequence[Payload]],
    options: SourceOptions,
    columns: ColumnCheck,
) -> Captions:
    """From the fields and JSON keys that the user named; else from `txt`, else from the usual keys.

    `fields`: all of the sample; `texts`: payloads of those that hold captions.
    """
    named = [name for name in options.caption_columns if name.lower() != "json"]
    names = named if columns.named else ["txt"]
    found = [_of_text(data, options) for name in names for data in texts.get(name.lower(), [])]
    if columns.named or not any(captions for captions, _ in found):
        rows = [_object(data, options.lenient) for data in texts.get("json", [])]
        columns.saw(fields, rows)
        found += [_of_row(row, options, columns.named) for row in rows]
    captions = tuple(dict.fromkeys(text for some, _ in found for text in some))
    problems = [problem for _, problem in found if problem]
    return captions, "" if captions else next(
        (problem for problem in problems if problem != EMPTY), "".join(problems[:1])
    )


def _of_text(data: Payload, options: SourceOptions) -> Captions:
    return ((), data) if isinstance(data, str) else of_file(data, options)


def _of_row(row: dict[str, Any] | str, options: SourceOptions, named: bool) -> Captions:
    if isinstance(row, str):
        return (), row
    usual = [key for key in ("caption", "text") if row.get(key)][:1]
    keys = options.caption_columns if named else usual
    return of_cells([row.get(key) for key in keys], lenient=options.lenient)


def _object(data: Payload, lenient: bool) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with it."""
    if isinstance(data, str):
        return data
    try:
        row = json.loads(data.decode("utf-8", "replace" if lenient else "strict"))
    except UnicodeDecodeError:
        return "json: not UTF-8; --lenient decodes it"
    except (ValueError, RecursionError):
        return "json: no JSON"
    return row if isinstance(row, dict) else "json: no JSON object"
