"""Explanations as one HTML file for colleagues: it needs no network, no server and no installation."""

from camlib.reporting.page import Report
from camlib.reporting.parts import Chart, Headline, Section, Table

__all__ = ["Chart", "Headline", "Report", "Section", "Table"]
