"""`script/bench`: runs the benchmarks and prints their table. Bounded in count and time, on loopback only."""

import argparse
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import figures, stage
from deploy import processes

BENCHMARKS = {
    "soon": "bench.lateness:soon",
    "steady": "bench.lateness:steady",
    "stock-steady": "bench.against:steady",
    "burst": "bench.bursts:burst",
    "stock-burst": "bench.against:burst",
    "burst-50k": "bench.bursts:burst_50k",
    "burst-100k": "bench.bursts:burst_100k",
    "burst-unpacked": "bench.bursts:burst_unpacked",
    "backlog": "bench.bursts:backlog",
    "backlog-unpacked": "bench.bursts:backlog_unpacked",
    "backlog-packed": "bench.bursts:backlog_packed",
    "stock-backlog": "bench.against:backlog",
    "size-1k": "bench.sizes:size_1k",
    "size-100k": "bench.sizes:size_100k",
    "size-1m": "bench.sizes:size_1m",
    "retention": "bench.retention:retention",
    "pages": "bench.pages:pages",
    "api": "bench.api:api",
    "day": "bench.days:day",
    "capacity-packed": "bench.capacity:packed",
    "capacity-single": "bench.capacity:single",
    "capacity-steady": "bench.capacity:steady",
    "capacity-tasks": "bench.capacity:tasks",
}
"""Each measures once and returns its figures. They read the settings, and so are found when the stores stand."""

GROUPS = {
    "stock": ("burst", "stock-burst", "steady", "stock-steady"),
    "backlogs": ("backlog", "backlog-unpacked", "backlog-packed", "stock-backlog"),
    "size": ("size-1k", "size-100k", "size-1m"),
    "capacity": ("capacity-packed", "capacity-single", "capacity-steady", "capacity-tasks"),
}


def chosen(names: Sequence[str]) -> list[str]:
    """The benchmarks that are meant, each once, in the order of the list above."""
    wanted = {member for name in names for member in GROUPS.get(name, (name,))}
    return [name for name in BENCHMARKS if name in wanted or not wanted]


def measure(names: Sequence[str], rounds: int) -> list[figures.Figure]:
    """Each benchmark `rounds` times, in turns, so that a noisy minute does not fall on one of them alone.

    What fails is said and left out; its neighbours go on.
    """
    measured: list[figures.Figure] = []
    for number in range(rounds):
        for name in names:
            started = time.monotonic()
            stage.LAST_WORDS.clear()
            try:
                stage.clean()
                found = pkgutil.resolve_name(BENCHMARKS[name])()
            except (stage.Missing, processes.StartError) as exc:
                said = "".join(f"\n    {line}" for line in stage.LAST_WORDS)
                print(f"bench: round {number + 1} of {name} gave nothing: {exc}{said}", file=sys.stderr, flush=True)
                continue
            told = ", ".join(f"{figure.value:,.2f} {figure.unit}" for figure in found)
            took = time.monotonic() - started
            print(f"round {number + 1} of {rounds}: {name} took {took:.0f} s: {told}", file=sys.stderr, flush=True)
            measured += found
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench", description="Measures Punctual on this machine.")
    known = [*BENCHMARKS, *GROUPS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure, or all of it: {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every value is written to")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    processes.interrupt_on_signal()
    names = chosen(given.names)
    try:
        with stage.stores():
            rows = figures.rows(measure(names, given.rounds))
    except KeyboardInterrupt:
        return 130
    except (stage.NotOurs, processes.StartError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print(f"\n{figures.table(rows)}")
    if given.json:
        figures.save(rows, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
