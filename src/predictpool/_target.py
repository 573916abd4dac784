"""``MODULE:ATTRIBUTE``: what users name on the command line, imported."""

import importlib
import inspect
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from predictpool import Predictor, PredictorPool
from predictpool._command import CommandError, describe
from predictpool._features._refusals import did_you_mean
from predictpool._pool import PREDICTOR_NAMES, lacking


def find(target: str, what: str) -> Any:
    """Import ``MODULE:ATTRIBUTE`` and return what it names.

    Args:
        target: the module as in an ``import``, a colon, and a name in it, which may have dots.
        what: what the attribute should be, in capitals, for the messages.

    Raises:
        CommandError: it is not of this form, cannot be imported, or is not there.
    """
    name, _, attribute = target.partition(":")
    if "/" in name or name.endswith(".py"):
        raise path_error(name, attribute or what)
    if not all(name.split(".")) or not all(map(str.isidentifier, attribute.split("."))):
        raise CommandError(
            f"{target!r} is not MODULE:{what}, two names with a colon between them, "
            f"for example models.income:{what.lower()}",
            exit_code=2,
        )
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise import_failure(name, error) from error
    holder = name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise missing_attribute(holder, found, part, what) from error
        holder += f"{'.' if ':' in holder else ':'}{part}"
    return found


def path_error(name: str, attribute: str) -> CommandError:
    """Return the error for a file where a module is expected."""
    parts = Path(name.removesuffix(".py")).parts
    if not all(map(str.isidentifier, parts)):  # absolute, or up and down again
        return CommandError(
            f"{name!r} is a path: change into a folder above that file and name the module "
            f"as Python imports it, for example income:{attribute}",
            exit_code=2,
        )
    return CommandError(
        f"{name!r} is a path: name the module as Python imports it, {'.'.join(parts)}:{attribute}",
        exit_code=2,
    )


def import_failure(name: str, error: BaseException) -> CommandError:
    """Return the error for a module that cannot be imported."""
    where = place(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        if not where:  # none of the user's code ran: it is this very module
            return missing_module(error.name)
        remedy = "install it there, or correct the import"
        if error.name == "tensorflow":
            remedy = 'pip install "predictpool[estimator]" (Python 3.11)'
        said = f"imports {error.name!r}, which {sys.executable} does not find ({where}): {remedy}"
    elif isinstance(error, SystemExit):
        said = (
            f"ends the program while it is imported ({where}): put what it does as a program "
            'under `if __name__ == "__main__":`'
        )
    else:
        said = f"cannot be imported: {describe(error)} ({where or 'in no file'})"
    return CommandError(f"{name} {said}", details="".join(traceback.format_exception(error)))


def place(error: BaseException) -> str:
    """Return ``file:line`` where an import failed, the user's own rather than a library's.

    "" if no module was found to run.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{shown(error.filename)}:{error.lineno}"
    machinery = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if not Path(shown(frame.filename)).is_absolute()]
    return f"{shown((own or frames)[-1].filename)}:{(own or frames)[-1].lineno}" if frames else ""


def shown(file: str) -> str:
    """Return a file of the current directory as it is called there; all others in full."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts:
        return str(path.relative_to(Path.cwd()))
    return file


def missing_module(name: str) -> CommandError:
    """Return the error for a module that is nowhere."""
    parent, _, last = name.rpartition(".")
    folders = list(getattr(sys.modules[parent], "__path__", [])) if parent else [str(Path.cwd())]
    hint = did_you_mean(last, (module.name for module in pkgutil.iter_modules(folders)))
    where = f"in {parent!r}" if parent else f"in {Path.cwd()} or elsewhere on Python's path"
    remedy = "correct the name" if parent else "change into its folder, or set PYTHONPATH"
    return CommandError(f"there is no module {name!r} {where}: {hint or remedy}", exit_code=2)


def missing_attribute(holder: str, found: Any, name: str, what: str) -> CommandError:
    """Return the error for a name that is not in a module, or in what was found there."""
    hint = did_you_mean(name, dir(found))
    if isinstance(found, ModuleType) and found.__file__:
        holder += f" ({shown(found.__file__)})"
    if what != "PREDICTOR" or not isinstance(found, ModuleType):
        return CommandError(f"{holder} has no {name!r}: {hint or 'correct the name'}", exit_code=2)
    there = [
        attribute
        for attribute, value in vars(found).items()
        if not attribute.startswith("_") and looks_like_a_predictor(value)
    ]
    predictors = (
        f"it has the predictors {', '.join(there)}"
        if there
        else "it has no predictor, so make one there, predictor = EstimatorPredictor(...)"
    )
    hint += " " if hint else ""
    return CommandError(f"{holder} has no {name!r}: {hint}{predictors}", exit_code=2)


def looks_like_a_predictor(value: Any) -> bool:
    """Whether a value of the user's module is a predictor, without running any of its code."""
    nothing = object()
    return not isinstance(value, type | ModuleType) and all(
        inspect.getattr_static(value, name, nothing) is not nothing for name in PREDICTOR_NAMES
    )


def require_predictor(target: str, value: Any) -> None:
    """Raise `CommandError` unless it is a predictor."""
    name = target.rpartition(":")[2].rpartition(".")[2]
    kind = type(value).__name__
    if isinstance(value, type):
        what = "a class"
        remedy = f"name a predictor made from it, predictor = {name}(...)"
    elif isinstance(value, Predictor):
        return
    elif isinstance(value, PredictorPool):
        what, remedy = "a pool", "name the predictor that it was given"
    elif any(base.__module__.startswith("tensorflow_estimator") for base in type(value).__mro__):
        what = f"an Estimator ({kind})"
        remedy = (
            "it does not pickle, so wrap the function that builds it, "
            "predictor = EstimatorPredictor(build_estimator)"
        )
    elif any(base.__module__.startswith(("keras.", "tf_keras.")) for base in type(value).__mro__):
        what = f"a Keras model ({kind})"
        remedy = (
            "it is loaded in the worker, so give its file or the function that makes it, "
            'predictor = KerasPredictor("model.keras")'
        )
    elif inspect.isroutine(value):
        what = "a function"
        remedy = (
            f"wrap it, predictor = EstimatorPredictor({name}) if it returns an Estimator, "
            f"FunctionPredictor({name}) if it returns a function that predicts; if it returns a "
            f"predictor, name that, predictor = {name}()"
        )
    else:
        what = f"of the type {kind}"
        remedy = (
            "name an EstimatorPredictor, SavedModelPredictor, KerasPredictor, FunctionPredictor or "
            "a Predictor of your own"
        )
        if len(lacks := lacking(value)) < len(PREDICTOR_NAMES):
            remedy = f"it lacks {', '.join(lacks)}"
    raise CommandError(f"{target} is {what}, not a predictor: {remedy}", exit_code=2)
