"""The prior's forward with the padding last, over the weights of an unchanged diffusers `PriorTransformer`.

The reference pads every text to 77 rows and adds a (B · heads, 81, 81) mask to the attention, which is causal
and hides the pads. Here the pads come behind everything else, and causality alone hides them:

    reference   text_0 … text_{n-1}  pad … pad  prompt_embed  time  noisy  prd
    here        text_0 … text_{n-1}  prompt_embed  time  noisy  prd  pad … pad

Nothing that is read changes: in both, a token sees exactly the tokens before it that are no pads, and each
keeps the positional embedding it has in the reference, 0 … n-1 and 77 … 80; all else in a block works on one
token at a time. So the output, read at row n + 3, and all gradients equal the reference's to rounding, with
no mask and a third of the work for captions of 20 tokens.

Legend: B samples, N text rows, L = N + 4 sequence length, D embedding width, H = heads · head width.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from data_tools.errors import UserError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.prior_transformer import PriorTransformer

NUM_EXTRA = 4
"""Tokens after the text: prompt_embed, time, noisy, prd. The output is read at the last of them."""

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
    """Attention processor: SDPA with `is_causal` and no mask tensor.

    Given a mask, it uses that instead, as the stock processor does, so that the stock forward (which always
    passes one in the pipelines) still works on the same module. It has no weights.
    """

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, L, H), attention_mask None or (B · heads, L, L) additive. Returns (B, L, H)."""
        assert encoder_hidden_states is None, "the prior has self-attention only"
        query, key, value = (
            proj(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, L, head width)
            for proj in (attn.to_q, attn.to_k, attn.to_v)
        )
        mask = None
        if attention_mask is not None:
            mask = attention_mask.view(-1, attn.heads, *attention_mask.shape[1:])  # (B, heads, L, L)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
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

    def __init__(self, prior: "PriorTransformer") -> None:
        super().__init__()
        _check(prior)
        prior.set_attn_processor(cast(Any, CausalAttention()))  # diffusers' type lists its own only
        prior.clip_mean.requires_grad_(False)
        prior.clip_std.requires_grad_(False)
        self.prior = prior
        self.gradient_checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each block's input for the backward pass and compute the rest again there."""
        self.gradient_checkpointing = True

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        text_encoder_hidden_states: Tensor,
        n_tokens: Tensor,
    ) -> Tensor:
        """The predicted image embedding, normalised by clip_mean and clip_std, (B, D).

        noisy                       (B, D) normalised image embedding with noise
        timesteps                   (B,) int64
        prompt_embeds               (B, D)
        text_encoder_hidden_states  (B, N, D); rows from n_tokens on are never read, but must be finite.
                                    N may be anything from the longest text up (trim it, or round it up);
                                    rows past the prior's 77 are cut off.
        n_tokens                    (B,) int64, valid rows of each text
        """
        tokens = self._sequence(noisy, timesteps, prompt_embeds, text_encoder_hidden_states, n_tokens)
        for block in self.prior.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # no dropout in here (`_check`), so there is no random state to keep
                tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens)  # (B, L, H)
        last = (n_tokens + (NUM_EXTRA - 1))[:, None, None]  # (B, 1, 1)
        out = torch.take_along_dim(tokens, last, dim=1).squeeze(1)  # (B, H)
        prediction: Tensor = self.prior.proj_to_clip_embeddings(self.prior.norm_out(out))  # (B, D)
        return prediction

    def _sequence(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, hidden: Tensor, n_tokens: Tensor
    ) -> Tensor:
        """The block's input `[text…, prompt_embed, time, noisy, prd, 0…]`, positions added. (B, L, H).

        Rows are chosen with `where`, whose backward is a masked sum: deterministic on every device, one fused
        kernel under torch.compile.
        """
        prior = self.prior
        assert prior.encoder_hidden_states_proj is not None  # `_check`
        assert prior.prd_embedding is not None
        num_embeddings = prior.config["num_embeddings"]
        dtype = prior.positional_embedding.dtype
        text = prior.encoder_hidden_states_proj(hidden[:, :num_embeddings].to(dtype))  # (B, N, H)
        time = prior.time_embedding(prior.time_proj(timesteps).to(dtype))  # (B, H)
        prompt = prior.embedding_proj(prompt_embeds.to(dtype))  # (B, H)
        image = prior.proj_in(noisy.to(dtype))  # (B, H)
        prd = prior.prd_embedding[:, 0].to(text.dtype)  # (1, H)

        position = prior.positional_embedding[0].to(text.dtype)  # (77 + 4, H)
        text = F.pad(text + position[: text.shape[1]], (0, 0, 0, NUM_EXTRA))  # (B, L, H)
        row = torch.arange(text.shape[1], device=text.device)[None, :, None]  # (1, L, 1)
        row = row - n_tokens[:, None, None]  # (B, L, 1), 0 at the first token after the text
        sequence = torch.where(row < 0, text, torch.zeros_like(text))
        for i, extra in enumerate((prompt, time, image, prd)):
            token = (extra + position[num_embeddings + i])[:, None]  # (B or 1, 1, H)
            sequence = torch.where(row == i, token, sequence)
        return sequence


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
