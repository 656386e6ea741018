"""The one kind of error that is a user's to mend, and the end of a run that was asked to stop."""


class UserError(ValueError):
    """Bad input: one sentence with the value found, what was expected and what to do.

    The command line prints the sentence and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        """Names the missing ``package`` and the ``extra`` of ivideogpt that installs it."""
        super().__init__(f"{package} is not installed; run: pip install 'ivideogpt[{extra}]'")


class Stopped(Exception):
    """A run was asked to stop (SIGTERM) and has saved; the same command goes on from there."""
