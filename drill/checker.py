"""Compares what had to run with what was recorded and what the witness saw. Pure.

A slot is on time where its first start, by the witness's clock, lies within `bound` seconds after it was due. What
is late because of a fault is judged by the caller, against that fault's own bound: see `FaultVerdict`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from drill import opinion
from drill.ledger import ENDED, Row
from drill.oracle import Demand, Slot
from drill.witness import Start

SHOWN = 5
"""How many offences of a kind are told."""


class Outcome(StrEnum):
    """What became of a slot."""

    ON_TIME = "on time"
    EARLY = "early"
    LATE = "late"
    MISSED = "recorded as missed"
    LOST = "lost"
    """It never started, and no record says that it was not meant to."""
    OVERTAKEN = "overtaken"
    """A fault or a moment held it up until its task was paused or deleted, which cancels it."""
    OPEN = "open"
    """It has not started, and need not have."""


class Offence(StrEnum):
    """What must never be seen."""

    LOST = "lost"
    MISSED = "recorded as missed"
    """Of a slot that must start. What catch-up may leave out is not demanded."""
    LATE = "late outside of any fault"
    EARLY = "early"
    RECORDED_TWICE = "recorded twice"
    EXECUTED_TWICE = "executed twice"
    """More starts than attempts that were recorded."""
    PHANTOM = "without a slot"
    """A run or a start that no slot asks for, or that no run stands for."""
    UNENDED = "without an end"
    """It has started, and its outcome is not recorded."""
    DISAGREEMENT = "disagreement"
    """The second opinion differs: the checker is at fault."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that was broken for a while."""

    name: str
    begin: datetime
    healed: datetime


@dataclass(frozen=True, kw_only=True)
class FaultVerdict:
    """How slots fared in one fault. Seconds."""

    name: str
    slots: int
    """Due within it."""
    on_time: int
    late: int
    worst: float
    """Worst lateness of those that were due within it."""
    p99: float
    """What 99 in a hundred of these stay within."""
    after_heal: float
    """From the heal to the last start of those that waited at it; 0 where none did."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A slot with what became of it."""

    slot: Slot
    outcome: Outcome
    lateness: float | None
    """Seconds from when it was due to its first start; None where there is none."""
    started_at: datetime | None
    starts: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found. Counts are of slots that must run, but for offences, which any slot can commit."""

    slots: int
    on_time: int
    late: int
    overtaken: int
    retried: int
    """Slots that started more than once, as recorded attempts."""
    worst: float
    """Worst lateness of all, in seconds."""
    worst_outside: float
    """Worst lateness of slots that no fault touched."""
    faults: tuple[FaultVerdict, ...]
    counts: Counter[Offence]
    offences: tuple[str, ...]
    """The first few of each kind, in words."""
    judged: tuple[Judged, ...]
    """Each slot, for whoever looks closer."""

    @property
    def valid(self) -> bool:
        return not self.counts.total()

    @property
    def lost(self) -> int:
        return self.counts[Offence.LOST]

    @property
    def doubled(self) -> int:
        return self.counts[Offence.RECORDED_TWICE] + self.counts[Offence.EXECUTED_TWICE]


def check(
    slots: Sequence[Slot],
    rows: Sequence[Row],
    starts: Sequence[Start],
    *,
    faults: Sequence[Fault] = (),
    bound: float = 10.0,
    early: float = 0.05,
    recovery: float = 10.0,
    until: datetime,
) -> Verdict:
    """Judges each slot. Demanded are those due by `until` - `bound`.

    Read the starts at `until` or later, and the rows after them: a start must find the attempt that it stands in. Both
    are those of the slots' load alone.

    A late slot is a fault's where the fault began before its time was up, and it was due at most `recovery`
    seconds after the heal.
    """
    judge = _Judge(faults, timedelta(seconds=bound), timedelta(seconds=early), timedelta(seconds=recovery), until)
    judge.join(slots, rows, starts)
    judged = [judge.slot(slot) for slot in slots]
    found = judge.found(judged)
    for told in opinion.disagreements(slots, starts, found, bound=judge.bound, early=judge.early):
        judge.note(Offence.DISAGREEMENT, told)
    return judge.verdict(judged)


class _Judge:
    """Holds the joined records while they are judged."""

    def __init__(
        self, faults: Sequence[Fault], bound: timedelta, early: timedelta, recovery: timedelta, until: datetime
    ) -> None:
        self.faults = faults
        self.bound = bound
        self.early = early
        self.recovery = recovery
        self.until = until
        self.rows: dict[tuple[str, datetime], list[Row]] = defaultdict(list)
        self.starts: dict[str, list[Start]] = defaultdict(list)
        self.covered: set[tuple[str, datetime]] = set()
        self.counts: Counter[Offence] = Counter()
        self.told: dict[Offence, list[str]] = defaultdict(list)
        self.retried = 0
        self.strays: Counter[str] = Counter()
        """Starts that belong to no slot, per task."""

    def join(self, slots: Sequence[Slot], rows: Sequence[Row], starts: Sequence[Start]) -> None:
        """Finds to each slot its rows, to each row its starts; notes what belongs to nothing."""
        for row in rows:
            self.rows[row.task, row.slot].append(row)
        for start in starts:
            self.starts[start.run].append(start)
        known = {(slot.task, slot.at) for slot in slots}
        for row in rows:
            if (row.task, row.slot) not in known:
                self.note(Offence.PHANTOM, f"{_name(row.task, row.slot)} has a run, {row.state}, trigger {row.trigger}")
                self.strays[row.task] += len(self.starts[row.run])
        recorded = {row.run for row in rows}
        for start in starts:
            if start.run not in recorded:
                self.note(Offence.PHANTOM, f"{start.task} started at {start.at}: its run {start.run} is not recorded")
                self.strays[start.task] += 1
        self._cover(slots, rows)

    def _cover(self, slots: Sequence[Slot], rows: Sequence[Row]) -> None:
        """Notes the slots that have no row because a later one stands for them too."""
        by_task: dict[str, list[datetime]] = defaultdict(list)
        for slot in slots:
            by_task[slot.task].append(slot.at)
        for row in rows:
            if row.missed:
                before = sorted(at for at in by_task[row.task] if at < row.slot)
                self.covered |= {(row.task, at) for at in before[-row.missed :]}

    def slot(self, slot: Slot) -> Judged:
        """Judges one slot."""
        rows = self.rows.get((slot.task, slot.at), [])
        by_run = {row.run: self.starts.get(row.run, []) for row in rows}
        starts = sorted(start.at for found in by_run.values() for start in found)
        if len(rows) > 1:
            self.note(Offence.RECORDED_TWICE, f"{_named(slot)} has {len(rows)} runs")
        if not starts:
            return self._judged(slot, self._unstarted(slot, rows), starts)
        self._started(slot, rows, starts)
        if starts[0] < slot.at - self.early:
            self.note(Offence.EARLY, f"{_named(slot)} started {(slot.at - starts[0]).total_seconds():.3f} s early")
            return self._judged(slot, Outcome.EARLY, starts)
        if starts[0] - slot.due <= self.bound:
            return self._judged(slot, Outcome.ON_TIME, starts)
        if slot.demand == Demand.MUST and not self._by_fault(slot):
            lateness = (starts[0] - slot.due).total_seconds()
            self.note(Offence.LATE, f"{_named(slot)} started {lateness:.1f} s late")
        return self._judged(slot, Outcome.LATE, starts)

    def _started(self, slot: Slot, rows: list[Row], starts: list[datetime]) -> None:
        """Notes what is wrong with a slot that has started."""
        if slot.demand == Demand.PAUSED:
            self.note(Offence.PHANTOM, f"{_named(slot)} started while its task was paused")
        claims = max(row.claims for row in rows)
        if len(starts) > claims:
            self.note(Offence.EXECUTED_TWICE, f"{_named(slot)} started {len(starts)} times in {claims} attempts")
        elif len(starts) > 1:
            self.retried += 1
        unended = [row.state for row in rows if row.state not in ENDED]
        if unended and starts[-1] <= self.until - self.bound:
            self.note(Offence.UNENDED, f"{_named(slot)} is {unended[0]}")

    def _unstarted(self, slot: Slot, rows: list[Row]) -> Outcome:
        """What a slot is that has not started."""
        states = {row.state for row in rows}
        if slot.demand == Demand.PAUSED and states - {"skipped", "cancelled"}:
            self.note(Offence.PHANTOM, f"{_named(slot)} is {states} though its task was paused")
        if slot.demand != Demand.MUST or slot.due > self.until - self.bound:
            return Outcome.OPEN
        if self._was_overtaken(slot) and states <= {"skipped", "cancelled"}:
            return Outcome.OVERTAKEN
        if states == {"skipped"} or (not rows and (slot.task, slot.at) in self.covered):
            self.note(Offence.MISSED, f"{_named(slot)} is recorded as missed")
            return Outcome.MISSED
        self.note(Offence.LOST, f"{_named(slot)} never started: its run is {', '.join(states) or 'not recorded'}")
        return Outcome.LOST

    def _was_overtaken(self, slot: Slot) -> bool:
        """Whether its task was paused or deleted while the slot may have been on its way still."""
        if slot.overtaken_at is None:
            return False
        return slot.overtaken_at - slot.due <= self.bound or any(
            self._touches(fault, slot) and slot.overtaken_at <= fault.healed + self.recovery for fault in self.faults
        )

    def _by_fault(self, slot: Slot) -> bool:
        return any(self._touches(fault, slot) for fault in self.faults)

    def _touches(self, fault: Fault, slot: Slot) -> bool:
        return fault.begin - self.bound <= slot.due <= fault.healed + self.recovery

    def _judged(self, slot: Slot, outcome: Outcome, starts: list[datetime]) -> Judged:
        first = starts[0] if starts else None
        lateness = max(0.0, (first - slot.due).total_seconds()) if first else None
        return Judged(slot=slot, outcome=outcome, lateness=lateness, started_at=first, starts=len(starts))

    def found(self, judged: Sequence[Judged]) -> dict[str, opinion.Found]:
        """What was found per task, for the second opinion to agree with or not."""
        starts = self.strays.copy()
        in_time: Counter[str] = Counter()
        for each in judged:
            starts[each.slot.task] += each.starts
            in_time[each.slot.task] += each.outcome == Outcome.ON_TIME and each.slot.demand == Demand.MUST
        return {task: opinion.Found(in_time=in_time[task], starts=starts[task]) for task in in_time}

    def note(self, offence: Offence, told: str) -> None:
        self.counts[offence] += 1
        if len(self.told[offence]) < SHOWN:
            self.told[offence].append(f"{offence}: {told}")

    def verdict(self, judged: Sequence[Judged]) -> Verdict:
        must = [each for each in judged if each.slot.demand == Demand.MUST and each.outcome != Outcome.OPEN]
        outcomes = Counter(each.outcome for each in must)
        return Verdict(
            slots=len(must),
            on_time=outcomes[Outcome.ON_TIME],
            late=outcomes[Outcome.LATE],
            overtaken=outcomes[Outcome.OVERTAKEN],
            retried=self.retried,
            worst=_worst(must),
            worst_outside=_worst(each for each in must if not self._by_fault(each.slot)),
            faults=tuple(_of_fault(fault, must) for fault in self.faults),
            counts=self.counts,
            offences=tuple(told for kind in Offence for told in self.told[kind]),
            judged=tuple(judged),
        )


def _of_fault(fault: Fault, judged: Sequence[Judged]) -> FaultVerdict:
    within = [each for each in judged if fault.begin <= each.slot.due <= fault.healed]
    outcomes = Counter(each.outcome for each in within)
    waited = [
        each.started_at - fault.healed
        for each in judged
        if each.slot.due <= fault.healed and each.started_at and each.started_at > fault.healed
    ]
    return FaultVerdict(
        name=fault.name,
        slots=len(within),
        on_time=outcomes[Outcome.ON_TIME],
        late=outcomes[Outcome.LATE],
        worst=_worst(within),
        p99=_p99(within),
        after_heal=max(waited, default=timedelta(0)).total_seconds(),
    )


def _worst(judged: Iterable[Judged]) -> float:
    return max((each.lateness for each in judged if each.lateness is not None), default=0.0)


def _p99(judged: Iterable[Judged]) -> float:
    late = sorted(each.lateness for each in judged if each.lateness is not None)
    return late[(len(late) * 99 + 99) // 100 - 1] if late else 0.0


def _named(slot: Slot) -> str:
    return _name(slot.task, slot.at)


def _name(task: str, at: datetime) -> str:
    return f"{task} at {at:%Y-%m-%d %H:%M:%S.%f}"
