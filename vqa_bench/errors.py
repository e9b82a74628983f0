"""The exceptions a user is meant to see: a line that says what was expected, what came, and what to do."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment; printed as one line, exit code 2."""


class StoppedError(UserError):
    """Somebody asked to stop. Not a fault of what was being done: nothing else is begun either."""
