"""Sphinx settings: `python -m sphinx -W -b html docs build/docs` (`pip install 'fedjax8[docs]'`)."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, os.path.dirname(__file__))

from docstrings import AutoModules, as_rst, without_noise

from fedjax8.version import __version__

project = "fedjax8"
author = "the fedjax8 authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = []
myst_heading_anchors = 3
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"fedjax8 {__version__}"
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def setup(app) -> None:
    """Docstrings are read as they are written, and modules of a package found by themselves."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", without_noise)
    app.add_directive("automodules", AutoModules)
