from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from train.diffusion import from_scheduler_config
from train.draws import Draws, draw
from train.objectives import decoder_loss, prior_loss

B, N, M, D = 6, 5, 2, 8
PRIOR_SCHEDULER = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
DECODER_SCHEDULER = DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draws_of(shape, drop) -> Draws:
    made = draw(0, 0, torch.arange(B), shape=shape, num_train_timesteps=1000, cond_dropout=0.0)
    return Draws(made.noise, made.timesteps, torch.tensor(drop))


DROP = [False, True, False, False, True, False]


class Recorder:
    """A model that remembers its arguments and predicts a known tensor."""

    def __init__(self, prediction):
        self.prediction = prediction

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        return self.prediction


@pytest.fixture
def prior_case():
    batch = {
        "image_embeds": rand(B, D, seed=1),
        "prompt_embeds": rand(B, D, seed=2),
        "text_encoder_hidden_states": rand(B, N, D, seed=3),
        "n_tokens": torch.tensor([5, 3, 2, 4, 5, 3]),
    }
    null = {"prompt_embeds": rand(D, seed=4), "text_encoder_hidden_states": rand(M, D, seed=5)}
    clip = {"clip_mean": rand(1, D, seed=6), "clip_std": rand(1, D, seed=7).abs() + 0.5}
    return batch, null, clip


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_prior_loss_is_the_references_formula(prior_case, snr_gamma):
    batch, null, clip = prior_case
    draws = draws_of((D,), [False] * B)
    model = Recorder(rand(B, D, seed=9))
    loss = prior_loss(
        model, batch, null, draws, from_scheduler_config(PRIOR_SCHEDULER.config), **clip, snr_gamma=snr_gamma
    )
    x0 = (batch["image_embeds"] - clip["clip_mean"]) / clip["clip_std"]
    expected = (model.prediction - x0).square().mean(1)
    if snr_gamma is not None:
        expected = expected * compute_snr(PRIOR_SCHEDULER, draws.timesteps).clamp(max=snr_gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)

    noisy, timesteps, prompt_embeds, hidden, n_tokens = model.args
    assert torch.equal(noisy, PRIOR_SCHEDULER.add_noise(x0, draws.noise, draws.timesteps))
    assert torch.equal(timesteps, draws.timesteps)
    assert torch.equal(prompt_embeds, batch["prompt_embeds"])
    assert torch.equal(hidden, batch["text_encoder_hidden_states"])
    assert torch.equal(n_tokens, batch["n_tokens"])


@pytest.mark.parametrize("num_rows", [N, 1])
def test_dropped_samples_get_the_null_text_whole(prior_case, num_rows):
    batch, null, clip = prior_case
    batch["text_encoder_hidden_states"] = batch["text_encoder_hidden_states"][:, :num_rows]
    batch["n_tokens"] = batch["n_tokens"].clamp(max=num_rows)
    model = Recorder(rand(B, D, seed=9))
    schedule = from_scheduler_config(PRIOR_SCHEDULER.config)
    prior_loss(model, batch, null, draws_of((D,), DROP), schedule, **clip, snr_gamma=None)
    _, _, prompt_embeds, hidden, n_tokens = model.args
    assert hidden.shape == (B, max(num_rows, M), D)
    for i, dropped in enumerate(DROP):
        if dropped:
            assert torch.equal(prompt_embeds[i], null["prompt_embeds"])
            assert torch.equal(hidden[i, :M], null["text_encoder_hidden_states"])
            assert n_tokens[i] == M
        else:
            assert torch.equal(prompt_embeds[i], batch["prompt_embeds"][i])
            assert torch.equal(hidden[i, :num_rows], batch["text_encoder_hidden_states"][i])
            assert n_tokens[i] == batch["n_tokens"][i]


def test_prior_target_is_normalised_in_float32_whatever_the_cache_holds(prior_case):
    batch, null, clip = prior_case
    halves = {key: x.half() if x.is_floating_point() else x for key, x in batch.items()}
    raised = {key: x.float() if x.is_floating_point() else x for key, x in halves.items()}
    draws, schedule = draws_of((D,), DROP), from_scheduler_config(PRIOR_SCHEDULER.config)
    losses, inputs = [], []
    for columns in (halves, raised):
        model = Recorder(rand(B, D, seed=9))
        losses.append(prior_loss(model, columns, null, draws, schedule, **clip, snr_gamma=5.0))
        inputs.append(model.args[0])
    assert losses[0].dtype == inputs[0].dtype == torch.float32
    assert torch.equal(*losses)
    assert torch.equal(*inputs)


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_decoder_loss_is_the_references_formula(snr_gamma, dtype):
    shape = (4, 6, 8)
    batch = {"latents": rand(B, *shape).to(dtype), "image_embeds": rand(B, D, seed=1).to(dtype)}
    null = {"image_embeds": rand(D, seed=2)}
    draws = draws_of(shape, DROP)
    output = rand(B, 8, 6, 8, seed=3)  # twice the latents' channels: mean and variance
    model = Recorder(SimpleNamespace(sample=output))
    loss = decoder_loss(
        model, batch, null, draws, from_scheduler_config(DECODER_SCHEDULER.config), snr_gamma=snr_gamma
    )
    expected = (output[:, :4] - draws.noise).square().mean((1, 2, 3))
    if snr_gamma is not None:
        snr = compute_snr(DECODER_SCHEDULER, draws.timesteps)
        expected = expected * snr.clamp(max=snr_gamma) / snr
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)

    noisy, timesteps, hidden = model.args
    latents = batch["latents"].float()
    assert torch.equal(noisy, DECODER_SCHEDULER.add_noise(latents, draws.noise, draws.timesteps))
    assert torch.equal(timesteps, draws.timesteps)
    assert hidden is None
    dropped = torch.tensor(DROP)[:, None]
    embeds = torch.where(dropped, null["image_embeds"], batch["image_embeds"].float())
    assert torch.equal(model.kwargs["added_cond_kwargs"]["image_embeds"], embeds)
