"""The pneumonia example: phantoms or real chest X-rays in, a trained network and its heatmaps out."""

NOTICE = "Research software, not a medical device: nothing here is a diagnosis."


class InputError(Exception):
    """Bad input: one line that says what was given, what was expected, and what to do. Exit status 2."""
