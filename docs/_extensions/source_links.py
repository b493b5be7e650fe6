"""Back from a source page to the reference: viewcode knows one package for all names of a file, and so misses some.

A file of which one name is documented as ``camlib.GradCAM`` and another as ``camlib.functional.grad_cam`` is one.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def corrected(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Point each ``[docs]`` link of a source page at the name under which the thing is documented."""
    if not pagename.startswith("_modules/"):
        return
    documented = app.env.domains["py"].objects
    by_end = {(entry.docname, name.rpartition(".")[2]): entry.node_id for name, entry in documented.items()}

    def anchor(link: re.Match[str]) -> str:
        page, name = link.groups()
        if name in documented:
            return f'{page}.html#{documented[name].node_id}"'
        return f'{page}.html#{by_end.get((page.split("../")[-1], name.rpartition(".")[2]), name)}"'

    context["body"] = re.sub(r'((?:\.\./)+[\w/]+)\.html#([\w.]+)"', anchor, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the correction of links."""
    app.connect("html-page-context", corrected)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
