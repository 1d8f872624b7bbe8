"""Several latents columns, mirrored views and aspect-ratio buckets, against the models called by hand."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22PriorPipeline, VQModel
from PIL import Image

from data_tools import images as decoding
from data_tools.cache.reader import CacheReader
from data_tools.errors import UserError
from tests.precompute.command import assert_same_records, inspect, precompute, records, rows_of
from tests.precompute.pictures import COUNT, picture
from tests.precompute.test_encoders import far

FLAGS = ("--dtype", "fp32", "--alpha", "drop")


def images(count: int = COUNT) -> list[Image.Image]:
    """The usable pictures as the scripts' `convert("RGB")` makes them, in the order of their keys."""
    kept = [index for index in range(count) if index != 7]
    return [Image.open(io.BytesIO(picture(index)[1])).convert("RGB") for index in kept]


def squared(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    image = image.crop((left, top, left + short, top + short))
    return image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=1)


@torch.no_grad()
def latents_of(movq: VQModel, image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1)
    return movq.encode(pixels.permute(2, 0, 1)[None]).latents[0]


@pytest.fixture(scope="module")
def movq(pocket: Path) -> VQModel:
    return VQModel.from_pretrained(pocket / "decoder", subfolder="movq")


def test_a_mirrored_view_is_that_of_the_mirrored_pixels(
    pictures: Path, pocket: Path, tmp_path: Path, movq: VQModel
) -> None:
    precompute(pictures, tmp_path / "cache", pocket, *FLAGS, "--columns", "image,latents@64", "--flip")
    reader = CacheReader(tmp_path / "cache", ["image", "latents@64"])
    assert set(reader.rows("image")[1]) == set(reader.rows("latents@64")[1]) == {2}
    latents = rows_of(reader, "latents@64")["latents"].reshape(COUNT - 1, 2, 4, 8, 8)
    embeds = rows_of(reader, "image")["image_embeds"].reshape(COUNT - 1, 2, -1)
    reader.close()
    prior = KandinskyV22PriorPipeline.from_pretrained(pocket / "prior")
    for number, image in enumerate(images()):
        square = squared(image, 64)
        assert far(latents[number, 0], latents_of(movq, square)) < 1e-5
        assert far(latents[number, 1], latents_of(movq, square.transpose(Image.FLIP_LEFT_RIGHT))) < 1e-5
        pixels = prior.image_processor([image], return_tensors="pt").pixel_values
        with torch.no_grad():
            both = prior.image_encoder(torch.cat([pixels, pixels.flip(3)])).image_embeds
        assert far(embeds[number], both) < 1e-5
    assert not np.allclose(latents[:, 0], latents[:, 1], atol=1e-2)


def test_the_plain_view_is_the_one_that_there_is_without_flip(
    pictures: Path, pocket: Path, tmp_path: Path, cache: Path
) -> None:
    precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32", "--flip")
    flipped, plain = records(tmp_path / "cache"), records(cache)
    for name in ("image: image_embeds", "latents@64: latents"):
        assert np.array_equal(flipped[name][::2], plain[name])
    assert np.array_equal(flipped["text: prompt_embeds"], plain["text: prompt_embeds"])
    assert np.array_equal(flipped["image: null image_embeds"], plain["image: null image_embeds"])


def test_flip_is_part_of_the_identity_of_picture_columns_alone(
    pictures: Path, pocket: Path, cache: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(cache, tmp_path / "cache")
    with pytest.raises(UserError, match=r"column image was made otherwise \(views null → .*mirrored"):
        precompute(pictures, copy, pocket, "--dtype", "fp32", "--flip")
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--flip", "--columns", "text")
    assert "nothing to do" in printed


def test_several_resolutions_make_a_column_each_from_one_decoding(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    calls, decode = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args, **more: calls.append(1) or decode(*args, **more))
    sides = ("--resolution", "64", "--resolution", "128")
    precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32", *sides)
    assert len(calls) == COUNT
    found = inspect(tmp_path / "cache")
    assert set(found["columns"]) == {"image", "text", "latents@64", "latents@128"}
    assert_same_records(records(tmp_path / "cache"), records(cache))


def test_latents_of_buckets_are_movqs_own(
    pictures: Path, pocket: Path, tmp_path: Path, movq: VQModel
) -> None:
    column = "latents@256"
    flags = (*FLAGS, "--columns", column, "--buckets", "--flip")
    precompute(pictures, tmp_path / "cache", pocket, *flags)
    reader = CacheReader(tmp_path / "cache", [column])
    shapes = set()
    for number, image in enumerate(images()):
        width, height = (256, 256) if image.width == image.height else (320, 192)
        if image.height > image.width:
            width, height = height, width
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        image = image.crop((left, top, left + width * scale, top + height * scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1)
        (found,) = reader.gather(column, np.array([2 * number]))["latents"]
        (mirrored,) = reader.gather(column, np.array([2 * number + 1]))["latents"]
        assert far(found, latents_of(movq, image)) < 5e-5  # of values up to 8
        assert far(mirrored, latents_of(movq, image.transpose(Image.FLIP_LEFT_RIGHT))) < 5e-5
        shapes.add(found.shape)
    reader.close()
    assert shapes == {(4, 32, 32), (4, 24, 40), (4, 40, 24)}
    counted = inspect(tmp_path / "cache")["columns"][column]["shapes"]["latents"]
    assert counted == {"(4, 24, 40)": 11, "(4, 32, 32)": 6, "(4, 40, 24)": 6}


def test_a_cache_of_buckets_is_not_one_of_squares(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    precompute(pictures, tmp_path / "cache", pocket, "--columns", "latents@256")
    with pytest.raises(UserError, match="crop center square → center bucket"):
        precompute(pictures, tmp_path / "cache", pocket, "--columns", "latents@256", "--buckets")
