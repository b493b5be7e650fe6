"""The layers of a model by name, and the layout of their outputs."""
