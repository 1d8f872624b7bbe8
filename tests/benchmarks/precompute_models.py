"""Encoder sets with random weights: the published widths, and small ones of the same proportions of FLOPs.

A set is written as the two repositories that `precompute` reads, with the tokenizer of the pocket Kandinsky.
The configs of the published models are those of `reference/kandinsky-2-2.md` §3.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.pocket.tokenizer import MAX_LENGTH, VOCAB_SIZE, write_tokenizer_files

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MOVQ = {
    "down_block_types": [*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3],
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True)
class EncoderSet:
    """Configs of the three frozen encoders."""

    vision: dict[str, Any]
    text: dict[str, Any]
    movq: dict[str, Any]
    resolution: int
    "Pixels a side, of MoVQ's squares."


PUBLISHED = EncoderSet(
    vision={"hidden_size": 1664, "intermediate_size": 8192, "projection_dim": 1280, "num_hidden_layers": 48}
    | {"num_attention_heads": 16, "image_size": 224, "patch_size": 14},
    text={"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32}
    | {"num_attention_heads": 20, "vocab_size": 49408},
    movq=MOVQ
    | {"block_out_channels": [128, 256, 256, 512], "layers_per_block": 2, "norm_num_groups": 32}
    | {"num_vq_embeddings": 16384},
    resolution=768,
)
# vision 1 : text 0.10 : MoVQ 2.6, as the published ones at 768 pixels; about a thousandth of their FLOPs
PROPORTIONAL = EncoderSet(
    vision={"hidden_size": 160, "intermediate_size": 832, "projection_dim": 128, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "image_size": 224, "patch_size": 14},
    text={"hidden_size": 128, "intermediate_size": 496, "projection_dim": 128, "num_hidden_layers": 3}
    | {"num_attention_heads": 4, "vocab_size": VOCAB_SIZE},
    movq=MOVQ
    | {"block_out_channels": [32, 32, 32, 64], "layers_per_block": 1, "norm_num_groups": 8}
    | {"num_vq_embeddings": 256},
    resolution=192,
)
# the cheapest that run: for what does not depend on the encoders
TINY = EncoderSet(
    vision={"hidden_size": 32, "intermediate_size": 64, "projection_dim": 128, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "image_size": 64, "patch_size": 16},
    text={"hidden_size": 32, "intermediate_size": 64, "projection_dim": 128, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "vocab_size": VOCAB_SIZE},
    movq=PROPORTIONAL.movq,
    resolution=64,
)


def vision_model(chosen: EncoderSet) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_act="gelu", **chosen.vision))


def text_model(chosen: EncoderSet, special: dict[str, int]) -> CLIPTextModelWithProjection:
    """`special`: ids of the tokenizer's special tokens."""
    config = CLIPTextConfig(hidden_act="gelu", max_position_embeddings=MAX_LENGTH, **special, **chosen.text)
    return CLIPTextModelWithProjection(config)


def movq_model(chosen: EncoderSet) -> VQModel:
    return VQModel(**chosen.movq)


def write_models(
    folder: Path,
    chosen: EncoderSet,
    captions: Sequence[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """`folder`/prior and `folder`/decoder, only what `precompute` reads; weights drawn on the device."""
    prior, decoder = folder / "prior", folder / "decoder"
    write_tokenizer_files(prior / "tokenizer", captions)
    vocab = json.loads((prior / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    end = vocab["<|endoftext|>"]
    special = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": end, "pad_token_id": end}
    side = chosen.vision["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        **dict.fromkeys(
            ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True
        ),
    }
    (prior / "image_processor").mkdir()
    (prior / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        vision_model(chosen).to(dtype).save_pretrained(prior / "image_encoder")
        text_model(chosen, special).to(dtype).save_pretrained(prior / "text_encoder")
        movq_model(chosen).to(dtype).save_pretrained(decoder / "movq")


def flops(chosen: EncoderSet, tokens: int = MAX_LENGTH) -> dict[str, int]:
    """Column → FLOPs of one sample, a caption of that many tokens; counted by torch without any weights."""
    side, resolution = chosen.vision["image_size"], chosen.resolution
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    forwards: dict[str, Callable[[], Any]] = {
        "image": lambda: vision_model(chosen)(pixel_values=torch.zeros(1, 3, side, side)),
        "text": lambda: text_model(chosen, special)(input_ids=torch.ones(1, tokens, dtype=torch.long)),
        f"latents@{resolution}": lambda: movq_model(chosen).encode(torch.zeros(1, 3, resolution, resolution)),
    }
    counted = {}
    for name, forward in forwards.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        counted[name] = int(counter.get_total_flops())
    return counted
