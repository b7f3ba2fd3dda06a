"""How PostgreSQL does a statement for any parameters, as it plans one that it has prepared and is to plan once."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import psycopg

_LOOKS = re.compile(r"\b(FROM|JOIN|UPDATE) (runs|tasks)\b")
_PARAMETER = re.compile(r"%\((\w+)\)s(?!::)|%\(\w+\)s")


def looks(
    driver: psycopg.Connection[Any], statement: str, parameters: Mapping[str, Any], *, scans: bool = False
) -> Iterator[dict[str, Any]]:
    """Each look that a statement takes at `tasks` or at a partition of `runs`, as EXPLAIN tells of it.

    Scans of whole tables are forbidden to it where `scans` does not allow them, as for small tables PostgreSQL likes
    nothing better: one that can do without has a condition for an index.
    """
    numbers = itertools.count(1)

    def number(found: re.Match[str]) -> str:
        is_span = isinstance(parameters.get(found[1] or ""), timedelta)  # PostgreSQL would take it for an instant
        return f"${next(numbers)}{'::INTERVAL' if is_span else ''}"

    prepared = _PARAMETER.sub(number, statement)
    given = f"({', '.join(['NULL'] * (next(numbers) - 1))})".replace("()", "")
    driver.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    driver.execute(f"SET LOCAL enable_seqscan = {'on' if scans else 'off'}")
    driver.execute("SET LOCAL enable_partition_pruning = off")  # NULL is in no partition
    driver.execute(f"PREPARE asked AS {prepared}")
    try:
        [[plan]] = driver.execute(f"EXPLAIN (FORMAT JSON) EXECUTE asked{given}").fetchall()
    finally:
        driver.execute("DEALLOCATE asked")
    for node in _nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]):
        if "Scan" in node["Node Type"] and re.match(r"(tasks|runs_.*)$", node.get("Relation Name", "")):
            yield node


def check_all(driver: psycopg.Connection[Any], statements: Mapping[str, Mapping[str, Any]]) -> None:
    """That one plan is good for each: an index leads to all rows of tasks and runs that it looks at."""
    for statement, parameters in statements.items():
        found = list(looks(driver, statement, parameters))
        assert found or not _LOOKS.search(statement), f"no look was seen: {statement}"
        assert [look for look in found if not is_by_key(look)] == [], statement


def is_by_key(look: dict[str, Any]) -> bool:
    """Whether an index leads to the rows."""
    return bool({"Index Cond", "Recheck Cond"} & look.keys())


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)
