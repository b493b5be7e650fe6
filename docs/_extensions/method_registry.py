"""What the documentation lists of every method follows from ``camlib.METHODS``.

``.. method-reference:: gradients`` documents the class and the function of each method that needs gradients, and
``.. method-reference:: no-gradients`` those of all others. ``.. method-table::`` has one row per method: what it shows,
what it reads, how many forward passes it makes by default, and a link to its equation.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import nn

import camlib


class MethodReference(SphinxDirective):
    """The classes and functions of one kind of methods, from their docstrings."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the documentation that autodoc makes of them."""
        needs_gradients = {"gradients": True, "no-gradients": False}[self.arguments[0]]
        lines = []
        for name, method in camlib.METHODS.items():
            if method.needs_gradients != needs_gradients:
                continue
            lines.append(f".. autoclass:: camlib.{method.__name__}")
            if name == "grad_cam":  # what all methods share is shown once
                lines += ["    :members: __call__", "    :inherited-members:", "    :show-inheritance:"]
            if hasattr(camlib.functional, name):
                lines.append(f".. autofunction:: camlib.functional.{name}")
        return self.parse_text_to_nodes("\n".join(lines))


class MethodTable(SphinxDirective):
    """A row per method."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [("Class, name", "What it shows", "Reads", "Passes", "Equation")]
        for name, method in camlib.METHODS.items():
            shows = " ".join((method.__doc__ or "").partition("\n\n")[0].split())
            passes = method(nn.Identity()).forward_passes or "depends on the input"
            equation = f":func:`~camlib.functional.{name}`" if hasattr(camlib.functional, name) else "see the class"
            rows.append((f":class:`camlib.{method.__name__}`, ``{name}``", shows, method.reads, str(passes), equation))
        table = [".. list-table::", "    :header-rows: 1", "    :widths: 26 40 10 10 14", ""]
        for first, *others in rows:
            table += [f"    * - {first}", *(f"      - {cell}" for cell in others)]
        return self.parse_text_to_nodes("\n".join(table))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("method-reference", MethodReference)
    app.add_directive("method-table", MethodTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
