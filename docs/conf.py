"""How Sphinx builds these pages: ``make docs``."""

from __future__ import annotations

import os

# The interpreted core has the docstrings that Sphinx can read.
os.environ["FASTPOOL_IMPL"] = "python"

import fastpool

project = "fastpool"
author = copyright = "the fastpool authors"
release = version = fastpool.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
html_theme = "furo"
html_title = f"fastpool {release}"
exclude_patterns = ["_build"]
