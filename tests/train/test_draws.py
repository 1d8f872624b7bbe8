import math
from statistics import NormalDist

import pytest
import torch

from train.draws import Draws, Purpose, draw, normals, philox

NUM_TIMESTEPS = 1000


def draws(seed=7, step=3, positions=8, shape=(5,), cond_dropout=0.1, **options) -> Draws:
    if isinstance(positions, int):
        positions = torch.arange(positions)
    return draw(
        seed,
        step,
        positions,
        shape=shape,
        num_train_timesteps=NUM_TIMESTEPS,
        cond_dropout=cond_dropout,
        **options,
    )


def same(a: Draws, b: Draws) -> bool:
    return (
        torch.equal(a.noise, b.noise)
        and torch.equal(a.timesteps, b.timesteps)
        and torch.equal(a.drop, b.drop)
    )


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers (kat_vectors, philox4x32 10 rounds)
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    assert tuple(int(word) for word in philox(counter, key)) == words
    vectorised = philox(tuple(torch.full((3,), word) for word in counter), key)
    assert [word.tolist() for word in vectorised] == [[word] * 3 for word in words]


@pytest.mark.parametrize("shape", [(1,), (1279,), (4, 12, 16)])
@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_draws_do_not_depend_on_how_positions_are_split(shape, size):
    whole = draws(positions=37, shape=shape)
    parts = [draws(positions=part, shape=shape) for part in torch.arange(37).split(size)]
    joined = Draws(*(torch.cat([getattr(p, f) for p in parts]) for f in ("noise", "timesteps", "drop")))
    assert same(joined, whole)


def test_draws_follow_the_position_and_not_the_place_in_the_batch():
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    whole, shuffled = draws(positions=32), draws(positions=order)
    assert same(shuffled, Draws(whole.noise[order], whole.timesteps[order], whole.drop[order]))


def test_draws_have_the_promised_shapes_and_types_and_leave_torch_rng_alone():
    state = torch.get_rng_state()
    d = draws(positions=6, shape=(4, 3, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert d.noise.shape == (6, 4, 3, 5)
    assert (d.noise.dtype, d.timesteps.dtype, d.drop.dtype) == (torch.float32, torch.int64, torch.bool)
    assert d.timesteps.shape == d.drop.shape == (6,)


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"seed": 7 + 2**32}, {"seed": -7}, {"step": 4}, {"purpose": Purpose.VALIDATION}]
)
def test_another_seed_step_or_purpose_gives_unrelated_draws(change):
    a, b = draws(positions=512, shape=(128,)), draws(positions=512, shape=(128,), **change)
    assert abs(correlation(a.noise, b.noise)) < 4 / math.sqrt(512 * 128)
    assert (a.timesteps == b.timesteps).float().mean() < 0.02
    assert abs(correlation(a.timesteps, b.timesteps)) < 4 / math.sqrt(512)


def test_noise_is_standard_normal():
    z = draws(positions=256, shape=(4096,)).noise.flatten().double()
    n = z.numel()
    # four standard errors of the first four moments
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs(z.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov at the 0.1 % level
    cdf = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((cdf - steps[:-1]).max(), (steps[1:] - cdf).max())
    assert distance < 1.95 / math.sqrt(n)
    # the tails are there: expected number of |z| > 4
    expected = 2 * NormalDist().cdf(-4) * n
    assert abs((z.abs() > 4).sum() - expected) < 4 * math.sqrt(expected)


def test_normals_stay_finite_at_the_extreme_words():
    extreme = torch.tensor([0, 1, 2**31, 2**32 - 1])
    words = torch.cartesian_prod(extreme, extreme, extreme, extreme).unbind(1)
    z = normals(words)
    assert z.shape == (256, 4)
    assert z.isfinite().all()
    assert z.abs().max().item() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


def test_neighbouring_elements_positions_and_steps_are_uncorrelated():
    noise = torch.stack(
        [draws(step=step, positions=64, shape=(256,)).noise for step in range(32)]
    )  # (32, 64, 256)
    bound = 4 / math.sqrt(noise.numel())
    for axis, lag in [(0, 1), (1, 1), (2, 1), (2, 2), (2, 3), (2, 4)]:
        a, b = (
            noise.narrow(axis, 0, noise.shape[axis] - lag),
            noise.narrow(axis, lag, noise.shape[axis] - lag),
        )
        assert abs(correlation(a, b)) < bound, (axis, lag)
        # Box-Muller pairs share a radius: their squares must be uncorrelated too
        assert abs(correlation(a.square(), b.square())) < 1.1 * bound, (axis, lag)
    times = torch.stack([draws(step=step, positions=512).timesteps for step in range(128)])
    for a, b in [(times[1:], times[:-1]), (times[:, 1:], times[:, :-1])]:
        assert abs(correlation(a, b)) < 4 / math.sqrt(times.numel())


def test_timesteps_are_uniform_and_cover_the_range():
    times = draws(positions=200_000, shape=(1,)).timesteps
    counts = torch.bincount(times, minlength=NUM_TIMESTEPS).double()
    assert counts.numel() == NUM_TIMESTEPS
    assert counts.min() > 0
    expected = times.numel() / NUM_TIMESTEPS
    chi2 = ((counts - expected).square() / expected).sum().item()
    # chi-squared with 999 degrees of freedom: mean 999, standard deviation 44.7
    assert abs(chi2 - 999) < 4 * 44.7


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_conditions_are_dropped_at_the_asked_rate_and_apart_from_the_timestep(rate):
    d = draws(positions=100_000, shape=(1,), cond_dropout=rate)
    found = d.drop.double().mean().item()
    assert abs(found - rate) <= 4 * math.sqrt(rate * (1 - rate) / 100_000)
    if 0 < rate < 1:
        assert abs(correlation(d.drop, d.timesteps)) < 4 / math.sqrt(100_000)
        assert abs(correlation(d.drop, d.noise)) < 4 / math.sqrt(100_000)


def test_dropout_rate_changes_nothing_but_what_is_dropped():
    a, b = draws(positions=64, cond_dropout=0.0), draws(positions=64, cond_dropout=0.5)
    assert torch.equal(a.noise, b.noise)
    assert torch.equal(a.timesteps, b.timesteps)
    assert not a.drop.any()
    assert b.drop.any()
