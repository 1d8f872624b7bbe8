"""What every command shares: flags with dashes or underscores, one-line errors, exit codes."""

import errno
import os
import re
import signal
import sys
from typing import Any, NoReturn

import click

from data_tools.errors import DataFault, UserError

CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --max_train_steps is --max-train-steps
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}


OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"Errors that are faults, not mistakes: a full or a broken disk."


def run(command: click.Command) -> NoReturn:
    """Run a click command as a program.

    A user's mistake ends with one line on stderr and exit code 2, damaged data or a failed check with
    one line and exit code 1; neither shows a traceback. Anything else is a bug and shows one.
    """
    try:
        _run(command)
    finally:
        # Python takes seconds to end after torch; a second Ctrl-C ends it at once, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(command: click.Command) -> NoReturn:
    try:
        status = command.main(prog_name=command.name, standalone_mode=False)
    except click.UsageError as err:
        _stop(_usage_line(err), 2)
    except click.ClickException as err:
        _stop(err.format_message(), 2)
    except UserError as err:
        _stop(str(err), 2)
    except DataFault as err:
        _stop(str(err), 1)
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted; the same command continues where this one stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `data-tools inspect … | head`
        sys.exit(1)
    except OSError as err:
        if err.errno is None:  # raised by a library for something else
            raise
        place = err.filename or "a file that was being written or read"
        said = err.strerror or str(err)
        if said == os.strerror(err.errno):  # a library's own words may hold names
            said = said.lower()
        _stop(f"{place}: {said}", 1 if err.errno in OF_THE_MACHINE else 2)
    sys.exit(status if isinstance(status, int) else 0)


def _stop(line: str, code: int) -> NoReturn:
    click.echo(line, err=True)
    sys.exit(code)


def _usage_line(err: click.UsageError) -> str:
    """Click's usage errors, re-ordered so that the flag comes first."""
    if isinstance(err, click.NoSuchOption):
        hint = f"; did you mean {' or '.join(err.possibilities)}?" if err.possibilities else "; see --help"
        return f"{err.option_name}: no such option{hint}"
    if isinstance(err, click.MissingParameter) and err.param is not None:
        return f"{_flag(err.param)}: missing; see --help"
    if isinstance(err, click.BadParameter) and err.param is not None:
        return f"{_flag(err.param)}: {err.message.rstrip('.')}"
    if isinstance(err, click.BadOptionUsage):
        return f"{err.option_name}: {err.message.rstrip('.')}"
    if extra := re.search(r"unexpected extra arguments? \((.*)\)", err.message):
        return f"{extra[1]}: unexpected argument; see --help"
    return f"{err.format_message().rstrip('.')}; see --help"


def _flag(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return param.opts[0]
    return param.human_readable_name
