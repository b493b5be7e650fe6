"""The one error the example raises on purpose."""


class InputError(Exception):
    """Bad input: one line that says what was given, what was expected, and the mend. Exit status 2."""
