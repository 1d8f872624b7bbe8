"""What is stored is what the frozen models say when they are called directly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22PriorPipeline, VQModel
from PIL import Image

from precompute.encoders import ImageEncoder, LatentsEncoder, TextEncoder
from precompute.options import EncoderOptions
from tests.online import movq_pixels
from tests.pocket import CAPTIONS
from tests.precompute.pictures import LONG, noise


def options(dtype: str = "float32", alpha: str = "white", icc: bool = False) -> EncoderOptions:
    return EncoderOptions("cpu", "float32", dtype, alpha, icc, {"hub": "a/b"}, {"hub": "a/c"})


@pytest.fixture(scope="module")
def pipeline(pocket: Path) -> KandinskyV22PriorPipeline:
    return KandinskyV22PriorPipeline.from_pretrained(pocket / "prior")


@pytest.fixture(scope="module")
def text(pocket: Path) -> TextEncoder:
    encoder = TextEncoder(pocket / "prior", options())
    encoder.load()
    return encoder


@pytest.fixture(scope="module")
def image(pocket: Path) -> ImageEncoder:
    encoder = ImageEncoder(pocket / "prior", options())
    encoder.load()
    return encoder


def far(found: np.ndarray, wanted: torch.Tensor) -> float:
    """Relative distance."""
    difference = torch.from_numpy(found).double() - wanted.double()
    return (difference.norm() / wanted.double().norm()).item()


@torch.no_grad()
def test_a_caption_at_its_own_length_is_what_it_is_among_77_tokens(
    text: TextEncoder, pipeline: KandinskyV22PriorPipeline
) -> None:
    captions = [*CAPTIONS, LONG, "", "x"]
    padded = pipeline.tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    reference = pipeline.text_encoder(padded.input_ids)  # no mask, as the scripts call it
    lengths = padded.attention_mask.sum(dim=1).tolist()
    assert len(set(lengths)) > 5
    for number, ids in enumerate(text.tokenize(captions)):
        (row,) = text.start([ids])()
        assert len(ids) == lengths[number]
        assert far(row["text_encoder_hidden_states"], reference.last_hidden_state[number, : len(ids)]) < 1e-5
        assert far(row["prompt_embeds"], reference.text_embeds[number]) < 1e-5


def test_overlong_captions_are_cut_as_the_tokenizer_cuts_them(text: TextEncoder) -> None:
    (ids,) = text.tokenize([LONG])
    assert len(ids) == text.max_length == 77
    assert ids[-1] == text.tokenizer.eos_token_id
    assert text.truncates(LONG)
    assert not text.truncates("a red apple")
    exact = text.tokenizer.decode(ids[1:-1])  # 75 tokens fill it without being cut
    assert len(text.tokenize([exact])[0]) <= 77


@torch.no_grad()
def test_image_embeddings_are_the_model_on_the_processors_pixels(
    image: ImageEncoder, pipeline: KandinskyV22PriorPipeline
) -> None:
    pictures = [noise(seed, size) for seed, size in enumerate([(96, 96), (200, 90), (64, 150)])]
    pixels = pipeline.image_processor(pictures, return_tensors="pt").pixel_values
    prepared = [image.prepare(picture) for picture in pictures]
    assert torch.equal(image.pixel_values(prepared), pixels)
    reference = pipeline.image_encoder(pixels).image_embeds
    rows = image.start(prepared)()
    assert far(np.stack([row["image_embeds"] for row in rows]), reference) < 1e-6
    assert not np.allclose(np.linalg.norm(rows[0]["image_embeds"]), 1, atol=0.1), "not normalised"


@torch.no_grad()
@pytest.mark.parametrize("resolution", [64, 128])
def test_latents_are_movqs_own_neither_quantised_nor_scaled(pocket: Path, resolution: int) -> None:
    encoder = LatentsEncoder(pocket / "decoder", options(), resolution)
    encoder.load()
    movq = VQModel.from_pretrained(pocket / "decoder", subfolder="movq")
    pictures = [noise(seed, (200, 90)) for seed in range(3)]
    pixels = torch.stack([movq_pixels(picture, resolution) for picture in pictures])
    reference = movq.encode(pixels).latents
    prepared = [encoder.prepare(picture) for picture in pictures]
    assert torch.equal(encoder.pixel_values(prepared), pixels)
    rows = encoder.start(prepared)()
    assert rows[0]["latents"].shape == encoder.column.fields[0].shape == (4, resolution // 8, resolution // 8)
    assert far(np.stack([row["latents"] for row in rows]), reference) < 1e-5


@torch.no_grad()
def test_null_conditions_are_those_of_the_pipelines(
    text: TextEncoder, image: ImageEncoder, pipeline: KandinskyV22PriorPipeline
) -> None:
    zero = pipeline.get_zero_embed(1)[0]
    assert far(image.null()["image_embeds"], zero) < 1e-6
    empty = text.start(text.tokenize([""]))()[0]
    null = text.null()
    assert all(np.array_equal(null[name], empty[name]) for name in empty)
    assert len(null["text_encoder_hidden_states"]) == 2
    ids = pipeline.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert far(null["prompt_embeds"], pipeline.text_encoder(ids).text_embeds[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtypes_are_roundings_of_the_same_values(
    pocket: Path, image: ImageEncoder, dtype: str
) -> None:
    narrow = ImageEncoder(pocket / "prior", options(dtype))
    narrow.load()
    pixels = [image.prepare(noise(0, (96, 96)))]
    exact = torch.from_numpy(image.start(pixels)()[0]["image_embeds"])
    stored = narrow.start(pixels)()[0]["image_embeds"]
    assert stored.dtype == {"float16": np.float16, "bfloat16": np.uint16}[dtype]
    torch_dtype = getattr(torch, dtype)
    assert torch.equal(torch.from_numpy(stored).view(torch_dtype), exact.to(torch_dtype))


def test_identities_tell_apart_all_that_changes_the_values(pocket: Path) -> None:
    columns = [
        LatentsEncoder(pocket / "decoder", options(), 64).column,
        LatentsEncoder(pocket / "decoder", options(), 128).column,
        LatentsEncoder(pocket / "decoder", options("float16"), 64).column,
        LatentsEncoder(pocket / "decoder", options(alpha="drop"), 64).column,
        LatentsEncoder(pocket / "decoder", options(icc=True), 64).column,
        ImageEncoder(pocket / "prior", options()).column,
        ImageEncoder(pocket / "prior", options(icc=True)).column,
        TextEncoder(pocket / "prior", options()).column,
    ]
    identities = [repr(sorted(column.identity.items(), key=str)) for column in columns]
    assert len(set(identities)) == len(columns)
    assert LatentsEncoder(pocket / "decoder", options(), 64).column == columns[0]
    plain, converted = (TextEncoder(pocket / "prior", options(icc=icc)).column for icc in (False, True))
    assert plain == converted
    assert not any(str(pocket) in identity for identity in identities)


def test_pictures_of_every_shape_reach_the_encoders(image: ImageEncoder) -> None:
    for size in ((1, 1), (3, 400), (400, 3)):
        assert image.prepare(Image.new("RGB", size, "red")).shape == (112, 112, 3)
