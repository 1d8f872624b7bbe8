import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from diffusers.training_utils import compute_snr

from train.diffusion import NoiseSchedule, from_scheduler_config, loss_per_sample, min_snr_weight

T = 1000
SCHEDULERS = {
    "prior": UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
    "decoder": DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
    "decoder_ddim": DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
    "velocity": DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
    "short": DDPMScheduler(num_train_timesteps=17, trained_betas=[0.01 * i for i in range(1, 18)]),
    "zero_snr": DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
}


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    return SCHEDULERS[request.param]


def pair(count, shape=(3, 4), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(count, *shape, generator=generator) for _ in range(2))
    return x0.to(dtype), noise.to(dtype)


def schedule_of(scheduler) -> NoiseSchedule:
    return from_scheduler_config({"_class_name": type(scheduler).__name__, **scheduler.config})


def test_schedule_has_the_schedulers_own_table(scheduler):
    schedule = schedule_of(scheduler)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert schedule.prediction_type == scheduler.config.prediction_type
    assert schedule.num_train_timesteps == scheduler.config.num_train_timesteps


def test_unclip_config_without_a_beta_schedule_takes_the_cosine():
    bare = from_scheduler_config({"_class_name": "UnCLIPScheduler", "prediction_type": "sample"})
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    assert torch.equal(bare.alphas_cumprod, reference.alphas_cumprod)
    assert bare.prediction_type == "sample"


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="prediction_type is 'flow', wanted one of epsilon, sample, v_pred"):
        from_scheduler_config({"prediction_type": "flow"})


def test_add_noise_equals_diffusers_in_float32(scheduler):
    schedule = schedule_of(scheduler)
    timesteps = torch.arange(schedule.num_train_timesteps)
    x0, noise = pair(len(timesteps))
    reference = DDPMScheduler.from_config({k: v for k, v in scheduler.config.items() if k[0] != "_"})
    assert torch.equal(schedule.add_noise(x0, noise, timesteps), reference.add_noise(x0, noise, timesteps))


def test_velocity_target_equals_diffusers():
    schedule = schedule_of(SCHEDULERS["velocity"])
    x0, noise = pair(T)
    timesteps = torch.arange(T)
    reference = SCHEDULERS["velocity"].get_velocity(x0, noise, timesteps)
    assert torch.equal(schedule.target(x0, noise, timesteps), reference)


def test_target_is_the_noise_or_the_clean_input():
    x0, noise = pair(4, dtype=torch.bfloat16)
    timesteps = torch.arange(4)
    epsilon, sample = schedule_of(SCHEDULERS["decoder"]), schedule_of(SCHEDULERS["prior"])
    assert torch.equal(epsilon.target(x0, noise, timesteps), noise.float())
    assert torch.equal(sample.target(x0, noise, timesteps), x0.float())


@pytest.mark.parametrize("name", ["prior", "decoder"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_get_the_float32_schedule(name, dtype):
    schedule = schedule_of(SCHEDULERS[name])
    x0, noise = pair(T, dtype=dtype)
    timesteps = torch.arange(T)
    noisy = schedule.add_noise(x0, noise, timesteps)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy, schedule.add_noise(x0.float(), noise.float(), timesteps))
    # the noise alone, so its scale: never zero and right at every timestep
    sigma = schedule.add_noise(torch.zeros(T, 1, dtype=dtype), torch.ones(T, 1, dtype=dtype), timesteps)[:, 0]
    exact = (1 - schedule.alphas_cumprod.double()).sqrt()
    assert (sigma > 0).all()
    torch.testing.assert_close(sigma.double(), exact, rtol=1e-6, atol=0)


def test_reference_in_bfloat16_has_the_fault_we_avoid():
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    ones = torch.ones(T, 1, dtype=torch.bfloat16)
    sigma = reference.add_noise(torch.zeros_like(ones), ones, torch.arange(T))[:, 0]
    assert (sigma == 0).sum() == 21


@pytest.mark.parametrize("name", ["prior", "decoder", "short"])
def test_snr_equals_diffusers(name):
    schedule = schedule_of(SCHEDULERS[name])
    timesteps = torch.arange(schedule.num_train_timesteps)
    reference = compute_snr(SCHEDULERS[name], timesteps)
    torch.testing.assert_close(schedule.snr(timesteps), reference, rtol=1e-6, atol=0)


def test_min_snr_weights_follow_the_paper():
    snr = torch.tensor([0.0, 0.5, 5.0, 20.0])
    weights = {
        kind: min_snr_weight(snr, 5.0, kind).tolist() for kind in ("sample", "epsilon", "v_prediction")
    }
    assert weights["sample"] == [0.0, 0.5, 5.0, 5.0]
    assert weights["epsilon"] == [1.0, 1.0, 1.0, 0.25]
    assert weights["v_prediction"] == pytest.approx([0.0, 0.5 / 1.5, 5 / 6, 5 / 21])


@pytest.mark.parametrize(("name", "mean"), [("prior", 2.00), ("decoder", 0.93)])
def test_min_snr_scales_the_mean_loss_as_measured_on_the_reference(name, mean):
    schedule = schedule_of(SCHEDULERS[name])
    weight = min_snr_weight(schedule.snr(torch.arange(T)), 5.0, schedule.prediction_type)
    assert weight.mean().item() == pytest.approx(mean, abs=0.005)


def test_loss_per_sample_averages_all_but_the_batch_in_float32():
    prediction, target = pair(5, shape=(4, 6, 8), dtype=torch.bfloat16)
    weight = torch.arange(5.0)
    loss = loss_per_sample(prediction, target, weight)
    exact = (prediction.double() - target.double()).square().mean(dim=(1, 2, 3)) * weight
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss_per_sample(prediction, target)[1], loss[1])


def test_to_moves_the_table_and_keeps_the_rest():
    moved = schedule_of(SCHEDULERS["prior"]).to("meta")
    assert moved.alphas_cumprod.device.type == "meta"
    assert moved.prediction_type == "sample"
