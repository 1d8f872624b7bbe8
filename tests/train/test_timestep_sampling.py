"""`--timestep-sampling`: how timesteps are spread, whoever draws them."""

import math

import pytest
import torch
from torch import Tensor

from train.batches import Slice
from train.draws import draw

FINE = 1 << 30
"So many timesteps that the numbers behind them show."


def timesteps(sampling, *, batch=8, draws=1, step=0, seed=3, positions=None, number=FINE) -> Tensor:
    """(positions, draws)."""
    positions = torch.arange(batch) if positions is None else positions
    made = draw(
        seed,
        step,
        positions,
        shape=(1,),
        num_train_timesteps=number,
        cond_dropout=0.0,
        num_draws=draws,
        timestep_sampling=sampling,
        global_batch_size=batch,
    )
    return made.timesteps.view(len(positions), draws)


def of_steps(sampling, count, **options) -> Tensor:
    """Of steps 0 … count-1: (steps, positions, draws)."""
    return torch.stack([timesteps(sampling, step=step, **options) for step in range(count)])


def distance(found: Tensor, cdf: Tensor) -> float:
    """Kolmogorov-Smirnov's, times the root of the count; above 1.95 by chance once in a thousand."""
    steps = torch.arange(len(found) + 1, dtype=torch.float64) / len(found)
    return float(torch.maximum((cdf - steps[:-1]).max(), (steps[1:] - cdf).max())) * math.sqrt(len(found))


def from_uniform(found: Tensor) -> float:
    shares = (found.flatten().sort().values.double() + 0.5) / FINE
    return distance(shares, shares)


@pytest.mark.parametrize(("batch", "draws"), [(1, 1), (1, 4), (7, 1), (16, 4), (5, 3), (64, 2)])
def test_stratified_timesteps_of_a_step_are_equally_far_apart(batch, draws):
    for step in range(3):
        found = timesteps("stratified", batch=batch, draws=draws, step=step).flatten().sort().values
        gaps = torch.diff(found, append=found[:1] + FINE)
        assert (gaps.double() - FINE / (batch * draws)).abs().max() <= 1


@pytest.mark.parametrize("draws", [2, 5])
def test_stratified_draws_of_one_sample_are_equally_far_apart(draws):
    found = timesteps("stratified", batch=9, draws=draws).sort(dim=1).values  # (9, K)
    gaps = torch.diff(found, dim=1, append=found[:, :1] + FINE)
    assert (gaps.double() - FINE / draws).abs().max() <= 1


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_every_position_and_draw_has_uniform_timesteps(sampling):
    found = of_steps(sampling, 1500, batch=4, draws=2)  # (1500, 4, 2)
    for position in range(4):
        for k in range(2):
            assert from_uniform(found[:, position, k]) < 1.95, (position, k)


def test_as_many_stratified_draws_as_timesteps_take_each_of_them_once():
    found = timesteps("stratified", batch=500, draws=2, number=1000)
    assert torch.equal(torch.bincount(found.flatten(), minlength=1000), torch.ones(1000, dtype=torch.int64))


def test_strata_follow_a_new_permutation_in_each_step():
    found = of_steps("stratified", 800, batch=8)[..., 0].double()  # (800, 8)
    for a, b in [(0, 1), (3, 4), (6, 7), (0, 7)]:
        # the next position has the next stratum as often as any other
        ahead = ((found[:, b] - found[:, a]) % FINE / (FINE / 8)).round().long()
        counts = torch.bincount(ahead, minlength=8)[1:].double()
        expected = 800 / 7
        assert ((counts - expected).square() / expected).sum() < 22.5, (a, b)  # chi-squared, 6 d.o.f., 0.1 %
    between = torch.corrcoef(torch.stack([found[1:].flatten(), found[:-1].flatten()]))[0, 1]
    assert abs(between) < 4 / math.sqrt(799 * 8)


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "logit-normal"])
@pytest.mark.parametrize(("world", "rounds"), [(1, 4), (2, 2), (4, 1), (2, 6)])
def test_timesteps_do_not_depend_on_ranks_or_accumulation(sampling, world, rounds):
    batch, draws = 24, 3
    whole = timesteps(sampling, batch=batch, draws=draws)
    for rank in range(world):
        share = Slice(rank, world, batch // (world * rounds), rounds)
        for number in range(rounds):
            positions = torch.tensor(list(share.positions(number)))
            found = timesteps(sampling, batch=batch, draws=draws, positions=positions)
            assert torch.equal(found, whole[positions])


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "logit-normal"])
def test_timesteps_follow_from_seed_and_step(sampling):
    found = timesteps(sampling, batch=32)
    assert torch.equal(timesteps(sampling, batch=32), found)
    for change in ({"seed": 4}, {"step": 1}):
        assert (timesteps(sampling, batch=32, **change) == found).double().mean() < 0.1


def test_logit_normal_timesteps_are_the_logistic_function_of_standard_normals():
    found = of_steps("logit-normal", 8, batch=500, draws=2)
    assert found.min() >= 0
    assert found.max() < FINE
    share = (found.flatten().sort().values.double() + 0.5) / FINE
    assert distance(share, torch.special.ndtr(torch.logit(share))) < 1.95
    assert from_uniform(found) > 5
    middle = ((share > 0.25) & (share < 0.75)).double().mean()
    assert abs(middle - 0.728) < 0.03  # Φ(ln 3) - Φ(-ln 3)


def test_logit_normal_draws_of_a_sample_are_unrelated():
    found = timesteps("logit-normal", batch=4000, draws=2).double()
    assert abs(torch.corrcoef(found.T)[0, 1]) < 4 / math.sqrt(4000)


def test_stratified_timesteps_make_means_over_a_step_exact():
    """What it is for: the mean over a batch of anything smooth in t varies less from step to step."""
    curve = {}
    for sampling in ("uniform", "stratified"):
        share = of_steps(sampling, 200, batch=16).double() / FINE  # (200, 16, 1)
        curve[sampling] = (share.square() + torch.sin(4 * share)).mean((1, 2)).std()
    assert curve["stratified"] < curve["uniform"] / 5
