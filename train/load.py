"""The models that are trained, from diffusers folders: whole, or one line about what is wrong with them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools import models
from data_tools.errors import UserError


def load_model(model_class: Any, folder: Path, flag: str) -> Any:
    """The diffusers model in `folder`, in float32. Raises `UserError` as `models.load` does."""
    with _silent():
        return models.load(model_class, folder, flag=flag).float()


def required(config: dict[str, Any], key: str, folder: Path, flag: str) -> Any:
    """A value of a component's config. Raises `UserError` where it is missing or null."""
    if config.get(key) is None:
        raise UserError(f"{flag}: {folder}/config.json has no {key}; wanted a Kandinsky 2.2 model")
    return config[key]


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
