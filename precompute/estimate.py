"""What a run would do: the text behind `--dry-run`. No weights are loaded; FLOPs are counted on "meta"."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from data_tools.cache.manifest import Part
from data_tools.cache.report import human_bytes
from data_tools.sources import Source
from precompute.encoders import Encoder, ImageEncoder, TextEncoder


def describe(
    source: Source,
    plan: list[Part],
    work: list[tuple[Part, list[Encoder]]],
    encoders: list[Encoder],
    sets: Mapping[str, Sequence[str]],
) -> str:
    """Parts and samples to do, bytes to write and encoder FLOPs, for each column; and sets of prompts."""
    captions = [caption for sample in source for caption in sample.captions]
    samples = sum(part.samples for part in plan)
    lines = [f"{samples} samples and {len(captions)} captions in {len(plan)} parts", ""]
    lines.append(f"{'column':<14}{'parts to do':>12}{'samples':>10}{'to write':>12}{'TFLOP':>12}")
    for encoder in encoders:
        todo = [part for part, lacking in work if encoder in lacking]
        count = sum(part.samples for part in todo)
        share = count / samples if samples else 0.0
        tokens = [len(ids) for ids in encoder.tokenize(captions)] if isinstance(encoder, TextEncoder) else []
        written, flops = _costs(encoder, count, share, tokens)
        size = human_bytes(written)
        lines.append(f"{encoder.column.name:<14}{len(todo):>12}{count:>10}{size:>12}{flops / 1e12:>12.4g}")
    lines += [f"and {len(texts)} prompts as {part}" for part, texts in sets.items()]
    return "\n".join([*lines, "", "nothing was written (--dry-run)"])


def _costs(encoder: Encoder, samples: int, share: float, tokens: list[int]) -> tuple[float, float]:
    """Bytes and FLOPs of a column's missing samples; captions are counted by `share` of the whole source."""
    fields = encoder.column.fields
    if not isinstance(encoder, TextEncoder):
        return samples * fields[0].item_bytes, samples * forward_flops(encoder, 0)
    embeds, hidden = fields
    written = sum(embeds.item_bytes + n * hidden.item_bytes for n in tokens)
    longest = max(tokens, default=0)
    flops_a_token = forward_flops(encoder, longest) / longest if longest else 0.0
    return share * written, share * sum(tokens) * flops_a_token


def forward_flops(encoder: Encoder, num_tokens: int) -> int:
    """FLOPs of one picture, or of one caption of that many tokens, counted by torch on meta tensors."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = _empty_model(encoder)
        if isinstance(encoder, TextEncoder):
            model(input_ids=torch.zeros((1, num_tokens), dtype=torch.long))
        elif isinstance(encoder, ImageEncoder):
            size = model.config.image_size
            model(pixel_values=torch.zeros((1, 3, size, size)))
        else:
            model.encode(torch.zeros((1, 3, encoder.resolution, encoder.resolution)))
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
