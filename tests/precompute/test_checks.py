"""What is refused before anything is loaded: precisions, odd widths, places that are read-only."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.cache.store import open_store
from data_tools.errors import UserError
from precompute.checks import check_precision, check_widths, check_writable
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.flags import PRECISION
from tests.precompute.test_encoders import options
from tests.precompute.test_refusals import models, refused

__all__ = ["models", "refused"]  # fixtures

VISION, TEXT = "prior/image_encoder", "prior/text_encoder"
NOBODY = 65534


def edit(models: Path, component: str, **values: Any) -> Path:
    """Change a config; None: without that key."""
    path = models / component / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return models / component


def encoders(models: Path) -> list[Encoder]:
    prior, decoder = models / "prior", models / "decoder"
    latents = [LatentsEncoder(decoder, options(), side) for side in (64, 128)]
    return [ImageEncoder(prior, options()), TextEncoder(prior, options()), *latents]


@pytest.mark.parametrize("precision", PRECISION.values())
def test_this_machine_has_every_precision(precision: str) -> None:
    check_precision("cpu", precision)


def test_a_precision_that_torch_lacks_is_one_line() -> None:
    """No encoder runs in float8: torch has the type, and hardly anything that works on it."""
    with pytest.raises(UserError) as refusal:
        check_precision("cpu", "float8_e4m3fn")
    line = str(refusal.value)
    assert line.startswith("--precision: float8_e4m3fn does not work on cpu here (")
    assert "not implemented" in line
    assert line.endswith("; give fp32 or fp16 or bf16")
    assert "\n" not in line


def test_fp16_on_a_cpu_that_lacks_it_is_refused(
    refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer_norm = torch.nn.functional.layer_norm

    def lacking(states: torch.Tensor, *rest: Any) -> torch.Tensor:
        if states.dtype == torch.float16:  # as torch 2.0 says it
            raise RuntimeError("\"LayerNormKernelImpl\" not implemented for 'Half'")
        return layer_norm(states, *rest)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", lacking)
    line = refused("--precision", "fp16", "--device", "cpu")
    said = "\"LayerNormKernelImpl\" not implemented for 'Half'"
    assert line == f"--precision: fp16 does not work on cpu here ({said}); give fp32 or bf16\n"
    assert not (tmp_path / "cache").exists()


def test_the_published_layout_is_accepted(models: Path) -> None:
    check_widths(encoders(models))
    shutil.rmtree(models / "prior" / "prior")  # a repository need not have more than the encoders
    shutil.rmtree(models / "decoder" / "unet")
    check_widths(encoders(models))


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        (VISION, {"projection_dim": 32}, "projection_dim is 32, but embedding_dim of prior/prior is 64"),
        (TEXT, {"projection_dim": 32}, "projection_dim is 32, but embedding_dim of prior/prior is 64"),
        (TEXT, {"hidden_size": 96}, "hidden_size is 96, but embedding_dim of prior/prior is 64"),
        (VISION, {"projection_dim": None}, "config.json says projection_dim None, wanted a number"),
        (TEXT, {"hidden_size": "64"}, "config.json says hidden_size '64', wanted a number"),
        (
            "decoder/movq",
            {"vq_embed_dim": 3},
            "vq_embed_dim is 3, but unet/ beside it makes 8 channels; wanted 3 or 6",
        ),
        ("decoder/movq", {"vq_embed_dim": 0}, "config.json says vq_embed_dim 0, wanted a number"),
    ],
)
def test_widths_that_do_not_fit_are_named_with_both_sides(
    models: Path, component: str, changes: dict[str, Any], message: str
) -> None:
    folder = edit(models, component, **changes)
    with pytest.raises(UserError) as refusal:
        check_widths(encoders(models))
    wanted = f"--{component.split('/')[0]}-model: {folder}: {message}"
    assert str(refusal.value) == wanted


def test_two_encoders_that_are_not_of_one_clip_are_named(models: Path) -> None:
    shutil.rmtree(models / "prior" / "prior")
    edit(models, TEXT, projection_dim=32)
    with pytest.raises(UserError, match=r"projection_dim is 64, but .*text_encoder: projection_dim is 32;"):
        check_widths(encoders(models))
    check_widths(encoders(models)[:1])  # the text column is not asked for


def test_a_decoder_of_another_clip_is_named(models: Path) -> None:
    edit(models, "decoder/unet", encoder_hid_dim=1280)
    with pytest.raises(
        UserError, match=r"projection_dim is 64, but encoder_hid_dim of decoder/unet is 1280$"
    ):
        check_widths(encoders(models))


def test_widths_are_refused_before_a_byte_is_written(refused, models: Path, tmp_path: Path) -> None:
    edit(models, TEXT, hidden_size=96)
    line = refused("--prior-model", str(models / "prior"))
    assert "hidden_size is 96, but embedding_dim of prior/prior is 64" in line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        (VISION, {"hidden_size": 64}),
        (TEXT, {"vocab_size": 5000}),
        ("decoder/movq", {"latent_channels": 5}),
    ],
)
def test_weights_of_other_shapes_than_the_config_says_are_refused(
    refused, models: Path, component: str, changes: dict[str, Any]
) -> None:
    folder = edit(models, component, **changes)
    line = refused("--prior-model", str(models / "prior"), "--decoder-model", str(models / "decoder"))
    assert line.startswith(f"--{component.split('/')[0]}-model: {folder}: ")


@contextmanager
def without_root() -> Iterator[None]:
    """Root may write anywhere; as another user for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def readable(pictures: Path, pocket: Path) -> Iterator[Path]:
    """A copy of pictures and models that any user can read, in a folder that only its owner can write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(pictures, folder / "pictures")
        shutil.copytree(pocket, folder / "models")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(stat.S_IRWXU)


def test_a_cache_that_cannot_be_written_is_refused(refused, readable: Path) -> None:
    place = readable / "deep" / "cache"
    flags = ("--prior-model", str(readable / "models/prior"))
    flags += ("--decoder-model", str(readable / "models/decoder"))
    refused(*flags, "--columns", "text", "--device", "no-such-device")  # imports what it needs, as root
    with without_root():
        line = refused(*flags, data=readable / "pictures", cache=place)
        with pytest.raises(UserError):
            check_writable(open_store(place))
    why = f"{readable} cannot be written to (permission denied)"
    assert line == f"--cache: {place}: {why}; wanted a folder that can\n"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="wants Linux's /proc")
def test_a_place_that_not_even_root_can_write_to_is_refused(refused) -> None:
    line = refused("--columns", "text", cache=Path("/proc/nope/cache"))
    why = "/proc cannot be written to (no such file or directory)"
    assert line == f"--cache: /proc/nope/cache: {why}; wanted a folder that can\n"


@pytest.mark.parametrize("name", ["", "cache", "deep/in/cache"])
def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    check_writable(open_store(tmp_path / name))
    assert [*tmp_path.iterdir()] == []
