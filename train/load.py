"""The models that are trained, from diffusers folders: whole, or one line about what is wrong with them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools import models
from data_tools.errors import UserError


def load_model(model_class: Any, folder: Path, flag: str) -> Any:
    """The diffusers model in `folder`, in float32.

    Raises `UserError`, beginning with `flag` and the folder, for files that cannot be read and for weights
    that do not fit the config exactly: diffusers itself would fill gaps with random numbers.
    """
    from safetensors import SafetensorError

    models.weight_files(folder, flag=flag)  # says so if there are only pickled ones
    try:
        with _silent():
            model, info = model_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as err:
        raise UserError(f"{flag}: {folder}: cannot be loaded: {first_line(err)}") from None
    if odd := [text for kind in ("missing", "unexpected", "mismatched") if (text := _named(kind, info))]:
        raise UserError(f"{flag}: {folder}: the weights are not those of its config.json: {', '.join(odd)}")
    return model.float()


def first_line(err: BaseException) -> str:
    """What an error says, without the advice that follows."""
    line = next(iter(str(err).strip().splitlines()), type(err).__name__)
    return line.partition(". If you want")[0].rstrip(" .")


def required(config: dict[str, Any], key: str, folder: Path, flag: str) -> Any:
    """A value of a component's config. Raises `UserError` where it is missing or null."""
    if config.get(key) is None:
        raise UserError(f"{flag}: {folder}/config.json has no {key}; wanted a Kandinsky 2.2 model")
    return config[key]


def _named(kind: str, info: dict[str, Any]) -> str:
    keys = sorted(str(key) for key in info.get(f"{kind}_keys") or ())
    return f"{len(keys)} {kind} (first: {keys[0]})" if keys else ""


@contextmanager
def _silent() -> Iterator[None]:
    """Without diffusers' own words about what is said here as an error."""
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)
