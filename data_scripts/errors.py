"""The exception of the data scripts; the command line prints it as one line and exits with code 2."""


class DataError(ValueError):
    """Raw data that is not what it should be: says what was expected, what came, and what to do."""
