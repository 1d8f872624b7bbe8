"""The kernels of `--attention`: torch's scaled_dot_product_attention, or xformers' memory-efficient one.

Legend: B samples, H heads, L sequence length, W head width.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"(query, key, value, mask) → output, (B, H, L, W) each; mask additive (B, 1 or H, L, L), None: causal."


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """torch's choice of kernel; FlashAttention where there is no mask."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


def xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """xformers wants (B, L, H, W), and a bias for each head whose rows begin at multiples of 16 bytes."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    bias = LowerTriangularMask() if mask is None else mask.expand(-1, query.shape[1], -1, -1)
    inputs = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    out: Tensor = memory_efficient_attention(*inputs, attn_bias=bias)
    return out.transpose(1, 2)  # (B, H, L, W)


KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "xformers": xformers}
