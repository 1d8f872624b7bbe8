"""Squares and buckets: geometry, and the pixels that come out."""

import math

import numpy as np
import pytest
import transformers
from PIL import Image

from data_tools.crops import LEVELS, STEP, bucket_sizes, cover, nearest, short_side
from data_tools.sources import Unusable


def test_levels_are_the_scripts_arithmetic() -> None:
    assert np.array_equal(LEVELS, np.arange(256, dtype=np.uint8).astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize("resolution", [64, 256, 512, 768, 1024])
def test_buckets_have_the_squares_area_and_at_most_two_to_one(resolution: int) -> None:
    sizes = bucket_sizes(resolution)
    assert (resolution, resolution) in sizes
    assert len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert not width % STEP
        assert not height % STEP
        assert max(width, height) <= 2 * min(width, height)
        assert width * height <= resolution**2 < max(width, height) * (min(width, height) + STEP)
        assert (height, width) in sizes
    if resolution == 768:
        assert sizes[:3] == ((576, 960), (576, 1024), (640, 896))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((500, 500), (768, 768)),
        ((4000, 3000), (896, 640)),
        ((3000, 4000), (640, 896)),
        ((1920, 1080), (1024, 576)),
        ((9000, 100), (1024, 576)),
        ((1, 800), (576, 1024)),
    ],
)
def test_a_picture_goes_to_the_bucket_of_the_nearest_aspect_ratio(size, wanted) -> None:
    sizes = bucket_sizes(768)
    assert nearest(size, sizes) == wanted
    aspect = math.log(size[0] / size[1])
    best = min(abs(math.log(w / h) - aspect) for w, h in sizes)
    assert abs(math.log(wanted[0] / wanted[1]) - aspect) == best


def test_a_bucket_shows_the_centre_and_covers_it_whole() -> None:
    """Red at the left and right of a wide picture is cut away by a square, kept by a wide bucket."""
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.array_equal(np.unique(cover(image, (64, 64)).reshape(-1, 3), axis=0), [[0, 0, 255]])
    wide = cover(image, (128, 64))
    assert wide.shape == (64, 128, 3)
    assert wide.dtype == np.uint8
    assert [tuple(wide[32, x]) for x in (0, 64, 127)] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_a_picture_of_the_buckets_shape_is_not_cropped_at_all() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    assert np.array_equal(cover(Image.fromarray(values), (128, 64)), values)


@pytest.mark.parametrize("size", [(64, 64), (100, 61), (61, 100), (33, 200), (1, 1), (500, 131)])
@pytest.mark.parametrize("resolution", [64, 96])
def test_square_is_the_reference_recipe(size: tuple[int, int], resolution: int) -> None:
    """diffusers' train_text_to_image_decoder.py: center_crop, resize, / 127.5 - 1 (reference facts §1.5)."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)

    new_size = min(width, height)
    box = (
        (width - new_size) / 2,
        (height - new_size) / 2,
        (width + new_size) / 2,
        (height + new_size) / 2,
    )
    cropped = image.crop(box).resize((resolution, resolution), resample=Image.BICUBIC, reducing_gap=1)
    expected = np.array(cropped.convert("RGB")).astype(np.float32) / 127.5 - 1

    found = LEVELS[cover(image, (resolution, resolution))]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (100, 61), (61, 100), (33, 200), (1, 1), (500, 131), (224, 999)])
@pytest.mark.parametrize(("side", "crop"), [(64, 64), (112, 112), (97, 64), (65, 32)])
def test_clips_crop_is_its_processors(size: tuple[int, int], side: int, crop: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind(size={"shortest_edge": side}, crop_size=crop, do_rescale=False, do_normalize=False)
    wanted = processor(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    assert np.array_equal(short_side(image, side, crop), wanted)


def test_a_picture_too_thin_for_clip_is_unusable() -> None:
    with pytest.raises(Unusable, match="1x60000 px: too thin; at 112 px a side it has over 178000000 pixels"):
        short_side(Image.new("RGB", (1, 60_000)), 112, 112)
    assert short_side(Image.new("RGB", (1, 9_000)), 32, 32).shape == (32, 32, 3)
