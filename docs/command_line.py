"""The reference of the command ``predictpool``, which Sphinx takes from the program itself."""

import typer
import typer.main
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

from predictpool._cli import _app

PLACE = "<!-- every command -->"


def reference() -> str:
    """Return Markdown with every command, argument and option of the command line."""
    command = typer.main.get_command(_app())
    context = typer.Context(command, info_name="predictpool")
    return get_docs_for_click(obj=command, ctx=context, name="predictpool", indent=1)


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx's call
    """Put it where a page says so."""
    if PLACE in source[0]:
        source[0] = source[0].replace(PLACE, reference())


def setup(app: Sphinx) -> dict[str, bool]:
    """Have it filled in before a page is read."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True}
