"""What a target takes: read from its function by the worker that offers it, held against a task's arguments. Pure."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Parameter = Mapping[str, Any]
"""`name`, `kind`, `default` and `annotation`; the last two are text, or None where there is none."""

KINDS = ("positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword")
POSITIONAL = {"positional_only", "positional_or_keyword"}
NAMED = {"positional_or_keyword", "keyword_only"}


def describe(function: Callable[..., Any]) -> tuple[str, list[dict[str, Any]] | None]:
    """A function's signature as text and as parameters; these are None where Python cannot tell."""
    try:
        signature = inspect.signature(function)
        return str(signature), [_parameter(parameter) for parameter in signature.parameters.values()]
    except Exception:  # noqa: BLE001 - a default that shows itself is a target's own code
        return "(...)", None


def misfits(
    target: str, parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What of the arguments does not fit, by field; empty where all of it does."""
    positional = [parameter for parameter in parameters if parameter["kind"] in POSITIONAL]
    given = {parameter["name"] for parameter in positional[: len(args)]}
    problems = dict(_unexpected(target, parameters, given, kwargs))
    missing = [
        parameter
        for parameter in parameters
        if parameter["kind"] in POSITIONAL | NAMED and parameter["default"] is None and parameter["name"] not in given
    ]
    problems |= {
        parameter["name"]: [f"{target} needs it."]
        for parameter in missing
        if parameter["kind"] in NAMED and parameter["name"] not in kwargs
    }
    found: dict[str, Any] = {"kwargs": problems} if problems else {}
    sentences = list(_places(target, parameters, positional, args, missing))
    return found | ({"args": sentences} if sentences else {})


def _unexpected(
    target: str, parameters: Sequence[Parameter], given: set[str], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """What is wrong with the names that stand in kwargs."""
    named = [parameter["name"] for parameter in parameters if parameter["kind"] in NAMED]
    takes_any = any(parameter["kind"] == "var_keyword" for parameter in parameters)
    for name in kwargs:
        if name in named and name in given:
            yield name, ["It is given twice: args hold it too."]
        elif name not in named and not takes_any:
            close = difflib.get_close_matches(name, named, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" It takes {', '.join(named)}." if named else ""
            yield name, [f"{target} does not take it.{hint}"]


def _places(
    target: str,
    parameters: Sequence[Parameter],
    positional: Sequence[Parameter],
    args: Sequence[Any],
    missing: Sequence[Parameter],
) -> Iterator[str]:
    """What is wrong with how many args there are."""
    takes_any = any(parameter["kind"] == "var_positional" for parameter in parameters)
    if len(args) > len(positional) and not takes_any:
        yield f"{target} takes {len(positional) or 'none'}, {len(args)} are given."
    names = [parameter["name"] for parameter in missing if parameter["kind"] == "positional_only"]
    if names:
        yield f"{target} needs {', '.join(names)}, by position."


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    annotation = parameter.annotation
    if annotation is not empty and not isinstance(annotation, str):
        annotation = inspect.formatannotation(annotation)
    return {
        "name": parameter.name,
        "kind": parameter.kind.name.lower(),
        "default": None if parameter.default is empty else repr(parameter.default),
        "annotation": None if annotation is empty else annotation,
    }
