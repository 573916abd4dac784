"""Sphinx's configuration; `sphinx-build -W --keep-going -n docs build/docs`."""

import sys
from importlib import metadata
from pathlib import Path

import predictpool

sys.path.insert(0, str(Path(__file__).parent))  # for `command_line`

project = "predictpool"
copyright = "the predictpool contributors"  # noqa: A001 (Sphinx's name)
release = metadata.version("predictpool")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_line"]
html_theme = "furo"
html_title = f"predictpool {release}"
exclude_patterns = ["examples"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_use_ivar = True  # "Attributes:" describes what autodoc lists itself

# The public classes live in private modules. Readers, and cross-references made from
# annotations, know them by the name that users import.
for _name in predictpool.__all__:
    _object = getattr(predictpool, _name)
    if isinstance(_object, type):
        _object.__module__ = "predictpool"

# Documentation is built without the internet, so without intersphinx: names of other
# libraries, and of our private modules, have no page to link to. What remains checked are
# the public names.
nitpick_ignore_regex = [
    ("py:.*", r"(?!predictpool\.).+\..+"),
    ("py:.*", r"predictpool\.(.+\.)?_.+"),
]
# Aliases and type variables that annotations show by their bare name: they have no page.
nitpick_ignore = [
    ("py:class", "BatchOutcome"),
    ("py:class", "Extra"),
    ("py:class", "RowShape"),
    ("py:class", "OutT"),
    ("py:class", "Outcome"),
    ("py:class", "SourceKind"),
    ("py:obj", "predictpool.testing.OutputsT"),
]
