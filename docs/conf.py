"""Sphinx configuration. A build needs no network; ``INTERSPHINX=1`` fetches the inventories of other projects."""

import os
import sys
from pathlib import Path

import camlib

sys.path[:0] = [str(Path(__file__).parent / "_extensions"), str(Path(__file__).parents[1])]

project = "camlib"
author = "The camlib developers"
copyright = "2026, The camlib developers"
release = version = camlib.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "measured",
    "method_registry",
    "source_links",
    "themed",
]
exclude_patterns = ["_build", "gallery"]
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "camlib"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a03a10", "color-brand-content": "#a03a10"},
    "dark_css_variables": {"color-brand-primary": "#f2994a", "color-brand-content": "#f2994a"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "ignore_pattern": r"efficientnet_lite0\.py",  # what several examples import
    "within_subsection_order": "gallery_order.in_order",
    "image_scrapers": ("matplotlib", "returned_figures.returned_figure"),
    "ignore_repr_types": r"matplotlib\.|NoneType",
    "abort_on_example_error": True,
    "show_signature": False,
    "remove_config_comments": True,
    "first_notebook_cell": "# Needs camlib and the packages imported below; nothing is downloaded.\n%matplotlib inline",
    "reference_url": {"camlib": None},
    "doc_module": "camlib",
    "backreferences_dir": None,
    "thumbnail_size": (560, 320),
    "write_computation_times": False,
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }
    if os.environ.get("INTERSPHINX")
    else {}
)
# Types of other projects, which a build without their inventories cannot find, and aliases of types.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|nn|matplotlib|PIL|collections|contextlib|typing|os|pathlib|torchmetrics)\..*"),
    (
        r"py:.*",
        r"(Tensor|Figure|NDArray|Any|Callable|Sequence|Mapping|Iterator|optional|Path|PathLike|ImageLike|ArrayLike)",
    ),
    (
        r"py:.*",
        r"(Method|Layer|Network|ImageAxes|Scale|Watch|ChunkSize|Variation|Color|Size|Maps|TopK|OnNonfinite|Explainer|Reshape|Forward|Baseline|Perturb|Gamma"
        r"|Weights|Average|.*\bBoundTarget"
        r"|.*\bCovered|targets\.Link|camlib\.testing\..*Subject|camlib\.imaging\..*\.Maps|camlib\.metrics\.readings\..*"
        r"|PlainGradients|.*\.AnyMethod|~P|camlib\.metrics\.declaration\.[RS])",
    ),
]
