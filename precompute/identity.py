"""What decides whether an encoder's column may be reused: all that its rows depend on, and nothing else."""

from pathlib import Path
from typing import Any

from data_tools import models
from data_tools.cache.fields import Column, Field
from data_tools.cache.identity import digest, hash_files
from data_tools.cache.manifest import VERSION
from precompute.options import EncoderOptions


def of_encoder(folder: Path, flag: str, options: EncoderOptions) -> dict[str, Any]:
    """What every encoder's identity holds: its weights, its config, precision and stored dtype."""
    return {
        "weights": hash_files(models.weight_files(folder, flag=flag)),
        "config": digest(settings(models.config(folder, flag=flag))),
        "precision": options.precision,
        "dtype": options.dtype,
        "format": VERSION,
    }


def of_pictures(options: EncoderOptions) -> dict[str, Any]:
    """How pictures become RGB, and in how many views; options that are off leave no key."""
    made: dict[str, Any] = {"alpha": options.alpha}
    if options.icc:
        made["icc"] = "sRGB"
    if options.flip:
        made["views"] = ["as it is", "mirrored"]
    return made


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what only says who saved it and when."""
    passing = {"transformers_version", "torch_dtype", "dtype", "architectures", "feature_extractor_type"}
    passing |= {"image_processor_type"}
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in passing}


def declared(name: str, fields: tuple[Field, ...], identity: dict[str, Any], model: dict[str, str]) -> Column:
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "pillow", "numpy")
    return Column(name, fields, identity, model, {library: version(library) for library in names})
