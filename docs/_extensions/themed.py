"""A picture that is drawn twice: ``.. themed:: name`` shows ``_static/name-light.webp`` or ``name-dark.webp``.

``docs/figures/draw.py`` draws them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Themed(SphinxDirective):
    """Two images, of which the theme shows one; the text says what is seen and is required."""

    required_arguments = 1
    option_spec: ClassVar[Any] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return both images."""
        alt = self.options.get("alt")
        if not alt:
            raise self.error("a picture needs :alt: for those who cannot see it")
        return [
            nodes.image(uri=f"/_static/{self.arguments[0]}-{page}.webp", alt=alt, classes=[f"only-{page}", "themed"])
            for page in ("light", "dark")
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("themed", Themed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
