"""`script/drill`: breaks a stack of its own while tasks fall due, and prints what became of every slot."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from deploy import processes
from deploy.processes import StartError
from drill import campaign, faults, releases, report, stores
from drill.campaign import Plan, Result
from drill.faults import Fault

INTERRUPTED = 130


def main() -> int:
    """The command line. 1 where a bound is broken, 130 where it was stopped."""
    given = _parser().parse_args()
    plan = replace(campaign.FULL if given.full or given.soak else campaign.SHORT, per_second=given.per_second)
    own_rabbitmq = stores.has_rabbitmq()
    if not own_rabbitmq:
        _tell("RabbitMQ's programs are not installed: the faults that stop it are left out")
    rows = faults.all_faults(given.seed, own_rabbitmq=own_rabbitmq)
    if not releases.is_there():
        _tell("there is no git, or no history: the upgrade from the previous release is left out")
        rows = [row for row in rows if not row.previous]
    if given.soak:
        return _drill([faults.soak(given.soak, given.seed, own_rabbitmq=own_rabbitmq)], plan, given)
    if given.list:
        print("\n".join(f"{row.name:<28} {len(row.variants) * row.hits:>3} hits   {row.bound}" for row in rows))
        return 0
    chosen = part_of(_chosen(rows, given.only, full=given.full), plan, given.part)
    return _drill(chosen, plan, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/drill", description="Breaks a stack of its own, and counts slots.")
    parser.add_argument("--full", action="store_true", help="the whole campaign, of about 95 minutes")
    parser.add_argument("--soak", type=int, metavar="MINUTES", help="one load, and a fault each minute")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults, by the beginning of their names")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="draws the same faults again")
    parser.add_argument("--part", type=_fraction, default=(1, 1), metavar="1/2", help="one of several equal parts")
    parser.add_argument("--per-second", type=float, default=20, metavar="N", help="runs that fall due each second")
    parser.add_argument("--list", action="store_true", help="names the faults and does nothing")
    parser.add_argument("--markdown", action="store_true", help="prints the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all details there, logs beside it")
    return parser


def _fraction(text: str) -> tuple[int, int]:
    part, _, of = text.partition("/")
    if not 1 <= int(part) <= int(of):
        raise ValueError(text)
    return int(part), int(of)


def _chosen(rows: Sequence[Fault], only: Sequence[str] | None, *, full: bool) -> list[Fault]:
    if only:
        unknown = [name for name in only if not any(row.name.startswith(name) for row in rows)]
        if unknown:
            sys.exit(f"drill: there is no fault {unknown[0]!r}; --list names them")
        return [row for row in rows if row.name.startswith(tuple(only))]
    return [row for row in rows if full or row.in_short]


def part_of(rows: Sequence[Fault], plan: Plan, part: tuple[int, int]) -> list[Fault]:
    """One of several parts that take about the same time."""
    number, of = part
    parts: list[list[Fault]] = [[] for _ in range(of)]
    for row in sorted(rows, key=plan.seconds, reverse=True):
        min(parts, key=lambda rows: sum(map(plan.seconds, rows))).append(row)
    return [row for row in rows if row in parts[number - 1]]


def _drill(rows: Sequence[Fault], plan: Plan, given: argparse.Namespace) -> int:
    minutes = sum(map(plan.seconds, rows)) / 60
    _tell(f"{len(rows)} faults, about {minutes:.0f} minutes, --seed {given.seed}")
    results: list[Result] = []
    logs = given.json.with_suffix(".logs") if given.json else None
    code = 0
    processes.interrupt_on_signal()
    if given.json:  # now, and not when the first result is there
        given.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        for result in campaign.run(rows, plan, given.seed, _tell, logs):
            results.append(result)
            _tell(report.line(result))
            if given.json:
                report.write(results, given.json)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except StartError as exc:
        _tell(str(exc))
        code = 1
    print(report.table(results, markdown=given.markdown))
    return code or int(not all(result.kept for result in results))


def _tell(line: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} drill: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
