"""What validation measures, and that clipping limits what the update sees."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.train import runs
from train.batches import collate, null_conditions
from train.draws import Purpose, draw
from train.metrics import draw_losses

CPU = torch.device("cpu")


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("size", ["3", "16"])
def test_validation_drops_no_condition_and_draws_by_the_place_of_a_sample(size, kind, cache, tmp_path):
    flags = ("--learning-rate", "0", "--validation-fraction", "0.4", "--cond-dropout", "0.5")
    flags = (*flags, "--seed", "5", "--max-train-steps", "1", "--train-batch-size", size)
    output = runs.train(kind, cache, tmp_path / "out", *flags)
    task, reader, _ = runs.prepared(kind, cache, tmp_path / "out", *flags)
    task.module.eval()
    held = reader.held_out(0.4)
    assert len(held) > 3
    batch = collate(reader, {column: reader.rows(column, held)[0] for column in reader.columns})
    random = {"shape": batch[task.noised].shape[1:], "num_train_timesteps": task.num_train_timesteps}
    draws = draw(5, 0, torch.arange(len(held)), **random, cond_dropout=0.0, purpose=Purpose.VALIDATION)
    null, loss = null_conditions(reader, task.null_column, CPU), task.make_loss(CPU)
    with torch.no_grad():
        losses = loss(task.module, batch, null, draws)
    assert len(set(draws.timesteps.tolist())) > 1
    wanted = losses.mean().item()
    assert runs.series(output, "validation_loss") == pytest.approx({0: wanted, 1: wanted}, rel=1e-5)


@pytest.fixture
def update_norms():
    """The gradient's norm at each update, as the optimizer finds it."""
    norms: list[float] = []

    def note(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    handle = register_optimizer_step_pre_hook(note)
    yield norms
    handle.remove()


@pytest.mark.parametrize("rounds", ["1", "2"])
def test_gradient_is_clipped_to_the_limit(rounds, kind, cache, tmp_path, update_norms):
    flags = ("--train-batch-size", "2", "--gradient-accumulation-steps", rounds)
    output = runs.train(kind, cache, tmp_path / "out", *flags, "--max-grad-norm", "0.01")
    before = list(runs.series(output, "grad_norm").values())
    assert len(before) == len(update_norms) == 3
    assert min(before) > 0.02  # else there would be nothing to clip
    assert max(update_norms) <= 0.01 * (1 + 1e-5)
    assert min(update_norms) >= 0.01 * (1 - 1e-3)


def test_gradient_is_left_alone_below_the_limit_and_without_one(cache, tmp_path, update_norms):
    output = runs.train("prior", cache, tmp_path / "high", "--max-grad-norm", "1e6", "--max-train-steps", "2")
    assert update_norms == pytest.approx(list(runs.series(output, "grad_norm").values()), rel=1e-5)
    runs.train("prior", cache, tmp_path / "none", "--max-grad-norm", "0", "--max-train-steps", "2")
    assert update_norms[2:] == update_norms[:2]


def test_validation_set_without_a_sample_is_said_once(kind, cache, tmp_path):
    command_line = runs.arguments(cache, tmp_path / "out", "--validation-fraction", "1e-6")
    ended = runs.program(kind, *command_line)
    assert ended.code == 0
    said = [line for line in ended.lines if "--validation-fraction" in line]
    assert len(said) == 1
    assert said[0].startswith("--validation-fraction: 1e-06 of 2")
    assert said[0].endswith("holds out none; there is no validation loss")
    asked = runs.program(kind, *runs.arguments(cache, tmp_path / "none", "--validation-fraction", "0"))
    assert not [line for line in asked.lines if "--validation-fraction" in line]


def test_loss_of_a_single_point_can_be_seen(tmp_path):
    pictures = []
    for lines in ('{"step": 1, "loss": 0.5}\n', '{"step": 1, "lr": 0.5}\n'):
        (tmp_path / "metrics.jsonl").write_text(lines)
        draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "prior")
        with Image.open(tmp_path / "loss.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
    height, width = (size // 2 for size in pictures[0].shape[:2])
    middle = pictures[0][height - 40 : height + 40, width - 80 : width + 80]  # the only point
    blue = (middle[..., 2] - middle[..., 0] > 60).sum()
    assert blue > 20
