"""The prior's forward with the padding last, over the weights of an unchanged diffusers `PriorTransformer`.

The reference pads every text to 77 rows and adds a (B · heads, 81, 81) mask to the attention, which is causal
and hides the pads. Here the pads come behind everything else, and causality alone hides them:

    reference   text_0 … text_{n-1}  pad … pad  prompt_embed  time  noisy  prd
    here        text_0 … text_{n-1}  prompt_embed  time  noisy  prd  pad … pad

Nothing that is read changes: in both, a token sees exactly the tokens before it that are no pads, and each
keeps the positional embedding it has in the reference, 0 … n-1 and 77 … 80; all else in a block works on one
token at a time. So the output, read at row n + 3, and all gradients equal the reference's to rounding, with
no mask and a third of the work for captions of 20 tokens.

Of all this only the last three tokens know of the timestep and the noise. So K draws of these for each sample
need the first part, their prefix, once, and K suffixes that do not see each other:

    text_0 … text_{n-1}  pad …  prompt_embed  time_1  noisy_1  prd_1  …  time_K  noisy_K  prd_K

A mask says who sees whom here, so the pads stay where the text has them and all rows are at the same places
in every sample. One sequence rather than two that share keys and values: each layer then is one product of
matrices, and next to those attention costs nothing (under 1 % of the prior's FLOPs at these lengths). K
outputs and their gradients equal those of K passes to rounding. With a caption of 20 tokens a draw more costs
3 tokens instead of 24.

Legend: B samples, K draws of each, N text rows, L sequence length (N + 1 + 3 K), D embedding width,
H = heads · head width.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from data_tools.errors import UserError
from train.attention import Kernel, sdpa

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.prior_transformer import PriorTransformer

NUM_EXTRA = 4
"""Tokens after the text: prompt_embed, time, noisy, prd. The output is read at the last of them."""
NUM_SUFFIX = 3
"""Of these the ones that a draw has for itself: all but prompt_embed."""

# The released prior's values, and the only ones this forward implements.
_IMPLEMENTED = {
    "added_emb_type": "prd",
    "additional_embeddings": NUM_EXTRA,
    "dropout": 0.0,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "norm_in_type": None,
}


class CausalAttention:
    """Attention processor: a causal kernel without a mask tensor, or with the mask that it is given.

    Several draws of a sample come with a mask, one for all heads. So does the stock forward, which in the
    pipelines always passes one for each head, and still works on the same module. It has no weights.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, L, H), attention_mask None or additive (B · heads or B, L, L). -> (B, L, H)."""
        assert encoder_hidden_states is None, "the prior has self-attention only"
        query, key, value = (
            proj(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, L, head width)
            for proj in (attn.to_q, attn.to_k, attn.to_v)
        )
        mask = None
        if attention_mask is not None:
            masks = attention_mask.to(query.dtype)
            mask = masks.unflatten(0, (query.shape[0], -1))  # (B, heads or 1, L, L)
        out = self.kernel(query, key, value, mask)  # (B, heads, L, head width)
        out = out.transpose(1, 2).flatten(2)  # (B, L, H)
        for layer in attn.to_out:
            out = layer(out)
        return out


class CausalPrior(nn.Module):
    """A `PriorTransformer` (`.prior`) whose pads come last.

    The wrapped model keeps its parameters, their names and its config: `.prior.save_pretrained` writes what
    any pipeline loads. Two things are changed on it: its attention processors, and `clip_mean` and
    `clip_std`, which no longer ask for gradients (no forward uses them, and DDP fails on its second step for
    a parameter that gets none).

    Raises UserError for a config that this forward does not implement.
    """

    def __init__(self, prior: "PriorTransformer", attention: Kernel = sdpa) -> None:
        super().__init__()
        _check(prior)
        prior.set_attn_processor(cast(Any, CausalAttention(attention)))  # diffusers' type lists its own only
        prior.clip_mean.requires_grad_(False)
        prior.clip_std.requires_grad_(False)
        self.prior = prior
        self.gradient_checkpointing = self.has_dropout = False

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each block's input for the backward pass and compute the rest again there."""
        self.gradient_checkpointing = True
        # a LoRA's: `_check` lets no other through
        self.has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.prior.modules())

    def compile_with(self, mode: str) -> None:
        """torch.compile in place, for static shapes, with its `mode`.

        The blocks are alike, so one is compiled for all of them; CUDA graphs, which the other modes take,
        hold the whole forward.
        """
        parts = self.prior.transformer_blocks if mode == "default" else [self]
        for part in parts:
            part.compile(mode=mode, dynamic=False)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        text_encoder_hidden_states: Tensor,
        n_tokens: Tensor,
    ) -> Tensor:
        """The predicted image embeddings, normalised by clip_mean and clip_std, (B · K, D).

        noisy                       (B · K, D) normalised image embedding with noise; the K draws of a sample
                                    follow each other
        timesteps                   (B · K,) int64
        prompt_embeds               (B, D)
        text_encoder_hidden_states  (B, N, D); rows from n_tokens on are never read, but must be finite.
                                    N may be anything from the longest text up (trim it, or round it up);
                                    rows past the prior's 77 are cut off.
        n_tokens                    (B,) int64, valid rows of each text
        """
        text, extra = self._tokens(noisy, timesteps, prompt_embeds, text_encoder_hidden_states)
        if extra.shape[1] == NUM_EXTRA:
            tokens, mask = _pads_last(text, extra, n_tokens), None  # (B, L, H)
        else:
            tokens, mask = torch.cat([text, extra], dim=1), _draws_apart(text, extra, n_tokens)
        for block in self.prior.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(
                    block, tokens, mask, use_reentrant=False, preserve_rng_state=self.has_dropout
                )
            else:
                tokens = block(tokens, mask)  # (B, L, H)
        if mask is None:
            last = (n_tokens + (NUM_EXTRA - 1))[:, None, None]  # (B, 1, 1)
            out = torch.take_along_dim(tokens, last, dim=1)  # (B, 1, H)
        else:
            out = tokens[:, text.shape[1] + NUM_SUFFIX :: NUM_SUFFIX]  # (B, K, H), each draw's prd
        prediction: Tensor = self.prior.proj_to_clip_embeddings(self.prior.norm_out(out.flatten(0, 1)))
        return prediction  # (B · K, D)

    def _tokens(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The text's tokens and those after it, positions added. (B, N, H) and (B, 1 + 3 K, H)."""
        prior = self.prior
        assert prior.encoder_hidden_states_proj is not None  # `_check`
        assert prior.prd_embedding is not None
        num_embeddings = prior.config["num_embeddings"]
        dtype = prior.positional_embedding.dtype
        text = prior.encoder_hidden_states_proj(hidden[:, :num_embeddings].to(dtype))  # (B, N, H)
        time = prior.time_embedding(prior.time_proj(timesteps).to(dtype))  # (B · K, H)
        prompt = prior.embedding_proj(prompt_embeds.to(dtype))  # (B, H)
        image = prior.proj_in(noisy.to(dtype))  # (B · K, H)
        prd = prior.prd_embedding[:, 0].to(text.dtype).expand_as(image)  # (B · K, H)

        position = prior.positional_embedding[0].to(text.dtype)  # (77 + 4, H)
        suffix = torch.stack([time, image, prd], dim=1) + position[-NUM_SUFFIX:]  # (B · K, 3, H)
        suffix = suffix.reshape(prompt.shape[0], -1, prompt.shape[-1])  # (B, 3 K, H)
        prompt = (prompt + position[num_embeddings])[:, None]  # (B, 1, H)
        return text + position[: text.shape[1]], torch.cat([prompt, suffix], dim=1)


def _pads_last(text: Tensor, extra: Tensor, n_tokens: Tensor) -> Tensor:
    """`[text…, prompt_embed, time, noisy, prd, 0…]`: (B, L, H) of (B, N, H) and (B, 4, H).

    Rows are chosen with `where`, whose backward is a masked sum: deterministic on every device, one fused
    kernel under torch.compile.
    """
    text = F.pad(text, (0, 0, 0, NUM_EXTRA))  # (B, L, H)
    row = torch.arange(text.shape[1], device=text.device)[None, :, None]  # (1, L, 1)
    row = row - n_tokens[:, None, None]  # (B, L, 1), 0 at the first token after the text
    sequence = torch.where(row < 0, text, torch.zeros_like(text))
    for i in range(NUM_EXTRA):
        sequence = torch.where(row == i, extra[:, i : i + 1], sequence)
    return sequence


def _draws_apart(text: Tensor, extra: Tensor, n_tokens: Tensor) -> Tensor:
    """The mask of K draws: causal, without pads and without the other draws. (B, L, L), 0 or -inf.

    In the precision of the attention, so that no layer converts it again, and with rows that begin at
    multiples of 16 bytes, or CUDA's kernel would copy it in every layer.
    """
    num_text, length = text.shape[1], text.shape[1] + extra.shape[1]
    row = torch.arange(length, device=text.device)  # (L,)
    draw = torch.div(row - num_text - 1, NUM_SUFFIX, rounding_mode="floor")  # (L,), below 0: the prefix
    seen = (row <= row[:, None]) & ((draw < 0) | (draw == draw[:, None]))  # (L, L)
    pad = (row >= n_tokens[:, None]) & (row < num_text)  # (B, L)
    seen = seen & ~pad[:, None]  # (B, L, L)
    device = text.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else text.dtype
    mask = torch.zeros(*seen.shape[:2], -(-length // 8) * 8, dtype=dtype, device=text.device)
    return mask[..., :length].masked_fill_(~seen, -torch.inf)


def _check(prior: "PriorTransformer") -> None:
    config = prior.config
    for key, wanted in _IMPLEMENTED.items():
        if config[key] != wanted:
            raise UserError(
                f"--prior-model: {key} is {config[key]!r} in its config, wanted {wanted!r}: "
                "only priors built like Kandinsky 2.2's can be trained"
            )
    if config["clip_embed_dim"] not in (None, config["embedding_dim"]):
        raise UserError(
            f"--prior-model: it reads embeddings of width {config['embedding_dim']} and predicts width "
            f"{config['clip_embed_dim']}, wanted the same"
        )
    if not prior.clip_std.is_meta and bool((prior.clip_std == 0).any()):
        raise UserError(
            "--prior-model: clip_std holds zeros, by which embeddings would be divided; "
            "a prior made from a config alone needs clip_mean and clip_std set"
        )
