"""The pictures of the documentation, drawn by :mod:`docs.figures.draw`."""
