"""Several draws a caption (`--noise-draws`) are as many passes of one draw, for less work."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from tests.train import runs
from tests.train.test_prior_model import LENGTHS, NUM_EMBEDDINGS, B, D, backward, make_prior, relative, stock
from train.diffusion import from_scheduler_config
from train.draws import Draws, Purpose, draw
from train.objectives import prior_loss
from train.prior_model import CausalPrior

K = 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def inputs(dtype=torch.float32, draws=K):
    """Of a forward of `draws` draws for each of the B captions, of all lengths."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, NUM_EMBEDDINGS, D, generator=generator, dtype=torch.float64)
    prompt = torch.randn(B, D, generator=generator, dtype=torch.float64)
    noisy = torch.randn(B * draws, D, generator=generator, dtype=torch.float64)
    timesteps = torch.randint(1000, (B * draws,), generator=generator)
    return noisy.to(dtype), timesteps, prompt.to(dtype), hidden.to(dtype), torch.tensor(LENGTHS)


def separately(model, noisy, timesteps, *condition):
    """The same predictions in K passes."""
    k = len(noisy) // B
    return torch.stack([model(noisy[i::k], timesteps[i::k], *condition) for i in range(k)], 1).flatten(0, 1)


def assert_same_gradients(found, wanted, bound):
    assert found.keys() == wanted.keys()
    # to_k.bias has no gradient but rounding (softmax ignores a constant): compared on the scale of all
    scale = max(grad.norm() for grad in wanted.values())
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= bound * (grad.norm() + 1e-2 * scale), name


def adapted(prior):
    torch.manual_seed(2)
    prior.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
    return prior


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_predictions_and_gradients_equal_those_of_separate_passes(dtype, bound, lora):
    prior = make_prior(dtype)
    model = CausalPrior(adapted(prior).to(dtype) if lora else prior)
    arguments = inputs(dtype)
    expected = separately(model, *arguments)
    wanted = backward(model, expected)
    out = model(*arguments)
    assert out.shape == (B * K, D)
    assert relative(out, expected) <= bound
    grads = backward(model, out)
    assert_same_gradients(grads, wanted, bound)
    assert any("lora_A" in name for name in grads) == lora


def test_predictions_and_gradients_equal_the_padded_and_masked_reference():
    prior = make_prior(torch.float64)
    arguments = inputs(torch.float64)
    expected = separately(lambda *given: stock(prior, *given), *arguments)
    wanted = backward(prior, expected)
    model = CausalPrior(prior)
    out = model(*arguments)
    assert relative(out, expected) <= 1e-12
    assert_same_gradients(backward(prior, out), wanted, 1e-12)


@pytest.mark.parametrize("draws", [2, 8])
@pytest.mark.parametrize("rows", [7, 8, 13, 20])
def test_number_of_rows_and_of_draws_does_not_matter(rows, draws):
    model = CausalPrior(make_prior())
    noisy, timesteps, prompt, hidden, n_tokens = inputs(draws=draws)
    n_tokens = n_tokens.clamp(max=7)
    filled = torch.cat([hidden, hidden], dim=1)[:, :rows]
    with torch.no_grad():
        expected = separately(model, noisy, timesteps, prompt, hidden, n_tokens)
        assert relative(model(noisy, timesteps, prompt, filled, n_tokens), expected) <= 1e-5


def test_draws_see_neither_each_other_nor_pads_nor_other_captions():
    model = CausalPrior(make_prior())
    noisy, timesteps, prompt, hidden, n_tokens = inputs()
    out = model(noisy, timesteps, prompt, hidden, n_tokens)
    changed = noisy.clone()
    changed[1] += 100.0  # the second draw of the first caption
    other = model(changed, timesteps, prompt, hidden, n_tokens)
    assert not torch.allclose(other[1], out[1])
    rest = torch.arange(B * K) != 1
    assert torch.equal(other[rest], out[rest])
    pads = torch.arange(NUM_EMBEDDINGS) >= n_tokens[:, None]
    assert torch.equal(
        model(noisy, timesteps, prompt, hidden.masked_fill(pads[..., None], 1e3), n_tokens), out
    )


def test_gradient_checkpointing_gives_the_same_gradients():
    model = CausalPrior(make_prior())
    arguments = inputs()
    plain = backward(model, model(*arguments))
    model.enable_gradient_checkpointing()
    again = backward(model, model(*arguments))
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_lora_dropout_is_the_same_when_a_checkpointed_block_is_computed_again():
    prior = make_prior()
    torch.manual_seed(2)
    prior.add_adapter(LoraConfig(r=4, lora_dropout=0.5, target_modules=TARGETS, init_lora_weights=False))
    model = CausalPrior(prior).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.enable_gradient_checkpointing()
        torch.manual_seed(3)
        gradients.append(backward(model, model(*inputs())))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_under_autocast_near_the_float32_result(dtype):
    model = CausalPrior(make_prior())
    with torch.no_grad():
        expected = model(*inputs())
    with torch.autocast("cpu", dtype=dtype):
        out = model(*inputs())
    assert out.dtype == dtype
    assert relative(out.float(), expected) < 10 * torch.finfo(dtype).eps
    grads = backward(model, out.float())
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())


def test_forward_traces_to_one_graph_without_reading_values():
    model = CausalPrior(make_prior())
    exported = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(exported(*inputs()), model(*inputs()))


def test_four_draws_of_a_caption_of_20_tokens_cost_less_than_half_more_than_one():
    model = CausalPrior(make_prior(num_embeddings=77))
    flops = []
    for draws in (1, 4):
        hidden, n_tokens = torch.randn(B, 20, D), torch.full((B,), 20)
        noisy, timesteps = torch.randn(B * draws, D), torch.zeros(B * draws, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(noisy, timesteps, torch.randn(B, D), hidden, n_tokens).sum().backward()
        flops.append(counter.get_total_flops())
    assert 1.2 < flops[1] / flops[0] < 1.5  # 33 tokens instead of 24


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_loss_and_gradients_are_the_means_over_the_draws_with_conditions_dropped(snr_gamma):
    model = CausalPrior(make_prior(torch.float64))
    _, _, prompt, hidden, n_tokens = inputs(torch.float64)
    batch = {
        "image_embeds": torch.randn(B, D, generator=torch.Generator().manual_seed(4)),
        "prompt_embeds": prompt,
        "text_encoder_hidden_states": hidden,
        "n_tokens": n_tokens,
    }
    null = {"prompt_embeds": prompt[0], "text_encoder_hidden_states": hidden[0, :2]}
    draws = draw(5, 2, torch.arange(B), shape=(D,), num_train_timesteps=1000, cond_dropout=0.5, num_draws=K)
    assert draws.drop.any()
    assert not draws.drop.all()
    schedule = from_scheduler_config(
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, flag="scheduler"
    )
    clip = {"clip_mean": torch.zeros(1, D), "clip_std": torch.ones(1, D)}

    def loss(given):
        return prior_loss(model, batch, null, given, schedule, **clip, snr_gamma=snr_gamma)

    apart = [Draws(draws.noise[k::K], draws.timesteps[k::K], draws.drop) for k in range(K)]
    expected = torch.stack([loss(one) for one in apart]).mean(0)
    wanted = backward(model, expected)
    found = loss(draws)
    assert found.shape == (B,)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert_same_gradients(backward(model, found), wanted, 1e-6)


# The draws themselves.


def drawn(num_draws, positions=6, **options) -> Draws:
    if isinstance(positions, int):
        positions = torch.arange(positions)
    given = {"shape": (5,), "num_train_timesteps": 1000, "cond_dropout": 0.3, **options}
    return draw(7, 3, positions, num_draws=num_draws, **given)


@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("sampling", ["uniform", "logit-normal"])
def test_the_first_of_several_draws_is_the_one_of_a_single_draw(sampling, purpose):
    one = drawn(1, purpose=purpose, timestep_sampling=sampling)
    several = drawn(4, purpose=purpose, timestep_sampling=sampling)
    assert torch.equal(several.noise[::4], one.noise)
    assert torch.equal(several.timesteps[::4], one.timesteps)
    assert torch.equal(several.drop, one.drop)
    assert (several.noise.shape, several.timesteps.shape) == ((24, 5), (24,))


def test_draws_of_a_sample_are_unrelated():
    d = drawn(3, positions=2000)
    noise, times = d.noise.view(2000, 3, 5).double(), d.timesteps.view(2000, 3).double()
    for a, b in [(0, 1), (1, 2), (0, 2)]:
        assert abs(torch.corrcoef(torch.stack([noise[:, a].flatten(), noise[:, b].flatten()]))[0, 1]) < 0.04
        assert abs(torch.corrcoef(torch.stack([times[:, a], times[:, b]]))[0, 1]) < 0.09
        assert (times[:, a] == times[:, b]).double().mean() < 0.01


def test_several_draws_do_not_depend_on_how_positions_are_split():
    whole = drawn(3, positions=13)
    parts = [drawn(3, positions=part) for part in torch.arange(13).split(4)]
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    assert torch.equal(torch.cat([part.timesteps for part in parts]), whole.timesteps)


# A run.

SEVERAL = ("--noise-draws", "3", "--timestep-sampling", "stratified")


def test_a_run_of_several_draws_does_not_depend_on_accumulation(cache, tmp_path):
    flags = (*SEVERAL, "--max-train-steps", "4", "--no-group-by-length")
    rounds = ("--train-batch-size", "2", "--gradient-accumulation-steps", "2")
    whole = runs.train("prior", cache, tmp_path / "whole", *flags, "--train-batch-size", "4")
    split = runs.train("prior", cache, tmp_path / "split", *flags, *rounds)
    one = runs.train(
        "prior", cache, tmp_path / "one", *flags, "--train-batch-size", "4", "--noise-draws", "1"
    )
    losses = [list(runs.series(output, "loss").values()) for output in (whole, split, one)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-4)


def test_a_continued_run_of_several_draws_takes_the_steps_it_would_have_taken(cache, tmp_path):
    flags = (*SEVERAL, "--checkpointing-steps", "2", "--lr-warmup-steps", "0")
    whole = runs.train("prior", cache, tmp_path / "whole", *flags, "--max-train-steps", "4")
    parts = runs.train("prior", cache, tmp_path / "parts", *flags, "--max-train-steps", "2")
    runs.train("prior", cache, parts, *flags, "--max-train-steps", "4")
    assert runs.series(parts, "loss") == runs.series(whole, "loss")


@pytest.mark.parametrize(
    ("flag", "given", "before"),
    [("--noise-draws", "2", "3"), ("--timestep-sampling", "uniform", "stratified")],
)
def test_a_continuation_with_other_draws_is_refused(flag, given, before, cache, tmp_path):
    output = runs.train("prior", cache, tmp_path / "out", *SEVERAL)
    more = runs.arguments(cache, output, *SEVERAL, "--max-train-steps", "5", flag, given)
    ended = runs.program("prior", *more)
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    checkpoint = output / "checkpoint-3"
    assert ended.lines[0].startswith(f"{flag}: {given}, but {checkpoint} was trained with {before}; ")


def test_a_run_from_before_there_were_several_draws_had_one_uniform_draw(cache, tmp_path):
    output = runs.train("prior", cache, tmp_path / "out", "--noise-draws", "1")
    record = json.loads((output / "run.json").read_text())
    for name in ("noise_draws", "timestep_sampling"):
        del record["ordering"][name], record["options"][name]
    (output / "run.json").write_text(json.dumps(record))
    copy = shutil.copytree(output, tmp_path / "copy")
    same = ("--max-train-steps", "5", "--noise-draws", "1", "--timestep-sampling", "uniform")
    assert runs.program("prior", *runs.arguments(cache, output, *same)).code == 0
    ended = runs.program("prior", *runs.arguments(cache, copy, *same, "--noise-draws", "2"))
    assert ended.code == 2
    assert ended.lines[0].startswith("--noise-draws: 2, but ")


def test_the_decoder_has_no_such_flag(cache, tmp_path):
    ended = runs.program("decoder", *runs.arguments(cache, tmp_path / "out", "--noise-draws", "2"))
    assert ended.code == 2
    assert "--noise-draws" in ended.lines[-1]
