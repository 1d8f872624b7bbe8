"""What is not finite changes no weight and names its samples."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import PriorTransformer
from torch import nn

from data_tools.cache.reader import CacheReader
from data_tools.errors import DataFault
from tests.train import runs
from train.guard import Guard

KEYS = [f"picture-{number}" for number in range(4)]


@pytest.fixture(params=["adamw", "sgd"])
def watched(request):
    """(guard, optimizer, weight): fused AdamW heeds the guard on the device, SGD is not called."""
    weight = nn.Parameter(torch.ones(4))
    make = {
        "adamw": lambda: torch.optim.AdamW([weight], lr=0.1, fused=True),
        "sgd": lambda: torch.optim.SGD([weight], lr=0.1),
    }
    optimizer = make[request.param]()
    return Guard(Accelerator(cpu=True), optimizer, lambda step: KEYS), optimizer, weight


def run(watched, *steps):
    """Steps of (losses, gradient), and the look that a line of metrics takes."""
    for step, (losses, gradient) in enumerate(steps):
        take(watched, step, losses, gradient)
    watched[0].check()


def take(watched, step, losses, gradient):
    """One step of two rounds of two samples."""
    guard, optimizer, weight = watched
    guard.add(torch.tensor(losses[:2]))
    guard.add(torch.tensor(losses[2:]))
    weight.grad = torch.full((4,), gradient)
    guard.look(step, weight.grad.norm())
    optimizer.step()


SOUND = ([1.0, 2.0, 3.0, 4.0], 0.5)


def test_sound_steps_are_taken(watched):
    run(watched, SOUND, SOUND)
    assert bool((watched[2] < 0.95).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_its_sample_and_changes_nothing(watched, value):
    take(watched, 0, *SOUND)
    before = watched[2].detach().clone()
    message = r"^loss: not finite in the step after 0, samples picture-2; its update was not made"
    with pytest.raises(DataFault, match=message):  # SGD: at once; the first one counts
        run(watched, ([1.0, 2.0, value, 4.0], 0.5), ([1.0, value, 3.0, 4.0], 0.5))
    assert torch.equal(watched[2], before)


def test_gradient_that_is_not_finite_names_the_batch(watched):
    message = (
        r"^gradient: not finite in the step after 0, samples picture-0, picture-1, picture-2, picture-3;"
    )
    with pytest.raises(DataFault, match=message):
        run(watched, (SOUND[0], float("inf")))
    assert torch.equal(watched[2], torch.ones(4))


@pytest.fixture
def scaled():
    """(guard, scaler, optimizer, weight) of a run in fp16, here with torch's GradScaler on the CPU."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return Guard(accelerator, optimizer, lambda step: KEYS), accelerator.scaler, optimizer, weight


def scaled_step(scaled, step, losses, gradient):
    guard, scaler, optimizer, weight = scaled
    guard.add(torch.tensor(losses))
    scaler.scale((weight * gradient).sum()).backward()
    scaler.unscale_(optimizer)
    guard.look(step, weight.grad.norm())
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_skipped_steps_of_fp16_are_counted_and_change_nothing(scaled):
    guard, scaler, _, weight = scaled
    scaled_step(scaled, 0, SOUND[0], 0.5)
    before = weight.detach().clone()
    for step in (1, 2):
        scaled_step(scaled, step, SOUND[0], float("inf"))
    assert torch.equal(weight, before)
    assert guard.counts() == {"skipped_steps": 2}
    assert scaler.get_scale() == 256.0
    guard.check()
    scaled_step(scaled, 3, SOUND[0], 0.5)
    assert not torch.equal(weight, before)


def test_loss_that_is_not_finite_ends_a_run_in_fp16_too(scaled):
    scaled_step(scaled, 0, [1.0, float("nan"), 3.0, 4.0], float("nan"))
    assert torch.equal(scaled[-1], torch.ones(4))
    with pytest.raises(DataFault, match=r"^loss: not finite in the step after 0, samples picture-1; "):
        scaled[0].check()


def test_run_ends_with_the_keys_of_its_first_batch(pocket, cache, tmp_path):
    prior = PriorTransformer.from_pretrained(pocket / "prior", subfolder="prior")
    with torch.no_grad():
        prior.clip_std.fill_(1e-30)  # embeddings are divided by it, and their squares overflow
    model = tmp_path / "model"
    runs.copy_model(pocket / "prior", model)
    prior.save_pretrained(model / "prior")
    output = tmp_path / "out"
    flags = ("--prior-model", model, "--train-batch-size", "3", "--checkpointing-steps", "1")
    ended = runs.program("prior", *runs.arguments(cache, output, *flags))
    assert ended.code == 1
    (line,) = ended.lines
    assert line.startswith("loss: not finite in the step after 0, samples ")
    named = line.partition("samples ")[2].partition(";")[0].split(", ")
    reader = CacheReader(cache, ["image", "text"])
    assert len(named) == 3
    assert set(named) <= set(reader.keys(np.arange(reader.num_samples)))
    assert not list(output.glob("checkpoint-*"))
