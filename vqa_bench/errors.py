"""The exceptions a user is meant to see: a line that says what was expected, what came, and what to do."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment; printed as one line, exit code 2."""


class SharedError(UserError):
    """Raised on every process of a launch after the same step: all of them can go on with something else."""


class StoppedError(SharedError):
    """Somebody asked to stop. Not a fault of what was being done: nothing else is begun either."""
