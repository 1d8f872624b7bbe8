"""What validation measures, and that clipping limits what the update sees."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.train import runs
from train.batches import Disk, collate, null_conditions
from train.draws import Purpose, draw
from train.metrics import draw_losses
from train.sampler import make_generators
from train.validation import Validator

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
    batch = first_rows(reader, held)
    random = {"shape": batch[task.noised].shape[1:], "num_train_timesteps": 1000, "cond_dropout": 0.0}
    random |= {"purpose": Purpose.VALIDATION, "timestep_sampling": "stratified"}
    per_sample = {"prior": 4, "decoder": 1}[kind]
    draws = draw(5, 0, torch.arange(len(held)), **random, num_draws=per_sample, global_batch_size=len(held))
    quarter = draws.timesteps // 250
    if kind == "prior":
        assert (quarter.view(-1, 4).sort(dim=1).values == torch.arange(4)).all()  # one in each
    null, losses = null_conditions(reader, task.null_column, CPU), task.make_draw_losses(CPU)
    with torch.no_grad():
        values = losses(task.module, batch, null, draws)
    assert len(values) == len(held) * per_sample
    wanted = {"validation_loss": values.mean().item()}
    wanted |= {f"validation_loss_q{q + 1}": values[quarter == q].mean().item() for q in range(4)}
    for step in (0, 1):
        found = {name: runs.series(output, name)[step] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-5)


def first_rows(reader, samples):
    return collate(reader, {column: reader.rows(column, samples)[0] for column in reader.columns})


SAMPLED = {"sampled_cosine_g1", "sampled_cosine_g4", "clip_score_g1", "clip_score_g4", "clip_score_true"}


def test_sampled_embeddings_are_compared_with_the_true_ones_and_their_prompts(cache, tmp_path):
    flags = ("--learning-rate", "0", "--validation-fraction", "0.4", "--seed", "5", "--max-train-steps", "1")
    output = runs.train("prior", cache, tmp_path / "out", *flags, "--sampled-validation", "3")
    task, reader, _ = runs.prepared("prior", cache, tmp_path / "out", *flags)
    task.module.eval()
    null, sampler = null_conditions(reader, "text", CPU), task.make_sampler(CPU)
    found = []
    for place, sample in enumerate(reader.held_out(0.4)[:3]):
        batch = first_rows(reader, np.array([sample]))
        true, prompt = batch["image_embeds"][0].numpy(), batch["prompt_embeds"][0].numpy()
        values = {"clip_score_true": 100 * max(0, cosine(true, prompt))}
        for scale in (1, 4):
            noise = make_generators(5, [place], Purpose.SAMPLED_VALIDATION)
            embeds = sampler(task.module, batch, null, noise, (float(scale),))[0, 0].numpy()
            values[f"sampled_cosine_g{scale}"] = cosine(embeds, true)
            values[f"clip_score_g{scale}"] = 100 * max(0, cosine(embeds, prompt))
        found.append(values)
    for name in SAMPLED:
        wanted = np.mean([values[name] for values in found])
        assert runs.series(output, name) == pytest.approx({0: wanted, 1: wanted}, abs=1e-4), name
    assert len({round(values["sampled_cosine_g4"], 4) for values in found}) == 3
    assert 0 in {round(values["clip_score_g4"], 4) for values in found}  # a negative cosine counts as 0


def cosine(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize(("kind", "flags"), [("prior", ("--sampled-validation", "0")), ("decoder", ())])
def test_nothing_is_sampled_by_the_decoder_or_where_it_is_not_wanted(kind, flags, cache, tmp_path):
    output = runs.train(kind, cache, tmp_path / "out", "--validation-fraction", "0.3", *flags)
    names = {name for line in runs.metrics(output) for name in line}
    assert "validation_loss_q4" in names
    assert not names & SAMPLED


class Rank:
    """One of several ranks, after the other; `sent` is what it gives to each sum over all."""

    device = CPU

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes, self.sent = process_index, num_processes, []

    def reduce(self, total, reduction):
        assert reduction == "sum"
        self.sent.append(total)
        return total + 1e-9  # not of all: what comes of it is not looked at


@pytest.mark.parametrize("kind", runs.KINDS)
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_samples_and_make_as_many_forwards_each(kind, world, cache, tmp_path):
    flags = ("--validation-fraction", "0.4", "--train-batch-size", "3")
    task, reader, options = runs.prepared(kind, cache, tmp_path / "out", *flags)
    null, held = null_conditions(reader, task.null_column, CPU), reader.held_out(0.4)
    calls = []
    task.module.register_forward_pre_hook(lambda *_: calls.append(1))

    def measured(rank):
        calls.clear()
        Validator(task, null, reader, held, options, rank).measure(Disk(reader), task.module)
        return rank.sent, len(calls)

    alone, _ = measured(Rank(0, 1))
    sent, counts = zip(*(measured(Rank(index, world)) for index in range(world)))
    assert len(set(counts)) == 1
    for wanted, *found in zip(alone, *sent):
        assert torch.stack(found).sum(dim=0) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_module_that_fails_is_left_as_it_was(cache, tmp_path):
    task, reader, options = runs.prepared("prior", cache, tmp_path / "out", "--validation-fraction", "0.4")
    null = null_conditions(reader, "text", CPU)
    validator = Validator(task, null, reader, reader.held_out(0.4), options, Rank(0, 1))
    modes = []

    def fail(module, *_):
        modes.append(module.training)
        raise RuntimeError("out of memory")

    task.module.register_forward_pre_hook(fail)
    for training in (True, False):
        task.module.train(training)
        with pytest.raises(RuntimeError, match="out of memory"):
            validator.measure(Disk(reader), task.module)
        assert {module.training for module in task.module.modules()} == {training}
    assert modes == [False, False]


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
