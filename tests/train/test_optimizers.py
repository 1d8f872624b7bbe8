"""AdamW, AdamW with 8-bit moments, Adafactor: which weights decay, and that a run continues from each."""

import pytest
import torch
from torch import nn

from tests.train import runs
from train.optimizer import parameter_groups

OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor")


def test_only_matrices_decay():
    model = nn.ModuleDict({"proj": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    model.register_parameter("positional_embedding", nn.Parameter(torch.zeros(1, 4, 3)))
    decayed, rest = parameter_groups(list(model.named_parameters()), 0.01)
    assert [name for name, _ in decayed] == ["proj.weight"]
    assert {name for name, _ in rest} == {
        *("positional_embedding", "proj.bias", "norm.weight", "norm.bias"),
    }
    assert parameter_groups(list(model.named_parameters()), 0.0)[0] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loss_falls(optimizer, cache, tmp_path):
    flags = ("--optimizer", optimizer, "--learning-rate", "1e-3", "--max-train-steps", "40")
    steady = ("--timestep-sampling", "stratified", "--train-batch-size", "16")
    losses = list(runs.series(runs.train("prior", cache, tmp_path / "out", *flags, *steady), "loss").values())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_resumed_run_takes_the_steps_it_would_have_taken(optimizer, cache, tmp_path):
    flags = ("--optimizer", optimizer, "--adam-weight-decay", "0.01", "--learning-rate", "1e-3")
    whole = runs.train("prior", cache, tmp_path / "whole", *flags, "--max-train-steps", "6")
    halves = tmp_path / "halves"
    for steps in ("3", "6"):
        runs.train("prior", cache, halves, *flags, "--max-train-steps", steps, "--checkpointing-steps", "3")
    assert runs.metrics(halves) == runs.metrics(whole)
    assert runs.same_tensors(runs.weights(whole / "prior"), runs.weights(halves / "prior"))


def test_old_flag_means_8_bit_moments(cache, tmp_path):
    flags = ("--learning-rate", "1e-3", "--max-train-steps", "2")
    old = runs.train("prior", cache, tmp_path / "old", *flags, "--use_8bit_adam")
    new = runs.train("prior", cache, tmp_path / "new", *flags, "--optimizer", "adamw-8bit")
    full = runs.train("prior", cache, tmp_path / "full", *flags)
    assert runs.same_tensors(runs.weights(old / "prior"), runs.weights(new / "prior"))
    assert not runs.same_tensors(runs.weights(old / "prior"), runs.weights(full / "prior"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lora_which_begins_at_zero_moves_at_the_rate_given(optimizer, cache, tmp_path):
    flags = (
        "--optimizer",
        optimizer,
        "--lora-rank",
        "2",
        "--learning-rate",
        "1e-4",
        "--max-train-steps",
        "5",
    )
    output = runs.train("prior", cache, tmp_path / "out", *flags)
    moved = [t.abs().max() for name, t in runs.weights(output).items() if ".lora_B." in name]
    assert all(1e-4 < largest < 1e-3 for largest in map(float, moved)), moved
