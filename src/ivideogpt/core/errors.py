"""The one kind of error that is a user's to mend."""


class UserError(ValueError):
    """Bad input: one sentence with the value found, what was expected and what to do.

    The command line prints the sentence and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        """Names the missing ``package`` and the ``extra`` of ivideogpt that installs it."""
        super().__init__(f"{package} is not installed; run: pip install 'ivideogpt[{extra}]'")
