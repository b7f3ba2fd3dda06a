"""Finds a task by what a person calls it: its id or its name."""

import contextlib
from http import HTTPStatus
from uuid import UUID

from cli.rest import Api, CliError, Json, Refused


def task(api: Api, key: str) -> Json:
    """The task of this id or, else, of this name."""
    found = _by_id(api, key) if is_id(key) else None
    if found is None:
        # the server looks for a part of the name; a name is a part of itself
        found = next((each for each in api.items("/tasks", {"q": key}) if each["name"] == key), None)
    if found is None:
        raise CliError(f"There is no task {key!r}.")
    return found


def task_id(api: Api, key: str) -> str:
    """The id of the task of this name; an id is taken as it is, as its task may be deleted."""
    return key if is_id(key) else str(task(api, key)["id"])


def is_id(key: str) -> bool:
    with contextlib.suppress(ValueError):
        return str(UUID(key)) == key.lower()
    return False


def _by_id(api: Api, key: str) -> Json | None:
    try:
        found: Json = api.get(f"/tasks/{key}")
    except Refused as exc:
        if exc.status == HTTPStatus.NOT_FOUND:
            return None
        raise
    return found
