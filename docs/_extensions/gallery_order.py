"""In which order the gallery is shown."""

ORDER = ("photographs", "all_methods", "phantoms", "segmentation", "detection", "video", "signals", "metrics")


def in_order(file_name: str) -> int:
    """The place of ``plot_NAME.py``; an unknown name is an error, so that none is forgotten."""
    return ORDER.index(file_name.removeprefix("plot_").removesuffix(".py"))
