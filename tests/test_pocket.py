"""The pocket Kandinsky: it loads and draws like the published one, and tells pictures and captions apart."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from PIL import Image
from transformers import CLIPTokenizer

from tests import pocket
from tests.pocket.__main__ import main
from tests.pocket.captions import read_captions


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread and wait long for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket")
    pocket.build_pocket(path)
    return path


@pytest.fixture(scope="module")
def prior(folder: Path) -> KandinskyV22PriorPipeline:
    pipeline = KandinskyV22PriorPipeline.from_pretrained(folder / "prior")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder / "prior" / "tokenizer")


def mean_cosine(rows: torch.Tensor) -> float:
    """Mean cosine between different rows of (N, D)."""
    unit = F.normalize(rows, dim=-1)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    return (unit @ unit.T)[others].mean().item()


def weights(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_folders_are_laid_out_like_the_published_repositories(folder: Path) -> None:
    assert {p.name for p in (folder / "prior").iterdir() if p.is_dir()} == {
        "prior",
        "image_encoder",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "image_processor",
    }
    assert {p.name for p in (folder / "decoder").iterdir() if p.is_dir()} == {"unet", "movq", "scheduler"}
    assert {p.name for p in (folder / "prior" / "tokenizer").iterdir()} == {
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }
    assert (folder / "prior" / "image_encoder" / "model.safetensors").exists()
    assert (folder / "decoder" / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_both_pipelines_load_and_draw_a_picture(folder: Path, prior: KandinskyV22PriorPipeline) -> None:
    decoder = KandinskyV22Pipeline.from_pretrained(folder / "decoder")
    decoder.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    embeds = prior("красное яблоко", num_inference_steps=3, generator=generator)
    assert embeds.image_embeds.shape == (1, pocket.EMBED_DIM)
    drawn = decoder(
        **embeds, height=64, width=128, num_inference_steps=3, output_type="pt", generator=generator
    )
    assert drawn.images.shape == (1, 3, 64, 128)
    assert torch.isfinite(drawn.images).all()
    assert drawn.images.std() > 0.05


def test_other_prompts_make_the_prior_predict_other_embeddings(prior: KandinskyV22PriorPipeline) -> None:
    first, second = (
        prior(text, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).image_embeds
        for text in ("a red apple", "a ship in a storm")
    )
    assert (first - second).abs().max() > 0.01


def test_building_again_changes_nothing_and_another_pocket_is_refused(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    pocket.build_pocket(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ValueError, match="choose another folder"):
        pocket.build_pocket(folder, seed=1)


def test_the_same_seed_builds_the_same_files(folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    pocket.build_pocket(tmp_path)
    assert weights(tmp_path) == weights(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_killed_build_is_finished_by_the_next(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    pocket.build_pocket(tmp_path)
    assert weights(tmp_path) == weights(folder)


def test_end_of_text_is_the_last_id_the_pad_and_the_unknown(
    tokenizer: CLIPTokenizer, prior: KandinskyV22PriorPipeline
) -> None:
    last = len(tokenizer) - 1
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.unk_token_id == last
    assert tokenizer.bos_token_id == last - 1
    assert tokenizer.model_max_length == 77
    config = prior.text_encoder.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (last - 1, last, last)
    assert config.vocab_size == len(tokenizer) == 1000


def test_texts_are_framed_padded_and_cut_at_77_tokens(tokenizer: CLIPTokenizer) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer("")["input_ids"] == [bos, eos]
    padded = tokenizer("a red apple", padding="max_length", max_length=77)
    valid = sum(padded["attention_mask"])
    assert padded["input_ids"][valid - 1 :] == [eos] * (78 - valid)
    assert padded["attention_mask"] == [1] * valid + [0] * (77 - valid)
    cut = tokenizer("a bicycle and " * 60, truncation=True)["input_ids"]
    assert len(cut) == 77
    assert cut[-1] == eos


@pytest.mark.parametrize("text", ["a red apple", "красное яблоко", "红苹果的图片", "ёжик", "鬱", "🍎 ÿ"])
def test_any_script_survives_the_tokenizer(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_common_words_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("a picture of the white background")["input_ids"]) < 12


def test_the_pooled_text_embedding_is_that_of_the_first_end_of_text(
    tokenizer: CLIPTokenizer, prior: KandinskyV22PriorPipeline
) -> None:
    short = tokenizer("a red apple", return_tensors="pt").input_ids
    long = tokenizer("a red apple", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        alone, padded = prior.text_encoder(short).text_embeds, prior.text_encoder(long).text_embeds
    assert torch.allclose(alone, padded, atol=1e-5)


def test_different_captions_get_different_embeddings(
    tokenizer: CLIPTokenizer, prior: KandinskyV22PriorPipeline
) -> None:
    ids = tokenizer(list(pocket.CAPTIONS), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = prior.text_encoder(ids).text_embeds
    assert mean_cosine(embeds) < 0.85
    assert 0.3 < embeds.std() < 3


def test_different_pictures_get_different_embeddings(prior: KandinskyV22PriorPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (12, 4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(colour).resize((160, 120)) for colour in colours]
    pixels = prior.image_processor(pictures, return_tensors="pt").pixel_values
    assert pixels.shape == (12, 3, pocket.IMAGE_SIZE, pocket.IMAGE_SIZE)
    with torch.no_grad():
        embeds = prior.image_encoder(pixels).image_embeds
    assert mean_cosine(embeds) < 0.95
    normalised = (embeds - prior.prior.clip_mean) / prior.prior.clip_std
    assert 0.2 < normalised.std() < 5


def test_the_fresh_prior_has_none_of_the_zeros_of_an_untrained_one() -> None:
    prior = pocket.pocket_prior()
    assert (prior.clip_std == 1).all()
    for name in ("clip_mean", "positional_embedding", "prd_embedding"):
        assert getattr(prior, name).std() > 0.01, name


def test_latents_are_an_eighth_of_the_picture_and_near_unit_variance() -> None:
    movq = pocket.pocket_movq()
    pictures = F.interpolate(torch.rand(4, 3, 4, 6, generator=torch.Generator().manual_seed(0)), (64, 96))
    with torch.no_grad():
        latents = movq.encode(pictures * 2 - 1).latents
    assert latents.shape == (4, 4, 8, 12)
    assert 0.3 < latents.std() < 3


def test_fresh_models_follow_their_seed() -> None:
    first, same, other = (pocket.pocket_unet(seed).conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A pocket made by the command, on the captions of a folder, and what the command printed."""
    path = tmp_path_factory.mktemp("commanded")
    rows = [{"file_name": "1.png", "text": ["зимородок", "kingfisher"]}, {"file_name": "2.png"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    result = CliRunner().invoke(main, [str(path / "pocket"), "--captions", str(path)])
    assert result.exit_code == 0, result.output
    return path, result.stdout


def test_the_command_prints_costs_near_the_published_ones(commanded: tuple[Path, str]) -> None:
    lines = [line.rsplit(maxsplit=2) for line in commanded[1].splitlines() if line.endswith(")")]
    rows = {line[0].split("  ")[0]: line[1:] for line in lines if line[1][0].isdigit()}
    assert rows.keys() == {"vision", "text", "prior", "movq encode", "unet"}
    for name, (measured, published) in rows.items():
        assert float(measured) == pytest.approx(float(published.strip("()")), rel=0.2), name


def test_the_command_trains_the_tokenizer_on_the_captions_of_a_folder(commanded: tuple[Path, str]) -> None:
    path = commanded[0]
    assert read_captions(path) == read_captions(path / "metadata.jsonl") == ["зимородок", "kingfisher"]
    tokenizer = CLIPTokenizer.from_pretrained(path / "pocket" / "prior" / "tokenizer")
    assert len(tokenizer("kingfisher зимородок")["input_ids"]) == 4
    assert tokenizer.eos_token_id == len(tokenizer) - 1 < 999


def test_a_folder_without_captions_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png"}\n')
    result = CliRunner().invoke(main, [str(tmp_path / "pocket"), "--captions", str(tmp_path)])
    assert result.exit_code == 1
    assert "no caption in it" in result.stderr
    assert not (tmp_path / "pocket").exists()
