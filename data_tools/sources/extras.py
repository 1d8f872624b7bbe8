"""Libraries that only some sources need, imported when a source asks for them."""

import importlib
from typing import Any

from data_tools.errors import UserError


def required(module: str, extra: str, data: str) -> Any:
    """The module. Raises `UserError` that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as err:
        library = module.split(".")[0]
        why = "" if err.name == library else f" ({' '.join(str(err).split())})"
        advice = f"pip install 'kandinsky-cache[{extra}]'"
        raise UserError(f"--data: {data}: needs the library {library}{why}: {advice}") from None
