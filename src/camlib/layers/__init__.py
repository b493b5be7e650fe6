"""Layers of a model by name, and the layout of what they return."""
