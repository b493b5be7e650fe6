"""A table of a benchmark: ``.. measured:: name`` shows the one that :mod:`benchmarks.tables` makes of the results."""

from __future__ import annotations

import csv
import io
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.parsers.rst.directives.tables import CSVTable
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from benchmarks import results, tables


class Measured(CSVTable):
    """A table with a head, whose cells are reStructuredText."""

    required_arguments = 1
    optional_arguments = 0
    has_content = False
    option_spec: ClassVar[Any] = {"class": directives.class_option, "widths": directives.positive_int_list}

    def run(self) -> list[nodes.Node]:
        """Return the table; the page depends on the results, so that a build shows what is new in them."""
        name = self.arguments.pop()
        if name not in tables.TABLES:
            raise self.error(f"no benchmark's table is called {name!r}: there are {', '.join(sorted(tables.TABLES))}")
        for path in results.FOLDER.glob("*.json"):
            self.state.document.settings.env.note_dependency(str(path))
        text = io.StringIO()
        csv.writer(text).writerows(tables.TABLES[name]())
        self.content = StringList(text.getvalue().splitlines(), source=f"the table {name}")
        self.options["header-rows"] = 1
        made: list[nodes.Node] = super().run()
        return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
