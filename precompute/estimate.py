"""What a run would do: the text behind `--dry-run`. No weights are loaded; FLOPs are counted on "meta".

With buckets a picture's own is not known before it is decoded: each counts as the largest, "at most".
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from data_tools import models
from data_tools.cache.listing import Listing
from data_tools.cache.manifest import Cache
from data_tools.cache.report import human_bytes
from data_tools.sources import Sample
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, PictureEncoder, TextEncoder
from precompute.parts import Todo, live


@dataclass
class _Work:
    """What is to come of one column."""

    samples: int = 0
    "To encode."
    num_bytes: int = 0
    "To write: also of rows that are taken over from older parts."
    lengths: Counter[int] = field(default_factory=Counter)
    "Tokens of a caption → captions to encode: one that several samples of a part share counts once."


def describe(
    cache: Cache, listing: Listing, todo: Todo, encoders: Sequence[Encoder], tflops: float | None = None
) -> str:
    """What has changed, and what is to encode and to write, column by column; and sets of prompts.

    `tflops`: what a GPU achieves, TFLOP a second, for the GPU-hours that it would take.
    """
    parts = len(listing.parts) + sum(1 for _ in listing.fresh())
    lines = [f"{listing.samples} samples and {listing.captions} captions in {parts} parts", ""]
    heads = ("kept", "new", "changed", "removed", "to encode", "to write", "TFLOP")
    lines.append(f"{'column':<14}" + "".join(f"{head:>11}" for head in heads))
    examples, total = [], 0.0
    for encoder in encoders:
        name, work = encoder.column.name, _work(cache, listing, todo, encoder)
        found, tflop = listing.changes.of_column(name), _flops(encoder, work) / 1e12
        total += tflop
        counts = [f"{count}" for count, _ in found.values()]
        cells = [*counts, f"{work.samples}", human_bytes(work.num_bytes), f"{tflop:.4g}"]
        at_most = "  at most" * is_bucketed(encoder)
        lines.append(f"{name:<14}" + "".join(f"{cell:>11}" for cell in cells) + at_most)
        if listing.plan is not None:
            shown = [
                f"{word}: {', '.join(keys)}" for word, (_, keys) in found.items() if keys and word != "kept"
            ]
            examples += [f"{name}: {'; '.join(shown)}"] * bool(shown)
    prompts = [f"and {len(texts)} prompts as {part}" for part, texts in todo.sets.items()]
    cost = _total(total, tflops, at_most=any(map(is_bucketed, encoders)))
    return "\n".join([*lines, cost, *prompts, *examples, "", "nothing was written (--dry-run)"])


def is_bucketed(encoder: Encoder) -> bool:
    return any(field.bucketed for field in encoder.column.fields)


def _total(tflop: float, tflops: float | None, *, at_most: bool) -> str:
    """Of all columns; the null conditions and sets of prompts, a few rows, are left out."""
    line = f"{'at most ' * at_most}{tflop:.4g} TFLOP"
    if tflops is None:
        return f"{line}; give --tflops for the GPU-hours"
    hours = tflop / tflops / 3600
    return f"{line}, {f'{hours:,.1f}' if hours >= 0.05 else f'{hours:.2g}'} GPU-hours at {tflops:g} TFLOP/s"


def _work(cache: Cache, listing: Listing, todo: Todo, encoder: Encoder) -> _Work:
    """Goes through the samples of the parts that the column lacks, a part at a time."""
    work, fields = _Work(), encoder.column.fields
    for samples in _lacking(cache, listing, todo, encoder):
        encoded = [todo.encodes(encoder, sample) for sample in samples]
        if not isinstance(encoder, TextEncoder):
            usable = [is_encoded for is_encoded, sample in zip(encoded, samples) if not sample.problem]
            work.samples += sum(usable)
            work.num_bytes += len(usable) * views(encoder) * _picture_bytes(encoder)
            continue
        captions = [*dict.fromkeys(caption for sample in samples for caption in sample.captions)]
        lengths = dict(zip(captions, map(len, encoder.tokenize(captions))))
        chosen = [sample for sample, is_encoded in zip(samples, encoded) if is_encoded and sample.captions]
        work.samples += len(chosen)
        work.lengths.update(lengths[each] for each in {each for one in chosen for each in one.captions})
        counts = [lengths[caption] for sample in samples for caption in sample.captions]
        work.num_bytes += len(counts) * fields[0].item_bytes + sum(counts) * fields[1].item_bytes
    return work


def views(encoder: PictureEncoder) -> int:
    """Rows of a sample."""
    return 1 + encoder.options.flip


def _picture_bytes(encoder: PictureEncoder) -> int:
    """Of a picture's row, of the largest bucket where there are several."""
    field = encoder.column.fields[0]
    if not field.bucketed:
        return field.item_bytes
    assert isinstance(encoder, LatentsEncoder)
    blocks = models.config(encoder.folder, flag="--decoder-model")["block_out_channels"]
    pixels_a_value = 4 ** (len(blocks) - 1)
    return int(field.shape[0]) * math.prod(_largest(encoder)) // pixels_a_value * field.storage.itemsize


def _largest(encoder: LatentsEncoder) -> tuple[int, int]:
    """Width and height of the bucket of most pixels: MoVQ's cost grows with them alone."""
    return max(encoder.sizes, key=math.prod)


def _lacking(cache: Cache, listing: Listing, todo: Todo, encoder: Encoder) -> Iterator[list[Sample]]:
    """The samples of every part that a column lacks, of those to be added too."""
    for part, lacking in todo.parts:
        if encoder in lacking:
            yield [*live(cache, part).values()]
    yield from listing.fresh()


def _flops(encoder: Encoder, work: _Work) -> float:
    if not work.samples:
        return 0.0
    if not isinstance(encoder, TextEncoder):
        return float(work.samples * views(encoder) * forward_flops(encoder, 0))
    return float(text_flops(encoder, work.lengths))


def text_flops(encoder: TextEncoder, lengths: Counter[int]) -> int:
    """FLOPs of captions: tokens → captions of so many.

    Attention makes it a quadratic of the tokens, so three lengths are counted: to count all takes a minute.
    """
    with torch.device("meta"):
        model = _empty_model(encoder)
    one, two, three = (forward_flops(encoder, tokens, model) for tokens in (1, 2, 3))
    slope, bend = two - one, three - 2 * two + one
    return sum(
        count * (one + (tokens - 1) * slope + (tokens - 1) * (tokens - 2) // 2 * bend)
        for tokens, count in lengths.items()
    )


def forward_flops(encoder: Encoder, num_tokens: int, model: Any = None) -> int:
    """FLOPs of one view of a picture (of the largest bucket), or of one caption of that many tokens.

    Counted by torch on meta tensors. `model`: the encoder's on "meta", if it has been made.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = model or _empty_model(encoder)
        if isinstance(encoder, TextEncoder):
            model(input_ids=torch.zeros((1, num_tokens), dtype=torch.long))
        elif isinstance(encoder, ImageEncoder):
            size = model.config.image_size
            model(pixel_values=torch.zeros((1, 3, size, size)))
        else:
            width, height = _largest(encoder)
            model.encode(torch.zeros((1, 3, height, width)))
    return int(counter.get_total_flops())


def _empty_model(encoder: Encoder) -> Any:
    """The encoder's model with its config and no weights."""
    if isinstance(encoder, TextEncoder):
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        return CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(encoder.folder))
    if isinstance(encoder, ImageEncoder):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(encoder.folder))
    from diffusers import VQModel

    return VQModel.from_config(VQModel.load_config(encoder.folder))
