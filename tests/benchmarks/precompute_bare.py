"""The encoders alone: forward passes over batches that lie on the device already, nothing read back.

The ceiling of `precompute`: no pipeline is faster than its encoders. Batches are those of `precompute`:
pictures of one size, captions of one length together, as many tokens as in a batch of the longest.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from tests.pocket.tokenizer import MAX_LENGTH


@dataclass
class Bare:
    """One encoder, and batches for it."""

    forward: Callable[[torch.Tensor], Any]
    batches: list[torch.Tensor]
    samples: int
    "In all batches."

    @torch.inference_mode()
    def seconds(self) -> float:
        """Of one pass over the batches."""
        device = self.batches[0].device
        _finish(device)
        started = time.perf_counter()
        for batch in self.batches:
            self.forward(batch)
        _finish(device)
        return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Settings:
    """How the encoders run."""

    device: str
    dtype: torch.dtype
    batch_size: int
    compile: bool = False
    part_size: int = 2048
    "Captions that are sorted by length together."


def vision(models: Path, count: int, settings: Settings) -> Bare:
    model = _load(CLIPVisionModelWithProjection, models / "prior" / "image_encoder", settings)
    side = model.config.image_size
    return Bare(
        lambda pixels: model(pixel_values=pixels).image_embeds, _pictures(side, count, settings), count
    )


def movq(models: Path, resolution: int, count: int, settings: Settings) -> Bare:
    model = _load(VQModel, models / "decoder" / "movq", settings).to(memory_format=torch.channels_last)
    if settings.compile:
        model.encoder.compile()
    batches = _pictures(resolution, count, settings)
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    return Bare(lambda pixels: model.encode(pixels).latents, batches, count)


def text(models: Path, captions: Sequence[str], settings: Settings) -> Bare:
    model = _load(CLIPTextModelWithProjection, models / "prior" / "text_encoder", settings)
    batches = []
    for ids in by_length(tokenize(models, captions), settings):
        batches.append(torch.tensor(ids, device=settings.device))
    return Bare(lambda ids: model(input_ids=ids).last_hidden_state, batches, len(captions))


def tokenize(models: Path, captions: Sequence[str]) -> list[list[int]]:
    tokenizer = CLIPTokenizer.from_pretrained(models / "prior" / "tokenizer")
    return list(tokenizer(list(captions), truncation=True, max_length=MAX_LENGTH).input_ids)


def by_length(token_ids: Sequence[list[int]], settings: Settings) -> list[list[list[int]]]:
    """Batches of captions of one length, each of `batch_size` · 77 tokens or fewer, part by part."""
    batches = []
    for first in range(0, len(token_ids), settings.part_size):
        groups: dict[int, list[list[int]]] = {}
        for ids in token_ids[first : first + settings.part_size]:
            groups.setdefault(len(ids), []).append(ids)
        for length, group in sorted(groups.items()):
            size = settings.batch_size * MAX_LENGTH // length
            batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _pictures(side: int, count: int, settings: Settings) -> list[torch.Tensor]:
    """Random ones, the last batch of what is left: (B, 3, side, side)."""
    sizes = [min(settings.batch_size, count - first) for first in range(0, count, settings.batch_size)]
    shapes = [(size, 3, side, side) for size in sizes]
    return [torch.randn(shape, device=settings.device, dtype=settings.dtype) for shape in shapes]


def _load(model_class: Any, folder: Path, settings: Settings) -> Any:
    model = model_class.from_pretrained(folder, torch_dtype=settings.dtype)
    model = model.requires_grad_(False).eval().to(settings.device)
    if settings.compile and model_class is not VQModel:
        model.compile(dynamic=model_class is CLIPTextModelWithProjection)
    return model
