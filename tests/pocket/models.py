"""Fresh pocket models from their configs: published block types and ids, small widths, weights from a seed.

Cost per sample as `python -m tests.pocket` counts it, text at 77 tokens, and relative to vision:

                      pocket, GFLOP       Kandinsky 2.2, TFLOP
                      (at 128 pixels)     (at 768 pixels)
    vision            0.399   1.00        0.97    1.00
    text              0.045   0.11        0.10    0.10
    prior forward     0.062   0.16        0.165   0.17
    MoVQ encode       1.077   2.70        2.5     2.58
    UNet forward      0.851   2.13        2.0     2.06

The UNet is widest at full resolution, the reverse of the published one: to cost as much with 5 M parameters.
Legend: B samples, T tokens, D = 64 the common CLIP width, H x W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.image_processing_utils import BaseImageProcessor

from tests.pocket.tokenizer import MAX_LENGTH, pocket_tokenizer

EMBED_DIM = 64  # D: width of CLIP's shared space, of the text states and of the prior's input
IMAGE_SIZE = 112  # pixels a side that the vision model sees
# At CLIP's own scale a random encoder maps everything to nearly one point: 0.97 mean cosine between pictures.
# These, undone in the last projection, keep different inputs apart (0.8) and embeddings near unit variance.
TEXT_INIT_FACTOR = 4.0
VISION_INIT_FACTOR = 2.0
LATENT_GAIN = (
    6.0  # brings the random encoder's latents to about the variance of the noise they are mixed with
)


@contextmanager
def seeded(seed: int, stream: int) -> Iterator[None]:
    """Draw weights from (seed, stream) and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 100 + stream)
        yield


def pocket_vision(seed: int = 0) -> CLIPVisionModelWithProjection:
    """Pixels (B, 3, 112, 112), CLIP-normalised -> `image_embeds` (B, D), not L2-normalised."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=EMBED_DIM,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_act="gelu",
        initializer_factor=VISION_INIT_FACTOR,
    )
    with seeded(seed, 1), torch.no_grad():
        model = CLIPVisionModelWithProjection(config)
        model.visual_projection.weight.div_(VISION_INIT_FACTOR)
    return model.eval()


def pocket_text_encoder(seed: int = 0, tokenizer: CLIPTokenizer | None = None) -> CLIPTextModelWithProjection:
    """Ids (B, T) of `tokenizer` -> `text_embeds` (B, D), pooled at the first EOS, and states (B, T, D)."""
    tokenizer = tokenizer or pocket_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=EMBED_DIM,
        intermediate_size=4 * EMBED_DIM,
        projection_dim=EMBED_DIM,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=TEXT_INIT_FACTOR,
    )
    with seeded(seed, 2), torch.no_grad():
        model = CLIPTextModelWithProjection(config)
        model.text_projection.weight.div_(TEXT_INIT_FACTOR)
    return model.eval()


def pocket_prior(
    seed: int = 0, clip_mean: torch.Tensor | None = None, clip_std: torch.Tensor | None = None
) -> PriorTransformer:
    """The prior over D-wide embeddings. `clip_mean` (D,) defaults to small numbers, `clip_std` (D,) to ones.

    A fresh model has zeros there and in the position and prd embeddings; a trained one does not.
    """
    with seeded(seed, 3):
        prior = PriorTransformer(
            num_attention_heads=3,
            attention_head_dim=32,
            num_layers=3,
            embedding_dim=EMBED_DIM,
            num_embeddings=MAX_LENGTH,
            additional_embeddings=4,
        )
        with torch.no_grad():
            prior.positional_embedding.normal_(std=0.1)
            prior.prd_embedding.normal_(std=0.1)
            mean = 0.1 * torch.randn(EMBED_DIM) if clip_mean is None else clip_mean
            prior.clip_mean.copy_(mean.reshape(1, EMBED_DIM))
            prior.clip_std.copy_(
                (torch.ones(EMBED_DIM) if clip_std is None else clip_std).reshape(1, EMBED_DIM)
            )
    return prior.eval()


def pocket_unet(seed: int = 0) -> UNet2DConditionModel:
    """Noisy latents (B, 4, H/8, W/8), time, `image_embeds` (B, D) -> mean and variance (B, 8, H/8, W/8)."""
    with seeded(seed, 4):
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=8,
            block_out_channels=(112, 32, 48, 64),
            layers_per_block=2,
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
            attention_head_dim=16,
            cross_attention_dim=32,
            encoder_hid_dim=EMBED_DIM,
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
            norm_num_groups=16,
            resnet_time_scale_shift="scale_shift",
        ).eval()


def pocket_movq(seed: int = 0) -> VQModel:
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 4, H/8, W/8). `SpatialNorm` needs 32 channels."""
    with seeded(seed, 5), torch.no_grad():
        movq = VQModel(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            vq_embed_dim=4,
            num_vq_embeddings=256,
            layers_per_block=1,
            block_out_channels=(32, 32, 32, 64),
            norm_num_groups=8,
            norm_type="spatial",
            sample_size=32,
            scaling_factor=0.18215,
            down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
        )
        movq.quant_conv.weight.mul_(LATENT_GAIN)
    return movq.eval()


def pocket_image_processor() -> BaseImageProcessor:
    """CLIP's processor at 112 pixels, the backend that resizes with PIL."""
    try:
        from transformers import CLIPImageProcessorPil as Processor
    except ImportError:  # transformers 4 has the one class
        from transformers import CLIPImageProcessor as Processor
    return Processor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def pocket_prior_scheduler() -> UnCLIPScheduler:
    """The published prior's sampling schedule."""
    return UnCLIPScheduler(
        num_train_timesteps=1000,
        variance_type="fixed_small_log",
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=10.0,
        beta_schedule="squaredcos_cap_v2",
    )


def pocket_decoder_scheduler() -> DDPMScheduler:
    """The published decoder's schedule, for training and sampling."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        clip_sample=False,
        thresholding=False,
        steps_offset=1,
    )
