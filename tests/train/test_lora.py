"""Training a LoRA: what moves, by how much, and that a continued run is the run it would have been."""

import numpy as np
import pytest
import torch

from data_tools import images
from data_tools.cache.order import choice
from tests.online import OnlineModels, movq_pixels, online_decoder_loss, online_prior_loss
from tests.train import runs
from tests.train.lora_by_hand import add_by_hand, random_lora
from tests.train.test_equivalence import table
from tests.train.test_ranks import FLAGS, assert_close, on_two_ranks
from train.batches import Slice, TrainingBatches, null_conditions
from train.draws import draw
from train.fit import fit
from train.lora import Adapter
from train.optimizer import make_optimizer

CPU = torch.device("cpu")
LORA = ("--lora-rank", "4", "--lora-alpha", "8")
ONE_DRAW = {"prior": ("--noise-draws", "1"), "decoder": ()}


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


def lora_of(output):
    """The finished LoRA's tensors."""
    return runs.weights(output)


def test_only_the_lora_is_trained(kind, cache, tmp_path):
    task, reader, options = runs.prepared(kind, cache, tmp_path / "out", *LORA)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    asking = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert asking == {name for name in before if ".lora_" in name}
    fit(task, reader, options)
    after = task.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == asking
    layers = 4 * 3 if kind == "prior" else 6 * len({n.split(".to_q.")[0] for n in asking if ".to_q." in n})
    assert len(asking) == 2 * layers


def test_fresh_lora_changes_nothing_and_depends_on_the_seed_alone(kind, cache, tmp_path):
    loras = []
    for seed in ("0", "0", "1"):
        torch.rand(1)  # whatever was drawn before
        task = runs.prepared(kind, cache, tmp_path / "out", *LORA, "--seed", seed)[0]
        loras.append({name: p.detach() for name, p in task.adapter.parameters().items()})
    assert runs.same_tensors(loras[0], loras[1])
    assert not runs.same_tensors(loras[0], loras[2])
    for name, tensor in loras[0].items():
        assert bool(tensor.any()) == (".lora_A." in name)


def batch_of_everything(reader, seed):
    """All samples as one batch; positions; and the samples, as (key hash, number of the caption)."""
    everything = np.arange(reader.num_samples)
    batches = TrainingBatches(reader, everything[:0], Slice(0, 1, len(everything), 1), seed, CPU)
    ((batch, positions),) = batches.iterate(0, 1)
    drawn = batches.sampling.order.batch(0)
    counts = reader.rows("text")[1][drawn.sample] if "text" in reader.columns else np.ones_like(drawn.sample)
    captions = choice(seed, drawn.sample, drawn.epoch, counts, what="captions")
    return batch, positions, list(zip(reader.key_hashes(drawn.sample).tolist(), captions.tolist()))


def online_losses(kind, models, cache, pictures, shown, draws):
    entries = table(cache)
    pixels = [images.decode((pictures / entries[key]["place"]).read_bytes()) for key, _ in shown]
    clip_pixels = models.image_processor(images=pixels, return_tensors="pt").pixel_values
    if kind == "prior":
        captions = [entries[key]["captions"][number] for key, number in shown]
        return online_prior_loss(models, clip_pixels, captions, draws)
    squares = torch.stack([movq_pixels(image, 64) for image in pixels])
    return online_decoder_loss(models, squares, clip_pixels, draws)


def test_step_is_that_of_a_lora_by_hand_on_the_online_model(kind, cache, pocket, pictures, tmp_path):
    flags = (*LORA, *ONE_DRAW[kind], "--learning-rate", "1e-2", "--adam-epsilon", "1e-3")
    task, reader, options = runs.prepared(kind, cache, tmp_path, *flags)
    models = OnlineModels.load(pocket / "prior", pocket / "decoder")
    model = getattr(models, runs.TRAINED[kind])
    task.adapter.load_state_dict(random_lora(model, rank=4))
    by_hand = add_by_hand(model, random_lora(model, rank=4), scale=8 / 4)
    batch, positions, shown = batch_of_everything(reader, options.seed)
    draws = draw(
        options.seed,
        0,
        positions,
        shape=tuple(batch[task.noised].shape[1:]),
        num_train_timesteps=task.num_train_timesteps,
        cond_dropout=0.2,
    )
    losses = task.make_loss(CPU)(task.module, batch, null_conditions(reader, task.null_column, CPU), draws)
    wanted = online_losses(kind, models, cache, pictures, shown, draws)
    assert ((losses - wanted).abs() / wanted).max() <= 1e-5

    optimizer, _ = make_optimizer(task.module, options)
    reference = torch.optim.AdamW(by_hand.values(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    for loss, steps in ((losses, optimizer), (wanted, reference)):
        loss.mean().backward()
        steps.step()
    found = {name: p.detach() for name, p in task.adapter.parameters().items()}
    stepped = {name: tensor.detach() for name, tensor in by_hand.items()}
    start = random_lora(model, rank=4)
    assert runs.distance(found, stepped) <= 1e-4 * runs.distance(stepped, start)


@pytest.mark.parametrize(("kind", "dropout"), [("prior", "0"), ("prior", "0.3"), ("decoder", "0.3")])
def test_continued_run_is_the_uninterrupted_one(kind, dropout, cache, tmp_path):
    flags = (
        *LORA,
        "--lora-dropout",
        dropout,
        "--train-batch-size",
        "2",
        "--gradient-accumulation-steps",
        "2",
    )
    whole = runs.train(kind, cache, tmp_path / "whole", *flags, "--max-train-steps", "4")
    parts = runs.train(kind, cache, tmp_path / "parts", *flags, "--max-train-steps", "2")
    torch.rand(1)  # a new process has drawn other numbers before
    runs.train(kind, cache, parts, *flags, "--max-train-steps", "4")
    assert runs.metrics(parts) == runs.metrics(whole)
    for folder in (".", "checkpoint-4", f"checkpoint-4/{runs.TRAINED[kind]}", runs.TRAINED[kind]):
        found = runs.weights(whole / folder)
        assert found
        assert runs.same_tensors(runs.weights(parts / folder), found), folder


def test_gradient_checkpointing_drops_the_same_again(kind, cache, tmp_path):
    flags = (*LORA, "--lora-dropout", "0.4", "--learning-rate", "1e-2")
    plain, checkpointing, none = (
        runs.train(kind, cache, tmp_path / name, *flags, *more)
        for name, more in (("a", ()), ("b", ("--gradient-checkpointing",)), ("c", ("--lora-dropout", "0")))
    )
    assert runs.series(plain, "loss") == pytest.approx(runs.series(checkpointing, "loss"), rel=1e-6)
    assert runs.series(plain, "grad_norm") == pytest.approx(runs.series(checkpointing, "grad_norm"), rel=1e-5)
    assert runs.series(plain, "loss") != pytest.approx(runs.series(none, "loss"), rel=1e-4)


def test_two_ranks_take_the_steps_of_one(cache, tmp_path):
    one = runs.train("prior", cache, tmp_path / "one", *FLAGS, *LORA, "--train-batch-size", "4")
    two = on_two_ranks("prior", cache, tmp_path / "two", *FLAGS, *LORA, "--train-batch-size", "2")
    for key in ("loss", "validation_loss", "grad_norm"):
        assert_close(runs.series(two, key), runs.series(one, key))
    start = runs.weights(one / "checkpoint-2" / "prior")
    assert runs.distance(lora_of(two), lora_of(one)) < 1e-3 * runs.distance(lora_of(one), start)


def test_frozen_weights_in_half_precision_change_nothing_under_autocast(kind, cache, tmp_path):
    flags = (*LORA, "--mixed-precision", "bf16", "--validation-fraction", "0.2", "--learning-rate", "1e-2")
    task, reader, options = runs.prepared(kind, cache, tmp_path / "half", *flags)
    fit(task, reader, options)
    dtypes = {name: p.dtype for name, p in task.model.named_parameters()}
    assert {dtypes[name] for name in dtypes if ".lora_" in name or ".norm" in name} == {torch.float32}
    assert {dtypes[name] for name in dtypes if ".base_layer." in name} == {torch.bfloat16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "freeze_in", lambda *_: None)
        whole = runs.train(kind, cache, tmp_path / "whole", *flags)
    assert runs.metrics(tmp_path / "half") == runs.metrics(whole)
    assert runs.same_tensors(lora_of(tmp_path / "half"), lora_of(whole))
    assert runs.same_tensors(*(runs.weights(tmp_path / o / runs.TRAINED[kind]) for o in ("half", "whole")))
