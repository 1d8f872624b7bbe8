"""Noise, timesteps and dropped conditions as a pure function of (seed, step, position in the global batch).

There is no generator state: every number is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) of a counter that says which number it is. So no two ranks draw the same, the number of
ranks and the size of the micro-batches do not matter, and a resumed run needs nothing saved.

    key      64 bits   the seed
    counter  word 0    block: elements 4·block … 4·block + 3 of the sample
             word 1    position of the sample in the global batch
             word 2    optimizer step
             word 3    65536 · draw + 256 · purpose + stream

A sample has one draw of noise and timestep or several (`--noise-draws`); the first of several is the one it
would have alone. Whether its condition is dropped is drawn once for all of them.

The integers are the same on every device. Normals agree between CPU and CUDA to a few float32 ulp (`log`,
`cos` and `sin` are the device's own).

Legend: B samples, K draws of each, E elements of one sample, W = ceil(E / 4) blocks.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10

TimestepSampling = Literal["uniform", "stratified", "logit-normal"]
MAX_DRAWS = 1 << 16


class Purpose(IntEnum):
    """What the draws are for. Two purposes share no number."""

    TRAIN = 0
    VALIDATION = 1
    SAMPLED_VALIDATION = 2
    PREVIEW = 3


class _Stream(IntEnum):
    NOISE = 0
    TIMESTEP = 1
    DROPOUT = 2
    STRATUM = 3


@dataclass(frozen=True)
class Draws:
    """All that is random in one micro-batch; an argument of the loss functions."""

    noise: Tensor
    """(B · K, *shape) float32, standard normal; the K draws of a sample follow each other"""
    timesteps: Tensor
    """(B · K,) int64, in [0, num_train_timesteps)"""
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
    num_draws: int = 1,
    timestep_sampling: TimestepSampling = "uniform",
    global_batch_size: int | None = None,
) -> Draws:
    """The draws of one optimizer step for the samples at `positions` of the global batch.

    seed                 any integer; its low 64 bits are the key
    step                 optimizer step, in [0, 2^32)
    positions            (B,) int64, each in [0, 2^32); the draws are made on its device
    shape                of one sample's noise, without the batch axis
    num_train_timesteps  T, in [1, 2^31)
    cond_dropout         probability in [0, 1], rounded to a multiple of 2^-32
    purpose              a number of its own for each use (`Purpose`), in [0, 2^8)
    num_draws            K, in [1, 2^16]
    timestep_sampling    "uniform"; "stratified": uniform each, all of a step spread evenly over the schedule;
                         "logit-normal": the middle of the schedule more often than its ends
    global_batch_size    samples of the whole step, more than any position; "stratified" needs it

    A uniform timestep is the high word of 32 random bits times T: each has probability 1/T to within 2^-32.
    """
    assert positions.ndim == 1, f"positions: {tuple(positions.shape)}, wanted (B,)"
    assert 0 <= step <= _WORD, f"step {step} is outside [0, 2^32)"
    assert 0 <= purpose < 1 << 8, f"purpose {purpose} is outside [0, 2^8)"
    assert 1 <= num_train_timesteps < 1 << 31, f"num_train_timesteps {num_train_timesteps}"
    assert 0.0 <= cond_dropout <= 1.0, f"cond_dropout {cond_dropout} is not a probability"
    assert 1 <= num_draws <= MAX_DRAWS, f"num_draws {num_draws} is outside [1, 2^16]"
    positions = positions.to(torch.int64)
    device, tag = positions.device, purpose << 8
    draws = torch.arange(num_draws, device=device) << 16  # (K,)

    word = philox((0, positions, step, tag + _Stream.DROPOUT), seed)[0]  # (B,)
    drop = word < round(cond_dropout * 2**32)  # (B,)

    if timestep_sampling == "stratified":
        assert global_batch_size is not None, "strata are those of a global batch"
        share = _stratified(seed, step, tag, positions, num_draws, global_batch_size)  # (B, K)
    else:
        words = philox((0, positions[:, None], step, draws + tag + _Stream.TIMESTEP), seed)  # 4 × (B, K)
        share = words[0] if timestep_sampling == "uniform" else _logit_normal(words)  # (B, K)
    timesteps = (share * num_train_timesteps) >> 32  # (B, K)

    num_elements = math.prod(shape)
    blocks = torch.arange(-(-num_elements // 4), device=device)  # (W,)
    counter = (blocks, positions[:, None, None], step, draws[:, None] + tag + _Stream.NOISE)
    noise = normals(philox(counter, seed)).flatten(2)[..., :num_elements]  # (B, K, E)
    return Draws(noise.reshape(-1, *shape), timesteps.flatten(), drop)


def _stratified(
    seed: int, step: int, tag: int, positions: Tensor, num_draws: int, global_batch_size: int
) -> Tensor:
    """Numbers in [0, 2^32), each uniform by itself, that share the range out evenly among them. (B, K).

    The low-discrepancy sampler of Variational Diffusion Models (Kingma et al. 2021, arXiv 2107.00630):
    u = u_0 + i / n modulo 1, with one u_0 for the step and another i for each of its n draws. Here i is a
    sample's place in a random permutation of the global batch, plus the batch's size times the number of the
    draw: so the K draws of one sample lie 1 / K apart too.
    """
    everyone = torch.arange(global_batch_size, device=positions.device)  # (G,)
    words = philox((0, everyone, step, tag + _Stream.STRATUM), seed)  # 4 × (G,)
    place = words[0].argsort(stable=True).argsort()[positions]  # (B,), of the permutation
    draws = torch.arange(num_draws, device=positions.device)  # (K,)
    stratum = place[:, None] + global_batch_size * draws  # (B, K), another for each draw of the step
    return (words[1][0] + (stratum << 32) // (global_batch_size * num_draws)) & _WORD


def _logit_normal(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The logistic function of a standard normal, times 2^32, from four random words. 4 × (...) -> (...).

    Esser et al. 2024 (Stable Diffusion 3, arXiv 2403.03206), section 3.1, with mean 0 and deviation 1.
    """
    return (normals(words)[..., 0].sigmoid() * 2.0**32).to(torch.int64)


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
