"""The command ``camlib``, also ``python -m camlib``: the library from a terminal. Only this package imports typer."""
