import copy

import pytest
import torch
from diffusers import PriorTransformer
from torch import nn

from data_tools.errors import UserError
from train.prior_model import CausalPrior

D, NUM_EMBEDDINGS = 24, 13
LENGTHS = [2, 13, 7, 5, 12]
B = len(LENGTHS)


def make_prior(dtype=torch.float32, **config) -> PriorTransformer:
    torch.manual_seed(0)
    options = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_layers": 3,
        "embedding_dim": D,
        "num_embeddings": NUM_EMBEDDINGS,
    }
    prior = PriorTransformer(**{**options, **config})
    # these start at zero, where many faults would not show
    nn.init.normal_(prior.positional_embedding)
    nn.init.normal_(prior.prd_embedding if prior.prd_embedding is not None else prior.positional_embedding)
    nn.init.ones_(prior.clip_std)
    return prior.to(dtype)


@pytest.fixture
def prior():
    return make_prior()


def inputs(dtype=torch.float32, rows=NUM_EMBEDDINGS):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, rows, D, generator=generator, dtype=torch.float64)
    noisy, prompt = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    timesteps = torch.tensor([0, 999, 500, 3, 77])
    return noisy.to(dtype), timesteps, prompt.to(dtype), hidden.to(dtype), torch.tensor(LENGTHS)


def stock(prior, noisy, timesteps, prompt, hidden, n_tokens):
    mask = torch.arange(NUM_EMBEDDINGS) < n_tokens[:, None]
    return prior(noisy, timesteps, prompt, hidden, mask).predicted_image_embedding


def backward(model, out):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    model.zero_grad(set_to_none=True)
    (out * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_output_and_gradients_equal_the_padded_and_masked_reference(dtype, bound):
    prior = make_prior(dtype)
    arguments = inputs(dtype)
    expected = stock(prior, *arguments)
    expected_grads = backward(prior, expected)
    causal = CausalPrior(prior)
    out = causal(*arguments)
    grads = backward(prior, out)
    assert relative(out, expected) <= bound
    assert grads.keys() == expected_grads.keys()
    # to_k.bias has no gradient but rounding (softmax ignores a constant): compared on the scale of all
    scale = max(g.norm() for g in expected_grads.values())
    for name, grad in grads.items():
        expected = expected_grads[name]
        if name.endswith("to_k.bias"):
            assert (grad - expected).norm() <= bound * scale, name
        else:
            assert relative(grad, expected) <= bound, name


@pytest.mark.parametrize("num_tokens", range(1, NUM_EMBEDDINGS + 1))
def test_every_text_length_equals_the_reference(prior, num_tokens):
    noisy, timesteps, prompt, hidden, _ = inputs()
    arguments = (noisy, timesteps, prompt, hidden, torch.full((B,), num_tokens))
    with torch.no_grad():
        expected = stock(prior, *arguments)
        assert relative(CausalPrior(prior)(*arguments), expected) <= 1e-5


@pytest.mark.parametrize("rows", [7, 8, 12, 13, 16, 20])
def test_number_of_rows_does_not_matter_once_the_longest_text_fits(prior, rows):
    noisy, timesteps, prompt, hidden, n_tokens = inputs(rows=20)
    n_tokens = n_tokens.clamp(max=min(rows, 7))
    with torch.no_grad():
        expected = stock(prior, noisy, timesteps, prompt, hidden[:, :NUM_EMBEDDINGS], n_tokens)
        out = CausalPrior(prior)(noisy, timesteps, prompt, hidden[:, :rows], n_tokens)
    assert relative(out, expected) <= 1e-5


def test_contents_of_pads_reach_neither_output_nor_gradients(prior):
    causal = CausalPrior(prior)
    noisy, timesteps, prompt, hidden, n_tokens = inputs()
    pads = torch.arange(NUM_EMBEDDINGS) >= n_tokens[:, None]
    results = []
    for filling in (0.0, 1000.0):
        filled = hidden.masked_fill(pads[..., None], filling)
        out = causal(noisy, timesteps, prompt, filled, n_tokens)
        results.append((out, backward(prior, out)))
    (out_a, grads_a), (out_b, grads_b) = results
    assert torch.equal(out_a, out_b)
    assert all(torch.equal(grads_a[name], grads_b[name]) for name in grads_a)


def test_samples_do_not_see_each_other(prior):
    causal = CausalPrior(prior)
    arguments = inputs()
    with torch.no_grad():
        whole = causal(*arguments)
        alone = torch.cat([causal(*(x[i : i + 1] for x in arguments)) for i in range(B)])
    assert relative(alone, whole) <= 1e-6


def test_gradient_checkpointing_gives_the_same_gradients(prior, monkeypatch):
    causal = CausalPrior(prior)
    arguments = inputs()
    plain = backward(prior, causal(*arguments))
    calls = []
    block = prior.transformer_blocks[0]
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    causal.enable_gradient_checkpointing()
    again = backward(prior, causal(*arguments))
    assert len(calls) == 2  # once forward, once more for the backward
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_every_trainable_parameter_gets_a_gradient(prior):
    causal = CausalPrior(prior)
    grads = backward(causal, causal(*inputs()))
    trainable = {name for name, p in causal.named_parameters() if p.requires_grad}
    assert set(grads) == trainable
    frozen = {name for name, p in causal.named_parameters()} - trainable
    assert frozen == {"prior.clip_mean", "prior.clip_std"}


def test_weights_config_and_stock_forward_are_left_as_they_were(prior, tmp_path):
    before = copy.deepcopy(prior.state_dict())
    arguments = inputs()
    with torch.no_grad():
        expected = stock(prior, *arguments)
        causal = CausalPrior(prior)
        # previews run the stock forward on the wrapped module
        assert relative(stock(causal.prior, *arguments), expected) <= 1e-6
    causal.prior.save_pretrained(tmp_path)
    loaded = PriorTransformer.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == before.keys()
    assert all(torch.equal(loaded.state_dict()[name], before[name]) for name in before)
    assert loaded.config.num_embeddings == NUM_EMBEDDINGS
    with torch.no_grad():
        assert torch.equal(stock(loaded, *arguments), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_under_autocast_near_the_float32_result(prior, dtype):
    causal = CausalPrior(prior)
    arguments = inputs()
    with torch.no_grad():
        expected = causal(*arguments)
    with torch.autocast("cpu", dtype=dtype):
        out = causal(*arguments)
    assert out.dtype == dtype
    assert relative(out.float(), expected) < 10 * torch.finfo(dtype).eps
    grads = backward(prior, out.float())
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())


def test_half_precision_text_from_the_cache_is_raised_to_the_models_precision(prior):
    causal = CausalPrior(prior)
    noisy, timesteps, prompt, hidden, n_tokens = inputs()
    with torch.no_grad():
        halves = causal(noisy, timesteps, prompt.half(), hidden.half(), n_tokens)
        raised = causal(noisy, timesteps, prompt.half().float(), hidden.half().float(), n_tokens)
    assert torch.equal(halves, raised)


def test_forward_traces_to_one_graph_without_reading_values(prior):
    causal = CausalPrior(prior)
    arguments = inputs()
    exported = torch.compile(causal, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(exported(*arguments), causal(*arguments))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"added_emb_type": None, "additional_embeddings": 3}, "added_emb_type is None"),
        ({"encoder_hid_proj_type": None}, "encoder_hid_proj_type is None"),
        ({"norm_in_type": "layer"}, "norm_in_type is 'layer'"),
        ({"embedding_proj_norm_type": "layer"}, "embedding_proj_norm_type is 'layer'"),
        ({"additional_embeddings": 5}, "additional_embeddings is 5"),
        ({"dropout": 0.1}, r"dropout is 0\.1"),
        ({"clip_embed_dim": 32}, "width 24 and predicts width 32"),
    ],
)
def test_other_kinds_of_prior_are_refused_by_name(config, found):
    with pytest.raises(UserError, match=f"^--prior-model: .*{found}"):
        CausalPrior(make_prior(**config))


def test_prior_whose_clip_std_was_never_set_is_refused(prior):
    nn.init.zeros_(prior.clip_std)
    with pytest.raises(UserError, match=r"^--prior-model: clip_std holds zeros"):
        CausalPrior(prior)
