import pytest
import torch
from diffusers.optimization import get_scheduler

from data_tools.errors import UserError
from train.schedules import NAMES, lr_factor

LEARNING_RATE = 3e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 40), (10, 40), (1, 2), (40, 40), (50, 40)])
@pytest.mark.parametrize(("num_cycles", "power"), [(1, 1.0), (3, 2.0)])
def test_factor_equals_diffusers_at_every_step(name, warmup, total, num_cycles, power):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LEARNING_RATE)
    reference = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=num_cycles,
        power=power,
    )
    for step in range(total):
        if step > 0:
            optimizer.step()
            reference.step()
        factor = lr_factor(
            name,
            step,
            warmup_steps=warmup,
            total_steps=total,
            num_cycles=num_cycles,
            power=power,
            end_factor=1e-7 / LEARNING_RATE,
        )
        assert factor * LEARNING_RATE == pytest.approx(reference.get_last_lr()[0], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("linear", 0.0),
        ("cosine", 0.0),
        ("cosine_with_restarts", 0.0),
        ("polynomial", 0.25),
        ("constant", 1.0),
        ("constant_with_warmup", 1.0),
    ],
)
def test_factor_stays_at_its_last_value_after_the_end(name, last):
    for step in (100, 101, 150, 1000):
        assert lr_factor(name, step, warmup_steps=10, total_steps=100, end_factor=0.25) == last


def test_warmup_starts_at_zero_and_ends_at_the_full_rate():
    for name in set(NAMES) - {"constant"}:
        factors = [lr_factor(name, step, warmup_steps=4, total_steps=100) for step in range(5)]
        assert factors == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_unknown_schedule_is_refused_by_its_flag():
    with pytest.raises(UserError, match=r"^--lr-scheduler: 'cosinus' is unknown, wanted one of linear, "):
        lr_factor("cosinus", 0, warmup_steps=0, total_steps=1)
