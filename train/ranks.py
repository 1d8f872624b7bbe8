"""What the processes of one job say: a user's mistake once, not once for each of them."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from data_tools.errors import DataFault, UserError

WAIT_SECONDS = 5.0


class Diverged(DataFault):
    """Training has gone wrong, which all ranks see alike."""


@contextmanager
def said_once_a_node() -> Iterator[None]:
    """On all but a node's first process a `UserError` or a `Diverged` becomes its exit code alone.

    They all meet the same: arguments, folders and models are the same for each process of a node. The
    silent ones wait before they end, since the launcher then stops the first one, which may not have spoken.
    """
    try:
        yield
    except (UserError, Diverged) as err:
        if _speaks():
            raise
        time.sleep(WAIT_SECONDS)
        sys.exit(1 if isinstance(err, Diverged) else 2)


def say_once_a_node(text: str) -> None:
    """A line on stderr, from before the ranks know each other."""
    if _speaks():
        click.echo(text, err=True)


def _speaks() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
