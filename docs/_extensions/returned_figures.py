"""Figures that a gallery script returns: camlib makes them without pyplot, where sphinx-gallery looks for figures."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def returned_figure(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that is the value of a block's last line, if it is one, and return the RST that shows it."""
    last = "___"  # where sphinx-gallery keeps that value, until the next block has one
    figure = block_vars["example_globals"].get(last)
    if not isinstance(figure, Figure):
        return ""
    block_vars["example_globals"][last] = None
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    return str(figure_rst([path], gallery_conf["src_dir"]))
