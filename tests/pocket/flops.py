"""What one sample costs in each pocket model, counted by torch on real forwards."""

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.pocket import models
from tests.pocket.tokenizer import MAX_LENGTH

RESOLUTION = 128  # pixels a side, for the UNet and the MoVQ
BATCH = 8
# TFLOP a sample of the published models: the decoder's pair at 768 pixels, 77 tokens.
PUBLISHED = {"vision": 0.97, "text": 0.10, "prior": 0.165, "movq encode": 2.5, "unet": 2.0}


def cost_table(seed: int = 0) -> str:
    """One line per model: parameters, GFLOP and ms a sample, cost in vision forwards (published)."""
    counted, timed = _forwards(seed, batch=1), _forwards(seed, BATCH)
    rows = {name: (p, _gflop(step), _milliseconds(timed[name][1])) for name, (p, step) in counted.items()}
    unit = rows["vision"][1]
    lines = [f"{'':12} {'params':>8} {'GFLOP':>7} {'ms':>6}   per vision forward (published)"]
    for name, (params, gflop, ms) in rows.items():
        relative = f"{gflop / unit:6.2f} ({PUBLISHED[name] / PUBLISHED['vision']:.2f})"
        lines.append(f"{name:12} {params / 1e6:7.2f}M {gflop:7.3f} {ms:6.2f}   {relative}")
    lines.append(f"{'together':12} {sum(row[0] for row in rows.values()) / 1e6:7.2f}M")
    return "\n".join(lines)


def _forwards(seed: int, batch: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Parameters and one forward of `batch` samples of every model."""
    vision, text, prior = (
        models.pocket_vision(seed),
        models.pocket_text_encoder(seed),
        models.pocket_prior(seed),
    )
    movq, unet = models.pocket_movq(seed), models.pocket_unet(seed)
    pixels = torch.rand(batch, 3, models.IMAGE_SIZE, models.IMAGE_SIZE)
    ids = torch.full((batch, MAX_LENGTH), text.config.eos_token_id)
    embeds = torch.randn(batch, models.EMBED_DIM)
    states = torch.randn(batch, MAX_LENGTH, models.EMBED_DIM)
    mask = torch.ones(batch, MAX_LENGTH, dtype=torch.bool)
    pictures = torch.rand(batch, 3, RESOLUTION, RESOLUTION)
    latents = torch.randn(batch, 4, RESOLUTION // 8, RESOLUTION // 8)
    condition = {"image_embeds": embeds}
    steps: dict[str, tuple[torch.nn.Module, Callable[[], object]]] = {
        "vision": (vision, lambda: vision(pixels)),
        "text": (text, lambda: text(ids)),
        "prior": (prior, lambda: prior(embeds, 500, embeds, states, mask)),
        "movq encode": (movq, lambda: movq.encode(pictures)),
        "unet": (unet, lambda: unet(latents, 500, None, added_cond_kwargs=condition)),
    }
    return {name: (sum(p.numel() for p in model.parameters()), step) for name, (model, step) in steps.items()}


@torch.no_grad()
def _gflop(step: Callable[[], object]) -> float:
    """What one call costs. The fused attention kernel would count as nothing, so not that one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def _milliseconds(step: Callable[[], object], calls: int = 4) -> float:
    """The quickest of `calls`, by the sample: other work on the machine only ever adds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times) / BATCH * 1e3
