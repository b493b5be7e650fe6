"""Sphinx configuration."""

import camlib

project = "camlib"
author = "The camlib developers"
copyright = "2026, The camlib developers"
release = version = camlib.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
templates_path: list[str] = []
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "camlib"
html_static_path = ["_static"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Types of other projects: their inventories need a network, and a build must not.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|nn|matplotlib|PIL|collections|contextlib|typing|os|pathlib|torchmetrics)\..*"),
    (r"py:.*", r"(Tensor|Figure|NDArray|Any|Callable|Sequence|Mapping|Iterator|optional|PathLike|ImageLike|ArrayLike)"),
    (
        r"py:.*",
        r"(Method|Layer|ChunkSize|Variation|Color|Size|Maps|TopK|Explainer|Reshape|Forward|camlib\.testing\..*Specimen|camlib\.imaging\..*\.Maps)",
    ),  # aliases
]
