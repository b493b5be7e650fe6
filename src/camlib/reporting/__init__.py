"""One HTML file that shows explanations to a colleague: no network, no server, nothing to install."""

from camlib.reporting.page import Report
from camlib.reporting.parts import Chart, Headline, Section, Table

__all__ = ["Chart", "Headline", "Report", "Section", "Table"]
