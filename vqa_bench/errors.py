"""The one exception a user is meant to see: a line that says what was expected, what came, and what to do."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment; printed as one line, exit code 2."""
