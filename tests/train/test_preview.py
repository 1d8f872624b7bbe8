"""Pictures of prompts: whose they are, what may draw them, how they are laid out."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from PIL import Image, ImageFont

from tests.train import runs
from tests.train.prompted import OTHER, PROMPTS, with_prompts
from train.draws import Purpose
from train.picture_grid import MARGIN, MIN_TEXT_WIDTH, _font_file, picture_grid, wrapped
from train.preview import Previews, encode_prompts
from train.sampler import make_generators

SMALL = ("--resolution", "64")


@pytest.fixture(scope="module")
def prompted(cache, pictures, pocket):
    return with_prompts(cache, pictures, pocket, "preview")


def previews(cache, output, *flags, cpu=True):
    task, reader, options = runs.prepared("prior", cache, output, *SMALL, *flags)
    return task, Previews(task, task.preview, reader, options, Accelerator(cpu=cpu))


@pytest.fixture
def quick(monkeypatch):
    """Fewer steps of the decoder, where it does not matter what it draws."""
    monkeypatch.setattr("train.preview.NUM_STEPS", 3)


def pixels(image):
    return np.asarray(image).astype(int)


def test_pictures_are_the_stock_pipelines_for_cached_prompts_and_others(prompted, pocket, tmp_path):
    flags = ("--num-validation-images", "2", "--seed", "3")
    chosen = (PROMPTS[1], OTHER)
    asked = [part for prompt in chosen for part in ("--validation-prompts", prompt)]
    task, drawn = previews(prompted, tmp_path / "out", *flags, *asked)
    task.module.train()
    found = drawn.draw(7, task.module)
    assert task.module.training
    assert list(found) == list(chosen)

    prior = KandinskyV22PriorPipeline.from_pretrained(pocket / "prior")
    decoder = KandinskyV22Pipeline.from_pretrained(pocket / "decoder")
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    for prompt, pictures in found.items():
        generators = make_generators(3, drawn.noise_numbers(prompt), Purpose.PREVIEW)
        made = prior(prompt, num_images_per_prompt=2, generator=generators)
        size = {"height": 64, "width": 64, "num_inference_steps": 25}
        wanted = decoder(**made, **size, generator=generators).images
        assert len(wanted) == len(pictures) == 2
        for ours, theirs in zip(pictures, wanted):
            # an untrained decoder blows rounding up; measured 0.001 levels of 255
            assert np.abs(pixels(ours) - pixels(theirs)).mean() < 0.02
        assert np.abs(pixels(pictures[0]) - pixels(pictures[1])).mean() > 1  # two noises
    with Image.open(tmp_path / "out" / "validation" / "step-000007.png") as grid:
        assert np.array_equal(pixels(grid), pixels(picture_grid(found)))


def test_pictures_follow_the_trained_weights_and_nothing_else_changes_them(prompted, quick, tmp_path):
    fixed = ("--learning-rate", "0", "--max-train-steps", "1", *SMALL, "--validation-prompts", PROMPTS[0])
    runs.train("prior", prompted, tmp_path / "fixed", *fixed)
    moving = (*fixed[2:], "--learning-rate", "1e-2", "--lr-warmup-steps", "0")
    runs.train("prior", prompted, tmp_path / "moving", *moving)
    drawn = {
        (name, step): (tmp_path / name / "validation" / f"step-{step:06d}.png").read_bytes()
        for name in ("fixed", "moving")
        for step in (0, 1)
    }
    assert drawn["fixed", 0] == drawn["fixed", 1] == drawn["moving", 0]
    assert drawn["moving", 1] != drawn["moving", 0]
    first, second = (runs.weights(tmp_path / name / "prior") for name in ("fixed", "moving"))
    assert not runs.same_tensors(first, second)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_pictures_are_drawn_in_the_runs_precision_without_a_word(precision, prompted, quick, tmp_path):
    flags = (
        "--mixed-precision",
        precision,
        "--validation-prompts",
        PROMPTS[0],
        "--validation-fraction",
        "0.3",
    )
    ended = runs.program("prior", *runs.arguments(prompted, tmp_path / "out", *flags, *SMALL))
    assert (ended.code, ended.lines) == (0, [])
    with Image.open(tmp_path / "out" / "validation" / "step-000003.png") as grid:
        assert len(np.unique(pixels(grid.crop((MARGIN + MIN_TEXT_WIDTH, 0, *grid.size))))) > 10
    cosines = runs.series(tmp_path / "out", "sampled_cosine_g4")
    assert list(cosines) == [0, 3]
    assert all(-1 < value < 1 for value in cosines.values())


def test_a_prompt_is_encoded_as_precompute_does(prompted, tmp_path):
    task, reader, _ = runs.prepared("prior", prompted, tmp_path / "out")
    cached = reader.prompts("text")
    for prompt, row in zip(PROMPTS, encode_prompts(PROMPTS, task.base, torch.device("cpu")), strict=True):
        for name, values in cached[prompt.strip()].items():
            if name in row:
                assert np.abs(row[name].numpy() - values).max() < 1e-5, name
                assert row[name].shape == values.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_neither_encoder_nor_decoder_stays_on_the_gpu(prompted, tmp_path):
    task, drawn = previews(prompted, tmp_path / "out", "--validation-prompts", OTHER, cpu=False)
    task.module.to("cuda")
    before = torch.cuda.memory_allocated()
    (first,), (second,) = (drawn.draw(step, task.module)[OTHER] for step in (0, 1))
    assert torch.cuda.memory_allocated() - before < 1 << 20
    assert np.abs(pixels(first) - pixels(second)).mean() < 0.02


ENCODERS = """
import gc, sys
import torch
from train import preview, prior, step as steps

preview.NUM_STEPS = 3  # whatever it draws
step = steps.Step.take

def watched(self, *arguments):
    alive = {type(o).__name__ for o in gc.get_objects() if issubclass(type(o), torch.nn.Module)}
    imported = [name for name in sys.modules if name.startswith("transformers.models.clip.modeling")]
    print("alive", sorted(name for name in alive if "CLIP" in name), "imported", bool(imported))
    step(self, *arguments)

steps.Step.take = watched
for command in sys.argv[1:]:
    sys.argv = ["train", *command.split("\\n")]
    try:
        prior.main()
    except SystemExit as end:
        assert end.code == 0, end.code
"""


def test_clip_is_loaded_for_a_prompt_that_is_not_cached_and_is_gone_when_training_starts(prompted, tmp_path):
    flags = ("--max-train-steps", "1", *SMALL, "--validation-prompts")
    commands = [
        "\n".join(runs.arguments(prompted, tmp_path / str(number), *flags, prompt))
        for number, prompt in enumerate((PROMPTS[0], OTHER))
    ]
    done = runs.script(ENCODERS, *commands)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("alive")]
    assert said == ["alive [] imported False", "alive [] imported True"]
    for number in range(2):
        assert (tmp_path / str(number) / "validation" / "step-000001.png").is_file()


def test_all_cached_prompts_are_drawn_where_a_decoder_is_named(prompted, cache, pocket, tmp_path):
    decoder = ("--decoder-model", pocket / "decoder")
    task, _, _ = runs.prepared("prior", prompted, tmp_path / "out", *decoder)
    assert set(task.preview.texts) == {prompt.strip() for prompt in PROMPTS}
    assert runs.prepared("prior", prompted, tmp_path / "out")[0].preview is None
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "out", *decoder, "--dry-run"))
    assert ended.code == 0
    assert ended.lines == ["--decoder-model: draws nothing: no --validation-prompts, and none in the cache"]


def refused(cache, output, *flags):
    ended = runs.program("prior", *runs.arguments(cache, output, *flags))
    assert ended.code == 2, ended
    assert len(ended.lines) == 1, ended
    assert not output.exists()
    return ended.lines[0]


@pytest.fixture
def altered(pocket, tmp_path):
    """A copy of a repository with another config of one component."""

    def alter(kind, component, **config):
        folder = shutil.copytree(pocket / kind, tmp_path / "altered")
        (path,) = (folder / component).glob("*config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return alter


@pytest.mark.parametrize(
    ("component", "config", "said"),
    [
        ("unet", {"encoder_hid_dim": 32}, "takes image_embeds of width 32, but"),
        ("unet", {"in_channels": 9}, "takes 9 input channels, wanted 4: inpainting and"),
        ("scheduler", {"_class_name": "Nothing"}, "has the scheduler Nothing, wanted one that"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_before_training(
    component, config, said, prompted, altered, tmp_path
):
    folder = altered("decoder", component, **config)
    line = refused(prompted, tmp_path / "out", "--decoder-model", folder)
    assert line.startswith(f"--decoder-model: {folder} {said}")


def test_a_decoder_that_is_not_to_be_had_is_refused_before_training(prompted, pocket, tmp_path):
    named = ("--validation-prompts", "a dog", "--decoder-model")
    output = tmp_path / "out"
    assert refused(prompted, output, *named, "nowhere").startswith("--decoder-model: nowhere: no such folder")
    line = refused(prompted, output, *named, pocket / "prior")
    assert line.startswith(f"--decoder-model: {pocket / 'prior'} has no folder unet/")
    line = refused(prompted, output, *named, "nobody/nothing")
    assert line.startswith("--decoder-model: nobody/nothing: neither a folder nor to be had from the hub")


def test_a_prompt_that_nothing_can_encode_is_refused_before_training(prompted, pocket, tmp_path):
    base = shutil.copytree(pocket / "prior", tmp_path / "prior")
    index = json.loads((base / "model_index.json").read_text())
    del index["text_encoder"]
    (base / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(base / "text_encoder")
    line = refused(
        prompted, tmp_path / "out", "--prior-model", base, "--validation-prompts", PROMPTS[0], OTHER
    )
    assert line.startswith(f"--validation-prompts: {OTHER!r} is not in the cache, and cannot be encoded: ")
    assert f"{base} has no folder text_encoder/" in line
    assert line.endswith("add it to the cache with precompute --prompts FILE")


def test_a_picture_that_cannot_be_written_ends_the_run_with_one_line(prompted, quick, tmp_path):
    output = tmp_path / "out"
    flags = ("--validation-prompts", PROMPTS[0], *SMALL)
    runs.train("prior", prompted, output, *flags, "--max-train-steps", "1")
    shutil.rmtree(output / "validation")
    (output / "validation").write_text("in the way")
    ended = runs.program("prior", *runs.arguments(prompted, output, *flags, "--max-train-steps", "2"))
    assert ended.code == 1
    assert ended.lines[-1] == f"{output}/validation/step-000002.png: cannot be written: File exists"


def test_grid_has_a_row_for_each_prompt_and_the_prompt_beside_it():
    colours = {"a red apple": ["red", "maroon"], "небо " * 80: ["blue", "navy"]}
    pictures = {p: [Image.new("RGB", (64, 64), name) for name in row] for p, row in colours.items()}
    grid = picture_grid(pictures)
    left = MARGIN + MIN_TEXT_WIDTH + MARGIN
    assert grid.width == left + 2 * (64 + MARGIN)
    assert grid.height > 3 * MARGIN + 2 * 64  # the second row is as high as its long prompt
    for row, top in zip(pictures.values(), (MARGIN, MARGIN + 64 + MARGIN)):
        for column, picture in enumerate(row):
            x = left + column * (64 + MARGIN)
            assert np.array_equal(pixels(grid.crop((x, top, x + 64, top + 64))), pixels(picture))
        text = pixels(grid.crop((MARGIN, top, left - MARGIN, top + 64)).convert("L"))
        assert (text < 100).sum() > 50
        outside = pixels(grid.crop((left - MARGIN, 0, left, grid.height)).convert("L"))
        assert (outside == 255).all()


@pytest.mark.parametrize(
    "text", ["a few words that fit in no single line", "x" * 90, "雪" * 90, "", " a  b "]
)
def test_lines_are_as_wide_as_they_may_be_and_lose_no_letter(text):
    font = ImageFont.truetype(_font_file(), size=12)
    lines = wrapped(text, font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert len(lines) <= 1 + 2 * font.getlength(text) / 100
