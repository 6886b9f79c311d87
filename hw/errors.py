"""The one exception that means: the user can fix this. The command line prints it as one line and exits with 2."""


def printable(text: str) -> str:
    """What a file holds, for a line of text: line breaks and codes that a terminal obeys as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(ValueError):
    """Bad input: the message names what, where, the limit and the fix, in one line, whatever it quotes of a file."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RefusedError(UserError):
    """A program that one target cannot hold exactly; another may."""


class Stopped(Exception):  # noqa: N818  (no error: what was asked for)
    """The process was asked to end (SIGTERM), and what it had done is saved; the message says where."""


class BackendError(RuntimeError):
    """A simulator or chip failed while it ran; the message carries its own traceback or reason."""
