"""Prompts in the text column, so that a trainer can draw validation pictures without CLIP.

A file of prompts becomes a part of its own beside the plan's parts; its name holds the prompts' hash, so the
same file again is the same part, and a changed one is a further part.
"""

from collections.abc import Sequence
from pathlib import Path

import xxhash

from data_tools.cache.fields import Column
from data_tools.cache.generation import latest
from data_tools.cache.manifest import PROMPTS, Cache
from data_tools.cache.rows import Container
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault, UserError
from precompute.calls import Calls
from precompute.encoders import Encoder, TextEncoder
from precompute.pipeline import encode_captions
from precompute.summary import Summary

Sets = dict[str, tuple[str, ...]]
"Part → its prompts, one a row."


def read(file: str) -> Sets:
    """The prompts of a text file as one set. Raises `UserError` for a file that has none or is no text."""
    try:
        lines = Path(file).read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as err:
        raise UserError(f"--prompts: {file}: not UTF-8 (byte {err.start}); save it as UTF-8") from None
    except OSError as err:
        raise UserError(f"--prompts: {file}: {(err.strerror or str(err)).lower()}") from None
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise UserError(f"--prompts: {file}: found no prompt, wanted one a line")
    return {PROMPTS + xxhash.xxh3_64_hexdigest("\n".join(prompts).encode())[:8]: prompts}


def wanted(cache: Cache, encoders: Sequence[Encoder], asked: Sets, *, forgiving: bool) -> Sets:
    """The sets that the text column is to have: those asked for, and those that it has, also before a redo.

    Raises `DataFault` for a set whose record cannot be read; `forgiving` leaves it out.
    """
    if not any(isinstance(encoder, TextEncoder) for encoder in encoders):
        return {}
    declared = cache.column("text")
    return {**({} if declared is None else _cached(cache, declared, forgiving=forgiving)), **asked}


def encode(
    cache: Cache, encoder: TextEncoder, sets: Sets, batch_size: int, container: Container
) -> list[str]:
    """Encode and commit each set; what was done, a line each."""
    notes = []
    for part, prompts in sets.items():
        summary = Summary()
        writer = PartWriter(cache.store, encoder.column, part, container=container)
        rows = encode_captions(prompts, encoder, writer, batch_size, Calls(summary))
        writer.prompts = prompts
        for number, prompt in enumerate(prompts):
            try:
                writer.add(number, prompt, [rows[prompt]])
            except ValueError as err:  # an encoder made NaN or infinity
                raise DataFault(f"--prompts: {prompt!r}: {err}") from None
        writer.commit()
        cut = f"; {summary.truncated} were longer than the tokenizer takes and were truncated"
        notes.append(f"encoded {len(prompts)} prompts as {part}{cut * bool(summary.truncated)}")
    return notes


def _cached(cache: Cache, column: Column, *, forgiving: bool) -> Sets:
    """The sets that a column holds, by their commit records; where one is damaged, by the generation."""
    sets: Sets = {}
    for part in sorted(cache.committed(column)):
        if not part.startswith(PROMPTS):
            continue
        try:
            commit = cache.commit(column, part)
            sets |= {} if commit is None else {part: commit.prompts}
        except DataFault:
            known = latest(cache, column).prompt_sets()
            if part in known:
                sets[part] = known[part]
            elif not forgiving:
                raise
    return sets
