"""The two ways a command ends badly. Both print one line and no traceback (`data_tools.console`)."""


class UserError(ValueError):
    """Something the user asked for cannot be done: exit code 2, nothing written.

    The text begins with the flag or the file, says what was found, what was wanted and what to do.
    """


class DataFault(RuntimeError):
    """The data is not what it should be (a damaged part, a diverged loss): exit code 1."""
