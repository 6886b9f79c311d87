"""The one exception that means: the user can fix this. The command line prints it as one line and exits with 2."""


class UserError(ValueError):
    """Bad input: the message names what, where, the limit and the fix, in one line."""


class BackendError(RuntimeError):
    """A simulator or chip failed while it ran; the message carries its own traceback or reason."""
