"""Finds the schedule in somebody's Python: a Celery app, or the dict of its entries. Runs what it imports."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from celery import Celery

from cli.rest import CliError

APPS = ("app", "celery", "celery_app")
SCHEDULES = ("beat_schedule", "CELERY_BEAT_SCHEDULE", "CELERYBEAT_SCHEDULE")
ZONES = ("timezone", "CELERY_TIMEZONE", "TIME_ZONE")

NO_SUN = ModuleType("ephem")
"""Stands in for what Celery's solar schedules compute with, so that one of them does not keep the others from being
read: it is told to be a problem, and never asked when it is due."""
vars(NO_SUN)["Observer"] = SimpleNamespace


def beat_schedule(source: str) -> tuple[Mapping[str, Any], Any]:
    """The entries, and the time zone that they are in, of `module`, `path/to/file.py`, or either with `:attribute`."""
    where, _, attribute = source.partition(":")
    with _tidied(where):
        module = _module(where)
        found = _attribute(module, attribute, source) if attribute else _found(module, source)
        if isinstance(found, Celery):
            found.finalize()  # entries may be added in a handler of this moment
            return dict(found.conf.beat_schedule or {}), found.timezone
    if not isinstance(found, Mapping):
        raise CliError(f"{source}: this is neither a Celery app nor the dict of a beat_schedule")
    return found, next((vars(module)[name] for name in ZONES if isinstance(vars(module).get(name), str)), "UTC")


@contextlib.contextmanager
def _tidied(where: str) -> Iterator[None]:
    """What the module prints is no answer of ours, and what it raises ends the command with one line."""
    place = str(Path(where).resolve().parent) if _is_file(where) else str(Path.cwd())
    sys.path.insert(0, place)
    sunless = "ephem" not in sys.modules and importlib.util.find_spec("ephem") is None
    if sunless:
        sys.modules["ephem"] = NO_SUN
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except CliError:
        raise
    except (Exception, SystemExit) as exc:  # it is somebody else's code; the command ends here
        raise CliError(f"{where}: it cannot be imported: {type(exc).__name__}: {exc}") from exc
    finally:
        if sunless:
            del sys.modules["ephem"]
        with contextlib.suppress(ValueError):
            sys.path.remove(place)


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def _module(where: str) -> ModuleType:
    if not _is_file(where):
        return importlib.import_module(where)
    if not Path(where).is_file():
        raise CliError(f"{where}: there is no such file")
    # by a name that nothing else has: many a project keeps its app in celery.py
    spec = importlib.util.spec_from_file_location(f"punctual_import_{Path(where).stem}", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, attribute: str, source: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise CliError(f"{source}: there is no {attribute}")
        found = getattr(found, name)
    return found


def _found(module: ModuleType, source: str) -> Any:
    """The app or the dict under one of its usual names or, else, the only app there is."""
    held = vars(module)
    for name in (*APPS, *SCHEDULES):
        if isinstance(held.get(name), Celery if name in APPS else Mapping):
            return held[name]
    apps = [each for each in held.values() if isinstance(each, Celery)]
    if len(apps) != 1:
        raise CliError(f"{source}: no Celery app and no beat_schedule is found; name it: {source}:attribute")
    return apps[0]
