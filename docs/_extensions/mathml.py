"""Equations as MathML, which browsers draw themselves: pages need neither scripts nor a network.

The conversion is that of docutils. In ``conf.py``: the folder of this file on ``sys.path``, ``"mathml"`` among the
extensions in place of ``sphinx.ext.mathjax``, and ``html_math_renderer = "mathml"``.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])")
"""Of brackets: a browser makes them as large as what is between them."""


def converted(node: nodes.Node, *, as_block: bool) -> str:
    """MathML of a node's TeX; where docutils does not know what the TeX says, a warning and the TeX."""
    text = SIZES.sub("", node.astext())
    try:
        markup: str = latex2mathml.tex2mathml(text, as_block=as_block)
    except MathError as error:
        logger.warning("no MathML of %r: %s", text, error, location=node)
        return escape(text)
    return markup


def inline(translator: Any, node: nodes.Node) -> None:
    """Write an equation in a line."""
    translator.body.append(converted(node, as_block=False))
    raise nodes.SkipNode


def display(translator: Any, node: nodes.Node) -> None:
    """Write an equation that stands alone; one that is wider than the page is scrolled."""
    translator.body.append(f'<div class="math" style="overflow-x: auto">{converted(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
