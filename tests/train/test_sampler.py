"""Embeddings are sampled as the stock pipeline samples them, from cached texts."""

import json
import shutil

import pytest
import torch
from diffusers import KandinskyV22PriorPipeline

from tests.train import runs
from tests.train.prompted import PROMPTS, with_prompts
from train.batches import null_conditions, tensors
from train.draws import Purpose
from train.preview import _stacked
from train.sampler import make_generators

CPU = torch.device("cpu")
BOUND = 1e-5
"Of single values of embeddings, which are about 1."


@pytest.fixture(scope="module")
def prompted(cache, pictures, pocket):
    return with_prompts(cache, pictures, pocket, "sampler")


@pytest.fixture(scope="module")
def case(prompted, tmp_path_factory):
    """(task, texts of the cached prompts, null text)"""
    task, reader, _ = runs.prepared("prior", prompted, tmp_path_factory.mktemp("out") / "out")
    cached = reader.prompts("text")
    texts = _stacked([tensors(reader, "text", cached[prompt.strip()]) for prompt in PROMPTS])
    task.module.eval()
    return task, texts, null_conditions(reader, "text", CPU)


def generators(*numbers):
    return make_generators(7, numbers or (0, 1, 2), Purpose.PREVIEW)


@pytest.fixture(scope="module")
def sampled(case):
    """With guidance 1 and 4, (3, 2, D)."""
    task, texts, null = case
    return task.make_sampler(CPU)(task.module, texts, null, generators(0, 0, 1, 1, 2, 2), (1.0, 4.0))


def test_embeddings_are_the_stock_pipelines(sampled, pocket):
    pipeline = KandinskyV22PriorPipeline.from_pretrained(pocket / "prior")
    pipeline.set_progress_bar_config(disable=True)
    for embeds, scale in zip(sampled.unbind(1), (1.0, 4.0), strict=True):
        wanted = pipeline([p.strip() for p in PROMPTS], generator=generators(), guidance_scale=scale)
        assert (embeds - wanted.image_embeds).abs().max() < BOUND
    assert (sampled[:, 0] - sampled[:, 1]).abs().max() > 0.1  # guidance does something
    assert 0.1 < sampled.std() < 10


def test_a_sample_is_the_same_in_any_batch_and_with_any_other_scale(case, sampled):
    task, texts, null = case
    alone = {name: values[1:2] for name, values in texts.items()}
    found = task.make_sampler(CPU)(task.module, alone, null, generators(1), (4.0,))
    assert (found[0, 0] - sampled[1, 1]).abs().max() < BOUND


def test_noise_is_of_the_seed_the_number_and_the_purpose():
    def first(seed, number, purpose):
        (made,) = make_generators(seed, [number], purpose)
        return torch.randn(1, generator=made).item()

    found = [first(seed, n, p) for seed in (1, 2) for n in (0, 2**32 - 1) for p in Purpose]
    assert len(set(found)) == len(found)
    assert first(1, 0, Purpose.PREVIEW) == first(1, 0, Purpose.PREVIEW)


@pytest.mark.parametrize(
    ("key", "value"), [("variance_type", "learned_range"), ("_class_name", "DDPMScheduler")]
)
def test_a_scheduler_that_the_pipeline_cannot_sample_with_is_refused(key, value, cache, pocket, tmp_path):
    base = shutil.copytree(pocket / "prior", tmp_path / "prior")
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    command_line = runs.arguments(cache, tmp_path / "out", "--prior-model", base, "--dry-run")
    ended = runs.program("prior", *command_line)
    assert ended.code == 2
    assert ended.lines == [
        f"--prior-model: {base}/scheduler: {key} is {value!r}, wanted "
        f"{'fixed_small_log' if key == 'variance_type' else 'UnCLIPScheduler'} to sample embeddings; "
        "--sampled-validation 0 trains without, and without validation prompts"
    ]
    assert runs.program("prior", *command_line, "--sampled-validation", "0").code == 0
