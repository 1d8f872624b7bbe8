"""The moving average is diffusers' own, and what a run is validated by and ends with."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from tests.train import runs
from train.ema import Ema, ema_decay

EMA = ("--use-ema", "--ema-decay", "0.9", "--learning-rate", "1e-3")


@pytest.mark.parametrize("power", [None, 2 / 3, 0.75])
@pytest.mark.parametrize("limit", [0.9999, 0.5])
def test_average_is_that_of_diffusers(limit, power):
    parameters = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]
    ours = Ema(parameters, limit=limit, power=power)
    warm = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": power} if power else {}
    theirs = EMAModel(parameters, decay=limit, **warm)
    for step in range(12):
        with torch.no_grad():
            for parameter in parameters:
                parameter += torch.randn_like(parameter)
        ours.update(step + 1)
        theirs.step(parameters)
        for own, other in zip(ours.shadow, theirs.shadow_params):
            torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


def test_decay_grows_to_its_limit():
    assert ema_decay(1, 0.9999) == 0.0
    assert ema_decay(2, 0.9999) == 2 / 11
    assert ema_decay(10**6, 0.9999) == 0.9999
    assert ema_decay(9, 0.9999, power=0.5) == pytest.approx(1 - 1 / 3)


def test_half_precision_parameters_are_averaged_in_float32():
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ema = Ema([parameter], limit=0.9999)
    for step in range(100):
        ema.update(step + 1)
        with torch.no_grad():
            parameter.fill_(1.0 + step / 64)
    assert ema.shadow[0].dtype == torch.float32
    assert 1.0 < float(ema.shadow[0][0]) < 1.0 + 98 / 64
    before = parameter.clone()
    with ema.in_place():
        assert not torch.equal(parameter, before)
    assert torch.equal(parameter, before)


def test_weights_are_back_to_the_bit_after_an_error_inside():
    parameter = nn.Parameter(torch.randn(9))
    ema = Ema([parameter], limit=0.9)
    own, average = parameter.detach().clone(), ema.shadow[0].copy_(torch.randn(9)).clone()
    seen = []

    def fails():
        with ema.in_place():
            seen.append(parameter.detach().clone())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert torch.equal(seen[0], average)
    assert torch.equal(parameter, own)
    assert torch.equal(ema.shadow[0], average)


@pytest.mark.parametrize("flags", [(), ("--lora-rank", "2")])
@pytest.mark.parametrize("kind", runs.KINDS)
def test_averages_are_what_is_saved_in_the_end(kind, flags, cache, tmp_path):
    steps = ("--max-train-steps", "6", "--checkpointing-steps", "1")
    output = runs.train(kind, cache, tmp_path / "out", *EMA, *steps, *flags)
    name = runs.TRAINED[kind]
    final = runs.weights(output if flags else output / name)
    at = {step: runs.weights(output / f"checkpoint-{step}" / name) for step in range(1, 7)}
    moved = 0
    for key, first in at[1].items():
        average = first.clone()
        for step in range(2, 7):
            average.lerp_(at[step][key], 1.0 - ema_decay(step, 0.9))
        torch.testing.assert_close(final[key], average, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(final[key], at[6][key])
    assert moved > len(final) // 2


def test_both_kinds_of_weights_are_validated(cache, tmp_path):
    validation = ("--validation-fraction", "0.3", "--validation-steps", "2", "--max-train-steps", "4")
    plain = runs.train("prior", cache, tmp_path / "plain", *validation, "--learning-rate", "1e-3")
    ema = runs.train("prior", cache, tmp_path / "ema", *validation, *EMA)
    raw, average = runs.series(ema, "validation_loss"), runs.series(ema, "ema_validation_loss")
    assert raw == runs.series(plain, "validation_loss")  # the averages do not touch training
    assert raw.keys() == average.keys() == {0, 2, 4}
    assert average[0] == raw[0]
    assert average[4] != raw[4]


@pytest.mark.parametrize("kind", runs.KINDS)
def test_resumed_run_has_the_averages_it_would_have_had(kind, cache, tmp_path):
    flags = (*EMA, "--validation-fraction", "0.3", "--validation-steps", "2")
    whole = runs.train(kind, cache, tmp_path / "whole", *flags, "--max-train-steps", "6")
    halves = tmp_path / "halves"
    runs.train(kind, cache, halves, *flags, "--max-train-steps", "3", "--checkpointing-steps", "3")
    for path in halves.glob("*"):
        assert not path.name.startswith(".tmp")
    runs.train(kind, cache, halves, *flags, "--max-train-steps", "6")
    name = runs.TRAINED[kind]
    assert runs.same_tensors(runs.weights(whole / name), runs.weights(halves / name))
    last = [runs.series(output, "ema_validation_loss")[6] for output in (whole, halves)]
    assert last[0] == last[1]
