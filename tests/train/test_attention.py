"""The kernels of --attention compute the same; what is missing is said at once."""

import importlib.util

import pytest
import torch

from tests.train import runs
from train.attention import KERNELS, sdpa, xformers

B, HEADS, L, WIDTH = 2, 3, 11, 16


def inputs(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, HEADS, L, WIDTH, generator=generator).to(device, dtype) for _ in range(3)]


def mask(device="cpu", dtype=torch.float32):
    """One for all heads, causal, the third token a pad, rows that begin at multiples of 16 bytes."""
    seen = torch.ones(L, L, dtype=torch.bool).tril()
    seen[3:, 2] = False
    room = torch.zeros(B, 1, L, 16, dtype=dtype, device=device)[..., :L]
    return room.masked_fill_(~seen.to(device), -torch.inf)


def test_no_mask_means_causal():
    query, key, value = inputs()
    causal = torch.zeros(L, L).masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(sdpa(query, key, value, None), sdpa(query, key, value, causal))


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_xformers_computes_what_torch_does(masked):
    pytest.importorskip("xformers")
    leaves = [[t.requires_grad_() for t in inputs("cuda", torch.float16)] for _ in range(2)]
    bias = mask("cuda", torch.float16) if masked else None
    outs = [kernel(*own, bias) for kernel, own in zip((sdpa, xformers), leaves)]
    torch.testing.assert_close(*outs, rtol=2e-3, atol=2e-3)
    for out in outs:
        out.square().sum().backward()
    for ours, theirs in zip(*leaves):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=2e-2)


def test_every_choice_has_a_kernel():
    choices = next(p for p in runs.COMMANDS["prior"].params if p.name == "attention").type.choices
    assert set(choices) == set(KERNELS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    "flag", [("--attention", "xformers"), ("--enable_xformers_memory_efficient_attention",)]
)
@pytest.mark.parametrize("kind", runs.KINDS)
def test_xformers_without_its_library_or_a_gpu_is_refused(kind, flag, cache, tmp_path):
    ended = runs.program(kind, *runs.arguments(cache, tmp_path / "out", *flag))
    wanted = "--attention: xformers needs the library xformers: pip install 'kandinsky-cache[xformers]'"
    if importlib.util.find_spec("xformers"):
        wanted = "--attention: xformers needs a GPU, and torch sees none; give sdpa"
    assert (ended.code, ended.lines) == (2, [wanted])
    assert not (tmp_path / "out").exists()
