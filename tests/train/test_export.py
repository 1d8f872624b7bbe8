"""The output folder is a pipeline that stock diffusers loads and draws with."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, KandinskyV22Pipeline, KandinskyV22PriorPipeline

from tests.train import runs

PROMPT = "a red apple"


def files(folder):
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def image_embeds(finished):
    """What the trained prior makes of a prompt: positive and negative embedding, (1, D) each."""
    pipeline = KandinskyV22PriorPipeline.from_pretrained(finished["prior"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).to_tuple()


def test_trained_prior_draws_in_the_stock_pipeline(image_embeds):
    for embeds in image_embeds:
        assert embeds.shape == (1, 64)
        assert embeds.isfinite().all()


def test_trained_decoder_draws_in_the_stock_pipeline(finished, image_embeds):
    pipeline = KandinskyV22Pipeline.from_pretrained(finished["decoder"])
    pipeline.set_progress_bar_config(disable=True)
    positive, negative = image_embeds
    drawn = pipeline(
        image_embeds=positive,
        negative_image_embeds=negative,
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()
    assert drawn.std() > 0.01


def test_decoder_folder_alone_goes_from_text_to_picture(finished):
    pipeline = AutoPipelineForText2Image.from_pretrained(finished["decoder"])
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        PROMPT,
        height=64,
        width=64,
        num_inference_steps=2,
        prior_num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("kind", runs.KINDS)
def test_trained_weights_are_in_the_pipeline_and_the_rest_is_the_base(kind, finished, pocket):
    output, base, name = finished[kind], pocket / kind, runs.TRAINED[kind]
    found = runs.weights(output / name)
    assert runs.same_tensors(found, runs.weights(output / "checkpoint-6" / name))
    assert not runs.same_tensors(found, runs.weights(base / name))
    exported, original = files(output), files(base)
    others = {path for path in original if not path.startswith(f"{name}/")}
    assert {path for path in others if exported.get(path) != original[path]} == set()
    config, wanted = (json.loads(tree[f"{name}/config.json"]) for tree in (exported, original))
    changed = {key for key in wanted if config.get(key) != wanted[key]}
    assert changed <= {"_name_or_path", "_diffusers_version"}


@pytest.mark.parametrize("kind", runs.KINDS)
def test_base_repository_is_left_as_it_was(kind, cache, pocket, tmp_path):
    before = files(pocket)
    output = runs.train(kind, cache, tmp_path / "out", "--max-train-steps", "1")
    for path in output.rglob("*.json"):  # a link instead of a copy would be written through
        path.write_text("{}")
    assert files(pocket) == before


@pytest.mark.parametrize("kind", runs.KINDS)
def test_training_goes_on_from_an_exported_folder(kind, finished, cache, tmp_path):
    flag = f"--{kind}-model"
    output = runs.train(kind, cache, tmp_path / "out", flag, finished[kind], "--max-train-steps", "1")
    name = runs.TRAINED[kind]
    start, end = runs.weights(finished[kind] / name), runs.weights(output / name)
    moved = max(float((end[key] - start[key]).abs().max()) for key in start)
    assert 0 < moved <= 1.01e-4  # one step of Adam at the default rate
    pipelines = {"prior": KandinskyV22PriorPipeline, "decoder": KandinskyV22Pipeline}
    assert pipelines[kind].from_pretrained(output)


def test_prior_named_for_the_decoder_is_the_one_it_draws_with(cache, finished, pocket, tmp_path):
    flags = ("--max-train-steps", "1", "--prior-model", finished["prior"])
    output = runs.train("decoder", cache, tmp_path / "out", *flags)
    pipeline = AutoPipelineForText2Image.from_pretrained(output)
    found = dict(pipeline.prior_prior.state_dict())
    assert runs.same_tensors(found, runs.weights(finished["prior"] / "prior"))
    assert not runs.same_tensors(found, runs.weights(pocket / "prior" / "prior"))
