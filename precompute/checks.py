"""What can be known before anything is loaded or written: of the machine, the models, the place of the cache.

Each check raises `UserError`, one line that begins with the flag.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from data_tools import models
from data_tools.cache.store import TEMPORARY, LocalStore, Store
from data_tools.crops import MAX_ASPECT, STEP
from data_tools.errors import UserError
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.flags import PRECISION


def load(encoders: Sequence[Encoder]) -> None:
    """The weights of encoders. Raises `UserError` for what cannot be loaded or does not work here."""
    for options in {(each.options.device, each.options.precision) for each in encoders}:
        check_precision(*options)
    for encoder in encoders:
        encoder.load()


@torch.inference_mode()
def check_precision(device: str, precision: str) -> None:
    """Does in small what the encoders do, in that precision; torch on a CPU may lack some of it in fp16."""
    names = {dtype: flag for flag, dtype in PRECISION.items()}
    try:
        states = torch.ones(1, 8, 4, 4, device=device).to(getattr(torch, precision))  # (B, C, H, W)
        kernel = states.new_ones(8, 8, 3, 3)
        states = functional.conv2d(states.contiguous(memory_format=torch.channels_last), kernel, padding=1)
        states = functional.silu(functional.group_norm(states, 2)).flatten(2).transpose(1, 2)  # (B, H W, C)
        states = functional.layer_norm(functional.linear(states, kernel[:, :, 0, 0]), (8,))
        states = functional.scaled_dot_product_attention(states, states, states, is_causal=True)
        functional.gelu(states).sum().item()
    except RuntimeError as err:
        others = " or ".join(flag for dtype, flag in names.items() if dtype != precision)
        raise UserError(
            f"--precision: {names.get(precision, precision)} does not work on {device} here "
            f"({models.first_line(err)}); give {others}"
        ) from None


def check_writable(store: Store) -> None:
    """Makes a folder in the cache, or in what it is to be made in, and removes it: permissions do not tell
    all. Only of a local cache; an object store says so itself when it is written to."""
    if not isinstance(store, LocalStore):
        return
    folder = store.root.absolute()
    try:
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder)).rmdir()
    except OSError as err:
        why = f"{folder} cannot be written to ({(err.strerror or str(err)).lower()})"
        raise UserError(f"--cache: {store.url}: {why}; wanted a folder that can") from None


def lone_squares(encoders: Sequence[Encoder]) -> list[str]:
    """A note for each column of `--buckets` whose resolution is too small for any shape but the square."""
    alone = [each for each in encoders if isinstance(each, LatentsEncoder) and each.options.buckets]
    return [
        f"--buckets: {each.column.name} has only the square, as {STEP}-pixel steps give no other shape up to "
        f"{MAX_ASPECT:g}:1"
        for each in alone
        if len(each.sizes) == 1
    ]


def check_widths(encoders: Sequence[Encoder]) -> None:
    """Do the encoders fit each other, and the prior and UNet that are beside them? Reads configs only."""
    image = text = None
    for encoder in encoders:
        if isinstance(encoder, ImageEncoder):
            image = _Config(encoder.folder, "--prior-model")
            _check_image(image)
        elif isinstance(encoder, TextEncoder):
            text = _Config(encoder.folder, "--prior-model")
            _check_text(text)
    if image and text and image["projection_dim"] != text["projection_dim"]:
        raise UserError(
            f"{image.named('projection_dim')}, but {text.named('projection_dim')}; wanted two of one CLIP"
        )
    for folder in {encoder.folder for encoder in encoders if isinstance(encoder, LatentsEncoder)}:
        _check_latents(_Config(folder, "--decoder-model"), image)


class _Config:
    """Of one component."""

    def __init__(self, folder: Path, flag: str) -> None:
        self.folder, self.flag = folder, flag
        self.values = models.config(folder, flag=flag)

    def __getitem__(self, key: str) -> int:
        """Raises `UserError` for what is no width."""
        value = self.values.get(key)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.flag}: {self.folder}: config.json says {key} {value!r}, wanted a number")
        return value

    def named(self, key: str) -> str:
        return f"{self.flag}: {self.folder}: {key} is {self[key]}"

    def beside(self, name: str) -> "_Config | None":
        """Another component of the repository, if it is there."""
        folder = self.folder.parent / name
        return _Config(folder, self.flag) if (folder / "config.json").is_file() else None


def _check_image(image: _Config) -> None:
    prior = image.beside("prior")
    if prior is not None:
        _same(image, "projection_dim", prior, "embedding_dim")


def _check_text(text: _Config) -> None:
    prior = text.beside("prior")
    _ = text["projection_dim"], text["hidden_size"]
    if prior is not None:
        own = prior.values.get("embedding_proj_dim") is not None
        _same(text, "projection_dim", prior, "embedding_proj_dim" if own else "embedding_dim")
        _same(text, "hidden_size", prior, "embedding_dim")


def _check_latents(movq: _Config, image: _Config | None) -> None:
    unet, channels = movq.beside("unet"), movq["vq_embed_dim"]
    if unet is None:
        return
    if unet["out_channels"] not in (channels, 2 * channels):  # 2: with a variance
        raise UserError(
            f"{movq.named('vq_embed_dim')}, but unet/ beside it makes {unet['out_channels']} channels; "
            f"wanted {channels} or {2 * channels}"
        )
    if image is not None and unet.values.get("encoder_hid_dim_type") == "image_proj":
        _same(image, "projection_dim", unet, "encoder_hid_dim")


def _same(encoder: _Config, key: str, other: _Config, wanted: str) -> None:
    if encoder[key] != other[wanted]:
        name = f"{other.folder.parent.name}/{other.folder.name}"
        raise UserError(f"{encoder.named(key)}, but {wanted} of {name} is {other[wanted]}")
