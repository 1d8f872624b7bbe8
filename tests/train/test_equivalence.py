"""A step from the cache is the online step: same losses, same gradients, for the same samples and draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from torch import Tensor

from data_tools import images
from data_tools.cache.manifest import Cache
from data_tools.cache.order import choice
from data_tools.cache.store import LocalStore
from tests.online import OnlineModels, movq_pixels, online_decoder_loss, online_prior_loss
from tests.precompute.pictures import LONG
from tests.train.runs import KINDS, prepared
from train.batches import Slice, TrainingBatches, null_conditions
from train.draws import Draws, draw

CPU = torch.device("cpu")
RESOLUTION = 64
STEPS = (0, 3)
"Both epochs have every sample in them once; the captions chosen differ."

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def online(pocket: Path) -> OnlineModels:
    return OnlineModels.load(pocket / "prior", pocket / "decoder")


def cached_step(kind, cache, output, step, dropout, snr_gamma):
    """Losses and gradients by the real path; and the samples, as (key hash, number of the caption)."""
    flags = [] if snr_gamma is None else ["--snr-gamma", str(snr_gamma)]
    task, reader, options = prepared(kind, cache, output, *flags)
    everything = np.arange(reader.num_samples)
    batches = TrainingBatches(reader, everything[:0], Slice(0, 1, len(everything), 1), options.seed, CPU)
    (item,) = batches.iterate(step, step + 1)
    batch, positions = item
    draws = draw(
        options.seed,
        step,
        positions,
        shape=tuple(batch[task.noised].shape[1:]),
        num_train_timesteps=task.num_train_timesteps,
        cond_dropout=dropout,
    )
    losses = task.make_loss(CPU)(task.module, batch, null_conditions(reader, task.null_column, CPU), draws)
    losses.mean().backward()
    gradients = {name: p.grad for name, p in task.model.named_parameters() if p.requires_grad}
    drawn = batches.sampling.order.batch(step)
    counts = reader.rows("text")[1][drawn.sample] if kind == "prior" else np.ones_like(drawn.sample)
    captions = choice(options.seed, drawn.sample, drawn.epoch, counts, what="captions")
    shown = list(zip(reader.key_hashes(drawn.sample).tolist(), captions.tolist()))
    reader.close()
    return losses.detach(), gradients, shown, draws


def online_step(kind, models, cache, pictures, shown, draws: Draws, snr_gamma):
    """Losses and gradients of the same samples, from the files and captions themselves."""
    entries = table(cache)
    pixels = [images.decode((pictures / entries[key]["place"]).read_bytes()) for key, _ in shown]
    clip_pixels = models.image_processor(images=pixels, return_tensors="pt").pixel_values
    if kind == "prior":
        captions = [entries[key]["captions"][number] for key, number in shown]
        model, losses = (
            models.prior,
            online_prior_loss(models, clip_pixels, captions, draws, snr_gamma=snr_gamma),
        )
    else:
        squares = torch.stack([movq_pixels(image, RESOLUTION) for image in pixels])
        model, losses = (
            models.unet,
            online_decoder_loss(models, squares, clip_pixels, draws, snr_gamma=snr_gamma),
        )
    model.zero_grad(set_to_none=True)
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def table(cache: Path):
    """Key hash → the row of the source's table."""
    opened = Cache.open(LocalStore(cache))
    rows = [row for part in opened.plan() for row in opened.table(part)]
    return {xxhash.xxh3_64_intdigest(row["key"].encode()): row for row in rows}


def relative(found: Gradients, wanted: Gradients) -> float:
    """Norm of the difference of all gradients together, over the norm."""
    difference = torch.stack([(found[name] - wanted[name]).norm() for name in wanted]).norm()
    return float(difference / torch.stack([grad.norm() for grad in wanted.values()]).norm())


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_step_equals_the_online_step(
    kind, dropout, snr_gamma, cache, pictures, online, tmp_path, record_property
):
    losses, gradients, shown, draws = cached_step(kind, cache, tmp_path, STEPS[0], dropout, snr_gamma)
    wanted, wanted_gradients = online_step(kind, online, cache, pictures, shown, draws, snr_gamma)
    assert draws.drop.any() == (dropout > 0)
    of_losses = ((losses - wanted).abs() / wanted).max().item()
    of_gradients = relative(gradients, wanted_gradients)
    record_property("losses", of_losses)
    record_property("gradients", of_gradients)
    print(f"{kind} {dropout} {snr_gamma}: losses {of_losses:.1e}, gradients {of_gradients:.1e}")
    assert of_losses <= 1e-5
    assert of_gradients <= 1e-5

    assert gradients.keys() == wanted_gradients.keys()
    # some gradients are zero but for rounding (keys' biases; the variance half of conv_out exactly)
    scale = max(grad.norm() for grad in wanted_gradients.values())
    for name, grad in wanted_gradients.items():
        assert (gradients[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-7 * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_later_epochs_show_other_captions_and_are_as_equal(kind, cache, pictures, online, tmp_path):
    first, later = (cached_step(kind, cache, tmp_path, step, 0.1, None) for step in STEPS)
    losses, gradients, shown, draws = later
    wanted, wanted_gradients = online_step(kind, online, cache, pictures, shown, draws, None)
    assert ((losses - wanted).abs() / wanted).max() <= 1e-5
    assert relative(gradients, wanted_gradients) <= 1e-5
    if kind == "prior":
        assert sorted(shown) != sorted(first[2])


def test_the_captions_compared_are_of_many_lengths_and_scripts(cache, pictures, online, tmp_path):
    reader = prepared("prior", cache, tmp_path)[1]
    entries = table(cache)
    captions = [entries[key]["captions"] for key in reader.key_hashes().tolist()]
    lengths = {len(online.tokenizer(text).input_ids) for texts in captions for text in texts}
    assert len(lengths) >= 5
    assert min(lengths) <= 10
    assert max(lengths) > online.tokenizer.model_max_length
    assert [LONG] in captions
    assert any(len(texts) == 3 for texts in captions)
    assert any(not text.isascii() for texts in captions for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_cache_is_near_the_online_step(
    kind, cache16, pictures, online, tmp_path, record_property
):
    losses, gradients, shown, draws = cached_step(kind, cache16, tmp_path, STEPS[0], 0.1, None)
    wanted, wanted_gradients = online_step(kind, online, cache16, pictures, shown, draws, None)
    of_mean = ((losses.mean() - wanted.mean()).abs() / wanted.mean()).item()
    of_losses = ((losses - wanted).abs() / wanted).max().item()
    of_gradients = relative(gradients, wanted_gradients)
    record_property("loss", of_mean)
    record_property("losses", of_losses)
    record_property("gradients", of_gradients)
    print(f"{kind} fp16: loss {of_mean:.1e}, worst {of_losses:.1e}, gradients {of_gradients:.1e}")
    assert of_mean <= 5e-5  # measured 7e-6
    assert of_losses <= 5e-4  # measured 1.5e-4
    assert of_gradients <= 5e-4  # measured 1.3e-4
