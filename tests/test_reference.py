"""The reference has all of the errors, options and commands, as they are."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

import predictpool
from predictpool import PredictorPoolError, _cli, _errors, _local_launcher
from tests import needs
from tests.pages import PAGES, ROOT, commands_of, rows_of, sections_of

REFERENCE = ROOT / "docs" / "reference"

ERRORS = [
    value
    for value in vars(_errors).values()
    if isinstance(value, type) and issubclass(value, PredictorPoolError)
]
# The classes that users call with options.
CONFIGURED = [
    "EstimatorPredictor",
    "FunctionPredictor",
    "KerasPredictor",
    "LocalLauncher",
    "PredictorPool",
    "RayLauncher",
    "SavedModelPredictor",
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_has_its_cause_its_remedy_and_its_attributes(error: type) -> None:
    section = sections_of((REFERENCE / "errors.md").read_text())[error.__name__]
    cause, _, rest = section.partition("**Remedy.**")
    remedy, _, attributes = rest.partition("**Attributes.**")
    assert "**Cause.**" in cause
    assert remedy.strip()
    for base in inspect.getmro(error):
        documented = re.findall(r"^    (\w[\w, ]*): ", inspect.getdoc(base) or "", re.MULTILINE)
        names = [name for names in documented for name in names.split(", ")]
        if not issubclass(base, PredictorPoolError) or not names:
            continue
        if base is not error and f"Those of `{base.__name__}`" in attributes:
            continue
        assert all(f"`{name}`" in attributes for name in names), names


def test_the_tree_of_errors_is_that_of_the_module() -> None:
    assert _errors.__doc__ is not None
    tree = [line.strip() for line in _errors.__doc__.splitlines() if "──" in line]
    text = (REFERENCE / "errors.md").read_text()
    assert [line.strip() for line in text.splitlines() if "──" in line] == tree
    assert len(tree) == len(ERRORS) - 1


def test_no_public_error_is_anywhere_else() -> None:
    public = [getattr(predictpool, name) for name in predictpool.__all__]
    found = [value for value in public if isinstance(value, type) and issubclass(value, Exception)]
    assert set(found) == set(ERRORS)


def test_every_public_name_is_in_the_reference_of_the_api() -> None:
    text = (REFERENCE / "api.md").read_text()
    shown = re.findall(r"^\.\. auto(?:class|exception):: (\w+)$", text, re.MULTILINE)
    assert set(predictpool.__all__) - set(shown) == set()


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_option_is_in_the_settings_with_its_default(name: str) -> None:
    options = inspect.signature(getattr(predictpool, name)).parameters
    rows = rows_of(sections_of((REFERENCE / "settings.md").read_text())[name])
    assert list(rows) == list(options)
    for option, (kind_and_default, what, _) in rows.items():
        value = options[option].default
        default = "required" if value is inspect.Parameter.empty else f"`{value!r}`"
        assert re.fullmatch(rf".+, {re.escape(default)}", kind_and_default), option
        assert what, option


def test_every_class_with_options_is_in_the_settings() -> None:
    public = {name: getattr(predictpool, name) for name in predictpool.__all__}
    configured = [
        name
        for name, value in public.items()
        if isinstance(value, type) and name.endswith(("Predictor", "Launcher", "Pool"))
    ]
    assert sorted({*configured} - {"Predictor"}) == CONFIGURED
    assert set(CONFIGURED) < set(sections_of((REFERENCE / "settings.md").read_text()))


def test_the_environment_of_workers_is_in_the_settings() -> None:
    rows = rows_of(sections_of((REFERENCE / "settings.md").read_text())["Environment variables"])
    for name, value in _local_launcher._DEFAULTS.items():
        shown, yours = rows.pop(name)
        assert shown == f"`{value}`"
        assert yours.startswith("yes")
    for name, value in _local_launcher._FORCED.items():
        shown, yours = rows.pop(name)
        assert shown == f"`{value}`"
        assert yours.startswith("no:")
    assert list(rows) == ["TF_NUM_INTRAOP_THREADS"]


# --- the command line --------------------------------------------------------------


def command_line() -> Any:
    typer = pytest.importorskip("typer", reason="needs typer")
    return typer.main.get_command(_cli._app())


@needs.sphinx
def test_the_reference_of_the_command_line_is_made_from_all_of_it() -> None:
    text = runpy.run_path(str(ROOT / "docs" / "command_line.py"))["reference"]()
    commands = command_line().commands
    assert commands
    for name, command in commands.items():
        _, _, section = text.partition(f"### `predictpool {name}`")
        section = section.partition("\n### ")[0]
        assert command.help.splitlines()[0] in section
        for parameter in command.params:
            argument = parameter.param_type_name == "argument"
            shown = [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
            assert all(f"`{each}" in section or f" {each}" in section for each in shown), shown


def parse(line: str) -> None:
    """Fail where the command line would not take this."""
    name, *arguments = shlex.split(line)
    command = command_line().commands[name]
    with command.context_class(command, info_name=name) as context:
        left = command.make_parser(context).parse_args(args=arguments)[1]
    assert not left, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_is_one(page: Path) -> None:
    for line in commands_of(page.read_text()):
        parse(line)


def test_a_command_that_there_is_not_is_found() -> None:
    page = "```console\npredictpool check --nonsense\n```\n`predictpool nonsense`\n"
    of_text, of_block = commands_of(page)
    with pytest.raises(KeyError, match="nonsense"):
        parse(of_text)
    with pytest.raises(Exception, match="--nonsense"):
        parse(of_block)
