"""What a run does between its first and its last step."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train.step
from data_tools.cache.reader import CacheReader
from tests.train import runs
from train.batches import Slice, TrainingBatches, null_conditions
from train.draws import draw
from train.reading import ordering
from train.schedules import lr_factor

CPU = torch.device("cpu")
EXACT_ADAM = ("--adam-epsilon", "0.1")
"Far from zero, where Adam does not blow rounding up to whole steps."


@pytest.mark.parametrize(("kind", "rate", "steps"), [("prior", "1e-3", 24), ("decoder", "1e-3", 8)])
def test_loss_falls_on_a_few_samples(kind, rate, steps, cache, tmp_path):
    flags = ("--max-train-steps", str(steps), "--learning-rate", rate, "--train-batch-size", "8")
    runs.train(
        kind, cache, tmp_path / "out", *flags, "--validation-fraction", "0.6", "--validation-steps", "50"
    )
    losses = list(runs.series(tmp_path / "out", "loss").values())
    assert len(losses) == steps
    # means over a quarter of the run: noise and timesteps differ from step to step
    quarter = steps // 4
    assert np.mean(losses[-quarter:]) < 0.8 * np.mean(losses[:quarter])


@pytest.mark.parametrize("kind", runs.KINDS)
def test_each_steps_loss_is_that_of_its_own_samples_and_draws(kind, cache, tmp_path):
    flags = ("--learning-rate", "0", "--seed", "5", "--cond-dropout", "0.3", "--max-train-steps", "3")
    output = runs.train(kind, cache, tmp_path / "out", *flags)
    task, reader, options = runs.prepared(kind, cache, tmp_path / "out", *flags)
    share = Slice(0, 1, 4, 1)
    batches = TrainingBatches(reader, np.arange(0), share, 5, CPU, ordering=ordering(options, share))
    null, loss = null_conditions(reader, task.null_column, CPU), task.make_loss(CPU)
    wanted = {}
    for step, (batch, positions) in enumerate(batches.iterate(0, 3)):
        random = {"shape": batch[task.noised].shape[1:], "num_train_timesteps": 1000, "cond_dropout": 0.3}
        random |= {"num_draws": options.noise_draws, "timestep_sampling": options.timestep_sampling}
        draws = draw(5, step, positions, **random, global_batch_size=4)
        losses = loss(task.module, batch, null, draws)
        wanted[step + 1] = losses.mean().item()
    assert len(set(wanted.values())) == 3
    assert runs.series(output, "loss") == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", runs.KINDS)
def test_rounds_of_accumulation_are_one_large_batch(kind, cache, tmp_path):
    flags = ("--cond-dropout", "0.3", "--snr-gamma", "5", "--validation-fraction", "0.2", *EXACT_ADAM)
    whole = runs.train(kind, cache, tmp_path / "16", "--train-batch-size", "16", *flags)
    rounds = ("--train-batch-size", "4", "--gradient-accumulation-steps", "4")
    parts = runs.train(kind, cache, tmp_path / "4", *rounds, *flags)
    for key in ("loss", "grad_norm", "validation_loss", "lr"):
        assert runs.series(parts, key) == pytest.approx(runs.series(whole, key), rel=2e-6), key
    name = runs.TRAINED[kind]
    first, second = runs.weights(whole / name), runs.weights(parts / name)
    base = runs.weights(base_of(whole) / name)
    assert runs.distance(first, second) < 1e-4 * runs.distance(first, base)


def base_of(output):
    return Path(json.loads((output / "run.json").read_text())["base_model"])


def test_accumulation_is_what_the_flag_says_under_accelerate_launch(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    flags = ("--train-batch-size", "2", "--gradient-accumulation-steps", "2")
    first = runs.train("prior", cache, tmp_path / "a", *flags)
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    assert runs.metrics(first) == runs.metrics(runs.train("prior", cache, tmp_path / "b", *flags))


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_learning_rate_follows_the_schedule_in_optimizer_steps(name, cache, tmp_path):
    flags = ("--lr-scheduler", name, "--lr-warmup-steps", "3", "--learning-rate", "2e-4")
    rounds = ("--train-batch-size", "1", "--gradient-accumulation-steps", "3", "--max-train-steps", "8")
    output = runs.train("prior", cache, tmp_path / "out", *flags, *rounds)
    rates = runs.series(output, "lr")
    assert rates == pytest.approx(
        {step: 2e-4 * lr_factor(name, step - 1, warmup_steps=3, total_steps=8) for step in range(1, 9)}
    )
    assert rates[1] == 0
    assert rates[4] == pytest.approx(2e-4)


def test_everything_is_trained_but_the_embeddings_statistics(finished):
    before, after = (
        runs.weights(base_of(finished["prior"]) / "prior"),
        runs.weights(finished["prior"] / "prior"),
    )
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {"clip_mean", "clip_std"}


def test_every_weight_of_the_unet_is_trained(finished):
    before, after = (
        runs.weights(base_of(finished["decoder"]) / "unet"),
        runs.weights(finished["decoder"] / "unet"),
    )
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_learned_variance_half_of_the_output_is_left_alone(cache, tmp_path):
    output = runs.train("decoder", cache, tmp_path / "out")
    before, after = runs.weights(base_of(output) / "unet"), runs.weights(output / "unet")
    for name in ("conv_out.weight", "conv_out.bias"):
        assert not torch.equal(before[name][:4], after[name][:4])
        assert torch.equal(before[name][4:], after[name][4:])


@pytest.mark.parametrize("kind", runs.KINDS)
def test_gradient_checkpointing_changes_no_number(kind, cache, tmp_path):
    plain = runs.train(kind, cache, tmp_path / "plain", "--max-train-steps", "2")
    again = runs.train(kind, cache, tmp_path / "again", "--max-train-steps", "2", "--gradient-checkpointing")
    for key in ("loss", "grad_norm"):
        assert runs.series(again, key) == pytest.approx(runs.series(plain, key), rel=1e-6), key


def test_validation_is_the_same_number_each_time(cache, tmp_path):
    flags = ("--learning-rate", "0", "--validation-fraction", "0.4", "--validation-steps", "1")
    found = []
    for size in ("4", "3", "16"):
        output = runs.train("prior", cache, tmp_path / size, *flags, "--train-batch-size", size)
        values = runs.series(output, "validation_loss")
        assert list(values) == [0, 1, 2, 3]
        assert len(set(values.values())) == 1
        found.append(values[0])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_held_out_samples_are_never_trained_on(cache, tmp_path, monkeypatch):
    read = {"training": set(), "validation": set()}
    gather = CacheReader.gather

    def spy(self, column, rows, **options):
        if column == "image":
            where = "validation" if threading.current_thread() is threading.main_thread() else "training"
            read[where].update(rows.tolist())
        return gather(self, column, rows, **options)

    monkeypatch.setattr(CacheReader, "gather", spy)
    flags = ("--validation-fraction", "0.3", "--max-train-steps", "10", "--train-batch-size", "8")
    output = runs.train("prior", cache, tmp_path / "out", *flags)
    numbers = json.loads((output / "run.json").read_text())
    assert len(read["validation"]) == numbers["validation_samples"] > 0
    assert len(read["training"]) == numbers["train_samples"]
    assert not read["training"] & read["validation"]


@pytest.mark.parametrize("kind", runs.KINDS)
def test_conditions_are_dropped_at_the_rate_asked_for(kind, cache, tmp_path, monkeypatch):
    losses, drops = {}, {}
    original = train.step.draw

    def spy(*args, **options):
        draws = original(*args, **options)
        drops[rate] += draws.drop.tolist()
        return draws

    monkeypatch.setattr(train.step, "draw", spy)
    flags = ("--train-batch-size", "16", "--max-train-steps", "2", "--learning-rate", "0")
    for rate in (None, "0", "0.5"):
        drops[rate] = []
        chosen = () if rate is None else ("--cond-dropout", rate)
        losses[rate] = runs.series(runs.train(kind, cache, tmp_path / str(rate), *flags, *chosen), "loss")
    assert not any(drops["0"])
    assert 0 < sum(drops[None]) < sum(drops["0.5"]) < 32
    assert 8 <= sum(drops["0.5"]) <= 24  # 32 draws; three standard deviations are 8.5
    assert losses["0"] != losses[None] != losses["0.5"]


@pytest.mark.parametrize("flags", [(), ("--validation-fraction", "0.2", "--validation-steps", "1")])
@pytest.mark.parametrize("rate", ["1e4", "1e30"])
def test_diverging_run_ends_with_one_line_and_saves_nothing_unsound(rate, flags, cache, tmp_path):
    output = tmp_path / "out"
    wild = ("--learning-rate", rate, "--checkpointing-steps", "1", "--max-train-steps", "8", *flags)
    ended = runs.program("prior", *runs.arguments(cache, output, *wild))
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(
        ("loss: not finite", "gradient: not finite", "weights: not finite", "validation loss: not finite")
    )
    for folder in output.glob("checkpoint-*"):
        tensors = [*runs.weights(folder).values(), *runs.weights(folder / "prior").values()]
        assert all(tensor.isfinite().all() for tensor in tensors)
    assert not (output / "model_index.json").exists()
    assert all(np.isfinite(value) for line in runs.metrics(output) for value in line.values())


def test_run_json_says_what_was_asked_for_and_from_what(finished, cache):
    for kind, output in finished.items():
        found = json.loads((output / "run.json").read_text())
        assert found["trains"] == runs.TRAINED[kind]
        assert found["options"]["cache"] == [str(cache)]
        assert found["options"]["snr_gamma"] == 5
        assert found["total_steps"] == 6
        assert found["global_batch_size"] == 4
        # one of the 24 pictures is broken; another has no caption, which only the prior needs
        assert found["train_samples"] + found["validation_samples"] == {"prior": 22, "decoder": 23}[kind]
        columns = {"prior": {"image", "text"}, "decoder": {"image", "latents@64"}}[kind]
        assert found["cache"]["columns"].keys() == found["cache"]["identities"].keys() == columns
        reader = CacheReader(cache, sorted(columns))
        assert found["cache"]["columns"] == {name: c.identity for name, c in reader.columns.items()}
        assert "torch" in found["libraries"]


def test_losses_are_drawn(finished):
    for output in finished.values():
        with Image.open(output / "loss.png") as picture:
            picture.load()
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # not blank


@pytest.mark.parametrize("kind", runs.KINDS)
def test_dry_run_prints_the_plan_and_writes_nothing(kind, cache, tmp_path):
    ended = runs.program(kind, *runs.arguments(cache, tmp_path / "out", "--dry-run"))
    assert ended.code == 0
    assert json.loads(ended.stdout[: ended.stdout.rindex("}") + 1])["total_steps"] == 3
    assert ended.stdout.endswith("nothing was written (--dry-run)\n")
    assert not list(tmp_path.iterdir())
