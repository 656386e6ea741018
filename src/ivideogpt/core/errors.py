"""Errors that a user can correct, and the end of a run that was asked to stop."""


class UserError(ValueError):
    """Bad input: one sentence that says what is wrong, what was expected and what to do.

    The command line prints the sentence and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class MissingExtraError(UserError, ImportError):
    """A missing optional package; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing ``package`` and the ``extra`` of ivideogpt that installs it."""
        super().__init__(f"{package} is not installed; run: pip install 'ivideogpt[{extra}]'")


class Stopped(Exception):
    """The end of a run that was asked to stop (SIGTERM) and has saved a checkpoint; the same command resumes it."""
