"""Commits faults while a load runs, and judges what became of every slot."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from drill import checker, ledger, meter, oracle, stack, witness
from drill.checker import Judged, Offence, Outcome, Verdict
from drill.faults import Bound, Fault, Variant
from drill.history import Answer, Call
from drill.ledger import Row
from drill.oracle import Demand
from drill.stack import Stack
from drill.strikes import Site
from drill.witness import Start
from drill.workload import Workload

PROMISE = 10.0
"""Seconds from its slot in which a run starts where no fault holds it up."""

PATIENCE = 60.0
"""Seconds after which what has not started counts as lost, and not as late."""

BURST = 200
BURST_AHEAD = 3.0
STEP = 0.2
FINE_ANSWERS = frozenset({"200", "503"})
"""Of the API, whatever is broken."""

Tell = Callable[[str], None]
Key = tuple[str, datetime]
"""A task's name and a slot."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of it: all, or a little."""

    full: bool
    lead: float = 4.0
    """Seconds of load before the first hit."""
    quiet: float = 10.0
    """Seconds after the last heal in which new slots must be on time."""
    between: float = 4.0
    """Seconds between two hits; in the full campaign each fault says it itself."""
    per_second: float = 20.0
    promise: float = PROMISE
    """Seconds after which a run is late."""
    most: int = 2
    """Hits of one fault, where it is not the full campaign."""

    def variants(self, fault: Fault, drawn: random.Random) -> list[Variant]:
        """The hits, in a random order."""
        if self.full:
            hits = list(fault.variants) * fault.hits
            return drawn.sample(hits, len(hits))
        return drawn.sample(fault.variants, min(self.most, len(fault.variants)))

    def hold(self, variant: Variant) -> float:
        return variant.hold if self.full else variant.short

    def pause(self, fault: Fault, drawn: random.Random, passed: float) -> float:
        """Seconds from a heal to the next hit; `passed` since the last one."""
        usual = (fault.between if self.full else self.between) * drawn.uniform(0.8, 1.2)
        return max(usual, fault.every - passed)

    def seconds(self, fault: Fault) -> float:
        """About how long a fault takes."""
        hits = fault.variants * fault.hits if self.full else fault.variants[: self.most]
        around = 6.0  # to arm it, or to start again what was ended
        between = fault.between if self.full else self.between
        each_takes = (max(fault.every, self.hold(each) + between + around) for each in hits)
        return self.lead + self.quiet + 12 + sum(each_takes)


FULL = Plan(full=True, quiet=60.0)
SHORT = Plan(full=False)


@dataclass(kw_only=True)
class Result:
    """What came of one fault."""

    fault: str
    bound: Bound
    committed: list[checker.Fault] = field(default_factory=list)
    """Each hit, and when it was healed."""
    verdict: Verdict | None = None
    answers: dict[str, int] = field(default_factory=dict)
    growth: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What memory, files and connections were early on, and at the end; of a long fault."""
    restarts: int = 0
    broken: list[str] = field(default_factory=list)
    """What did not hold, in words."""
    waited_for: set[Key] = field(default_factory=set)
    """Slots that had no end when it was judged, after PATIENCE."""
    calls: Sequence[Call] = ()
    rows: Sequence[Row] = ()
    starts: Sequence[Start] = ()

    @property
    def kept(self) -> bool:
        return not self.broken

    @property
    def after_heal(self) -> float:
        return max((each.after_heal for each in self.verdict.faults), default=0.0) if self.verdict else 0.0

    @property
    def p99(self) -> float:
        """Of the worst hit."""
        return max((each.p99 for each in self.verdict.faults), default=0.0) if self.verdict else 0.0


def run(faults: Sequence[Fault], plan: Plan, seed: int, tell: Tell, logs: Path | None = None) -> Iterator[Result]:
    """Commits each fault; yields what came of it. A stack serves until a fault has left it broken: then its logs
    are copied below `logs`, and another takes its place."""
    current: Stack | None = None
    with ExitStack() as exits:
        for fault in faults:
            if current is None or (current.replicated, current.previous) != (fault.replicated, fault.previous):
                exits.close()
                tell("starting a stack of its own")
                current = exits.enter_context(stack.running(replicated=fault.replicated, previous=fault.previous))
            result = attack(current, fault, plan, random.Random(f"{seed} {fault.name}"), tell)
            yield result
            if not result.kept:
                if logs is not None:
                    current.copy_logs(logs / fault.name.replace(" ", "-"))
                exits.close()
                current = None


def attack(current: Stack, fault: Fault, plan: Plan, drawn: random.Random, tell: Tell) -> Result:
    """All hits of a fault under one load, then the judgement."""
    result = Result(fault=fault.name, bound=fault.bound)
    path = current.folder / f"witness.{time.monotonic_ns()}.jsonl"
    ends = current.ends()
    with witness.running(path) as seen, stack.Asker(current) as asker, meter.Meter(stack=current) as used:
        workload = Workload(current.api, current.key, seen.url, per_second=plan.per_second, packed=True)
        try:
            workload.start()
            time.sleep(plan.lead)
            site = Site(stack=current, workload=workload, random=drawn)
            _commit(site, fault, plan, tell, result)
            result.restarts = current.ends() - ends
            time.sleep(plan.quiet)
            result.verdict = _judge(current, workload, seen, result, plan.promise)
        except Exception as exc:  # noqa: BLE001 - a fault that cannot be committed must not end the campaign
            result.broken.append(f"{type(exc).__name__}: {exc}")
        finally:
            workload.close()
    result.answers = asker.answers
    result.growth = meter.growth(used.readings)
    if result.verdict is not None:
        result.broken += breaches(result, result.verdict)
    return result


def _commit(site: Site, fault: Fault, plan: Plan, tell: Tell, result: Result) -> None:
    variants = plan.variants(fault, site.random)
    for number, variant in enumerate(variants, 1):
        if fault.bursts and number % 2 == 0:
            _await_burst(site)
        begin = _now()
        tell(f"{fault.name}: hit {number} of {len(variants)}: {variant.name}")
        with variant.strike(site):
            time.sleep(plan.hold(variant))
        result.committed.append(checker.Fault(name=variant.name, begin=begin, healed=_now()))
        if number < len(variants):
            time.sleep(plan.pause(fault, site.random, (_now() - begin).total_seconds()))


def _await_burst(site: Site) -> None:
    """Returns while a burst is being fired."""
    at = _now() + timedelta(seconds=BURST_AHEAD)
    site.workload.burst(BURST, at)
    time.sleep(max(0.0, (at - _now()).total_seconds()) + site.random.uniform(0, 0.3))


def _judge(current: Stack, workload: Workload, seen: witness.Witness, result: Result, promise: float) -> Verdict:
    """Judges the slots up to now: when all have ended, or after PATIENCE."""
    asked = _now()
    slots = oracle.slots(workload.history, asked)
    wanted = {(slot.task, slot.at) for slot in slots if slot.demand == Demand.MUST and slot.overtaken_at is None}
    while left := _open(ledger.read(current.record_url, workload.prefix), wanted, asked):
        if _now() > asked + timedelta(seconds=PATIENCE):
            break
        time.sleep(STEP)
    result.waited_for = left
    result.starts = seen.starts()
    # after the starts: none of them may be without the row that was claimed before it
    result.rows = ledger.read(current.record_url, workload.prefix)
    result.calls = workload.history.calls
    until = max(_now(), asked + timedelta(seconds=promise))  # what was due when it was asked has ended, or had its time
    # up to a moment that no row can have reached, as a row without a slot is an offence
    slots = oracle.slots(workload.history, until + timedelta(seconds=1))
    return checker.check(slots, result.rows, result.starts, faults=result.committed, bound=promise, until=until)


def _open(rows: Sequence[Row], wanted: set[Key], asked: datetime) -> set[Key]:
    """The slots up to then that are without an end yet."""
    ended = {(row.task, row.slot) for row in rows if row.state in ledger.ENDED}
    going = {(row.task, row.slot) for row in rows if row.slot <= asked and row.state not in ledger.ENDED}
    return (wanted - ended) | going


def breaches(result: Result, verdict: Verdict) -> list[str]:
    """What did not hold, in words."""
    bound = result.bound
    tolerated = {Offence.EXECUTED_TWICE} if bound.executed_twice else set()
    found = [f"{count} {kind}" for kind, count in verdict.counts.items() if kind not in tolerated]
    if bound.worst is not None and verdict.worst > bound.worst:
        found.append(f"worst lateness {verdict.worst:.1f} s")
    if bound.p99 is not None and result.p99 > bound.p99:
        found.append(f"p99 of lateness {result.p99:.2f} s")
    if bound.after is not None:
        if result.after_heal > bound.after:
            found.append(f"last start {result.after_heal:.1f} s after the heal")
        if behind := sum(1 for each in verdict.judged if _came_after(each, result)):
            found.append(f"{behind} late that fell due after the heal")
    found += [
        f"{name} grew from {early:.0f} to {late:.0f}"
        for name, (early, late) in result.growth.items()
        if bound.flat and late > early * meter.GROWTH
    ]
    if not bound.restarts and result.restarts:
        found.append(f"{result.restarts} processes ended")
    fine = {"200"} if bound.unnoticed else FINE_ANSWERS
    if bad := {answer: count for answer, count in result.answers.items() if answer not in fine}:
        found.append(f"the API answered {bad}")
    if bound.unnoticed and (undone := [call for call in result.calls if call.answer != Answer.ACKNOWLEDGED]):
        found.append(f"{len(undone)} requests were not done")
    return found


def _came_after(each: Judged, result: Result) -> bool:
    return each.outcome == Outcome.LATE and not any(
        fault.begin - timedelta(seconds=PROMISE) <= each.slot.due <= fault.healed for fault in result.committed
    )


def _now() -> datetime:
    return datetime.now(UTC)
