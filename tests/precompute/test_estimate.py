"""`--dry-run`: what a run would cost. FLOPs against counts by hand, and against the published models."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data_tools.cache.report import human_bytes
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.estimate import forward_flops, text_flops
from precompute.options import EncoderOptions
from tests.pocket.models import EMBED_DIM, IMAGE_SIZE
from tests.precompute.command import precompute
from tests.precompute.pictures import write_pictures

# Kandinsky 2.2's own configs (reference facts §3.2); there are no weights.
VISION = {
    "hidden_size": 1664,
    "intermediate_size": 8192,
    "projection_dim": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
MOVQ = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16384,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 512],
    "norm_num_groups": 32,
    "norm_type": "spatial",
    "down_block_types": [*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3],
}


def options(*, buckets: bool = False) -> EncoderOptions:
    return EncoderOptions(
        device="cpu",
        precision="float32",
        dtype="float16",
        alpha="white",
        icc=False,
        flip=False,
        buckets=buckets,
        attention="sdpa",
        compile=False,
        prior_record={},
        decoder_record={},
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published configs, no weights."""
    root = tmp_path_factory.mktemp("published")
    for name, config in (("image_encoder", VISION), ("text_encoder", TEXT), ("movq", MOVQ)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def transformer_flops(tokens: int, width: int, inner: int, layers: int) -> int:
    """Of CLIP's blocks, by hand: four projections, two matrices of the MLP, scores and sums over values."""
    return layers * 2 * (tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width)


def test_pocket_clip_costs_what_the_matrices_say(pocket: Path) -> None:
    patches = (IMAGE_SIZE // 8) ** 2
    image = transformer_flops(patches + 1, 128, 512, 4) + 2 * (patches * 3 * 8 * 8 * 128 + 128 * EMBED_DIM)
    assert forward_flops(ImageEncoder(pocket / "prior", options()), 0) == image
    for tokens in (2, 20, 77):
        text = transformer_flops(tokens, EMBED_DIM, 4 * EMBED_DIM, 5) + 2 * EMBED_DIM**2
        encoder = TextEncoder(pocket / "prior", options())
        assert forward_flops(encoder, tokens) == text
        assert text_flops(encoder, Counter({tokens: 1})) == text
    assert text_flops(encoder, Counter({77: 2, 20: 1})) == 2 * text + forward_flops(encoder, 20)


@pytest.mark.parametrize(
    ("encoder", "resolution", "tflop"),
    [("image", 0, 0.97), ("text", 0, 0.10), ("latents", 512, 0.98), ("latents", 768, 2.50)],
)
def test_the_published_models_cost_what_is_known(
    published: Path, encoder: str, resolution: int, tflop: float
) -> None:
    made: Encoder = LatentsEncoder(published, options(), resolution)
    if encoder != "latents":
        made = (ImageEncoder if encoder == "image" else TextEncoder)(published, options())
    assert forward_flops(made, 77) / 1e12 == pytest.approx(tflop, abs=0.006)


def test_a_bucket_costs_no_more_than_the_square_of_its_resolution(published: Path) -> None:
    square = forward_flops(LatentsEncoder(published, options(), 768), 0)
    bucket = forward_flops(LatentsEncoder(published, options(buckets=True), 768), 0)
    assert 0.95 * square < bucket <= square


def columns(printed: str) -> dict[str, tuple[int, str, float]]:
    """Column → samples to encode, bytes to write, TFLOP."""
    found = {}
    for line in printed.splitlines():
        if match := re.match(r"(image|text|latents@\d+) .* (\d+) +(\S+ [KMG]?B) +(\S+)(?:  at most)?$", line):
            found[match[1]] = (int(match[2]), match[3], float(match[4]))
    return found


def test_a_dry_run_adds_up_columns_resolutions_and_views(
    pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    flags = ("--resolution", "64", "--resolution", "128", "--dry-run")
    plain = precompute(pictures, tmp_path / "cache", pocket, *flags, "--tflops", "0.5")
    mirrored = precompute(pictures, tmp_path / "cache", pocket, *flags, "--flip")
    once, twice = columns(plain), columns(mirrored)
    assert [*once] == ["image", "text", "latents@64", "latents@128"]
    assert [samples for samples, _, _ in once.values()] == [24, 23, 24, 24]
    assert once["latents@64"][1] == "12.3 KB"
    assert once["latents@128"][1:2] == ("49.2 KB",)
    assert twice["latents@128"][1] == "98.3 KB"
    for name in once:
        assert twice[name][2] == pytest.approx((1 if name == "text" else 2) * once[name][2], rel=1e-3)
    total = sum(tflop for _, _, tflop in once.values())
    (line,) = (line for line in plain.splitlines() if "GPU-hours" in line)
    match = re.fullmatch(r"(\S+) TFLOP, (\S+) GPU-hours at 0.5 TFLOP/s", line)
    assert match is not None
    assert float(match[1]) == pytest.approx(total, rel=1e-3)
    assert float(match[2]) == pytest.approx(total / 0.5 / 3600, rel=0.05)
    assert "TFLOP; give --tflops for the GPU-hours" in mirrored
    assert not (tmp_path / "cache").exists()


def test_text_costs_what_its_captions_cost_each_at_its_own_length(pocket: Path, tmp_path: Path) -> None:
    """One that several samples of a part share is encoded once there, and stored for each."""
    captions = ["a cat", "a cat", "a cat", "a red fox in the snow, seen from above " * 3, "a cat", "a dog"]
    write_pictures(tmp_path / "data", len(captions))
    lines = [
        json.dumps({"file_name": path.name, "text": caption})
        for path, caption in zip(sorted(tmp_path.glob("data/0*")), captions)
    ]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    encoder = TextEncoder(pocket / "prior", options())
    length = {caption: len(ids) for caption, ids in zip(captions, encoder.tokenize(captions))}
    assert len({*length.values()}) > 1
    flops = {caption: forward_flops(encoder, count) for caption, count in length.items()}
    for part_size, encoded in ((3, [captions[0], *captions[3:]]), (100, [*length])):
        flags = ("--columns", "text", "--dry-run", "--part-size", str(part_size))
        printed = columns(precompute(tmp_path / "data", tmp_path / "cache", pocket, *flags))
        num_bytes = 2 * EMBED_DIM * sum(1 + length[caption] for caption in captions)
        tflop = sum(flops[caption] for caption in encoded) / 1e12
        assert printed["text"] == (6, human_bytes(num_bytes), pytest.approx(tflop, rel=1e-3))


def test_buckets_are_said_to_be_an_upper_bound(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    flags = ("--resolution", "128", "--dry-run", "--tflops", "1000")
    square = precompute(pictures, tmp_path / "cache", pocket, *flags)
    buckets = precompute(pictures, tmp_path / "cache", pocket, *flags, "--buckets")
    assert (
        columns(buckets)["latents@128"] == columns(square)["latents@128"]
    )  # 128x128 is one, and the largest
    found = [line for line in buckets.splitlines() if line.startswith("latents@128")]
    assert [line.endswith("  at most") for line in found] == [True]
    assert "  at most" not in square
    note = "--buckets: latents@128 has only the square, as 64-pixel steps give no other shape up to 2:1"
    assert note in buckets.splitlines()
    assert "--buckets" not in square
    larger = precompute(pictures, tmp_path / "cache", pocket, *flags, "--resolution", "192", "--buckets")
    assert [line.split()[1] for line in larger.splitlines() if "--buckets" in line] == ["latents@128"]
    assert re.search(r"^at most \S+ TFLOP, \S+ GPU-hours at 1000 TFLOP/s$", buckets, re.MULTILINE)
