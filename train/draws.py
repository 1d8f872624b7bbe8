"""Noise, timesteps and dropped conditions as a pure function of (seed, step, position in the global batch).

There is no generator state: every number is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) of a counter that says which number it is. So no two ranks draw the same, the number of
ranks and the size of the micro-batches do not matter, and a resumed run needs nothing saved.

    key      64 bits   the seed
    counter  word 0    block: elements 4·block … 4·block + 3 of the sample
             word 1    position of the sample in the global batch
             word 2    optimizer step
             word 3    256 · purpose + stream

The integers are the same on every device. Normals agree between CPU and CUDA to a few float32 ulp (`log`,
`cos` and `sin` are the device's own).

Legend: B samples, E elements of one sample, K = ceil(E / 4) blocks.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10


class Purpose(IntEnum):
    """What the draws are for. Two purposes share no number."""

    TRAIN = 0
    VALIDATION = 1


class _Stream(IntEnum):
    NOISE = 0
    TIMESTEP = 1
    DROPOUT = 2


@dataclass(frozen=True)
class Draws:
    """All that is random in one micro-batch; an argument of the loss functions."""

    noise: Tensor
    """(B, *shape) float32, standard normal"""
    timesteps: Tensor
    """(B,) int64, in [0, num_train_timesteps)"""
    drop: Tensor
    """(B,) bool, true where the condition is replaced by the null condition"""


def draw(
    seed: int,
    step: int,
    positions: Tensor,
    *,
    shape: tuple[int, ...],
    num_train_timesteps: int,
    cond_dropout: float,
    purpose: int = Purpose.TRAIN,
) -> Draws:
    """The draws of one optimizer step for the samples at `positions` of the global batch.

    seed                 any integer; its low 64 bits are the key
    step                 optimizer step, in [0, 2^32)
    positions            (B,) int64, each in [0, 2^32); the draws are made on its device
    shape                of one sample's noise, without the batch axis
    num_train_timesteps  T, in [1, 2^31)
    cond_dropout         probability in [0, 1], rounded to a multiple of 2^-32
    purpose              a number of its own for each use (`Purpose`), in [0, 2^24)

    A timestep is the high word of 32 random bits times T, so each has probability 1/T to within 2^-32.
    """
    assert positions.ndim == 1, f"positions: {tuple(positions.shape)}, wanted (B,)"
    assert 0 <= step <= _WORD, f"step {step} is outside [0, 2^32)"
    assert 0 <= purpose < 1 << 24, f"purpose {purpose} is outside [0, 2^24)"
    assert 1 <= num_train_timesteps < 1 << 31, f"num_train_timesteps {num_train_timesteps}"
    assert 0.0 <= cond_dropout <= 1.0, f"cond_dropout {cond_dropout} is not a probability"
    positions = positions.to(torch.int64)
    tag = purpose << 8

    # a range rather than a list of the two streams: a list would be copied from the host
    streams = torch.arange(_Stream.TIMESTEP, _Stream.DROPOUT + 1, device=positions.device)  # (2,)
    word = philox((0, positions, step, streams[:, None] + tag), seed)[0]  # (2, B)
    timesteps = (word[0] * num_train_timesteps) >> 32  # (B,)
    drop = word[1] < round(cond_dropout * 2**32)  # (B,)

    num_elements = math.prod(shape)
    blocks = torch.arange(-(-num_elements // 4), device=positions.device)  # (K,)
    words = philox((blocks, positions[:, None], step, tag + _Stream.NOISE), seed)  # 4 × (B, K)
    noise = normals(words).flatten(1)[:, :num_elements]  # (B, E)
    return Draws(noise.reshape(-1, *shape), timesteps, drop)


def philox(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 of four counter words, broadcast against each other, and a 64-bit key.

    Words are int64 tensors or integers in [0, 2^32). The product of two words wraps around in int64, whose
    bits are those of the unsigned product; the sign that the shift drags in is masked off. Words 1 and 3 are
    only xor-ed inside a round, so they carry the high half of a product along until the end.
    """
    key = (seed & _WORD, (seed >> 32) & _WORD)
    c0, c1, c2, c3 = (torch.as_tensor(word, dtype=torch.int64) for word in counter)
    for i in range(_NUM_ROUNDS):
        k0, k1 = ((k + i * k_step) & _WORD for k, k_step in zip(key, _KEY_STEPS, strict=True))
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ (c1 ^ k0)) & _WORD
        c2 = ((p0 >> 32) ^ (c3 ^ k1)) & _WORD
        c1, c3 = p1, p0
    return c0, c1 & _WORD, c2, c3 & _WORD


def normals(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Four standard normals from four random words by Box-Muller, float32. 4 × (...) int64 -> (..., 4).

    The radius takes u = (word + 1/2) / 2^32 in [2^-33, 1], never 0, so |z| <= sqrt(66 ln 2) = 6.764; a larger
    one would come once in 7e10 draws.
    """
    pairs = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = radius_word.float().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = angle_word.float().mul_(2.0 * math.pi * 2.0**-32)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, dim=-1)
