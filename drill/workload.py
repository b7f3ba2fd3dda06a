"""A client that registers tasks without end, and keeps what it was answered: the history that the oracle reads.

Every slot must start: overlap is allowed, all missed slots are caught up with, attempts are repeated. An API that is
away is borne; a call whose effect is not known is kept as unknown, and its task is not touched again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import httpx

from drill.history import Answer, Call, Deed, History, Schedule

TIMEOUT = httpx.Timeout(8.0, connect=2.0)
BULK = 500
"""Tasks of one bulk call."""

SLOW_ONE_IN = 2
"""One task in so many calls by `http.request`, whose client costs a worker 10 ms; the others may travel in packs."""

SLOW_ONE_IN_BURST = 5
"""In a burst fewer do: it is not the HTTP client of the target that is drilled."""

TURN = 1.0
"""Seconds from one registration of one-time tasks to the next."""

CHANGE_EVERY = 1.5
"""Seconds from one change, pause, resume or deletion to the next."""

AHEAD = (1.0, 30.0)
"""Seconds for which most one-time tasks are registered ahead."""

AT_ONCE = 0.1
PAST = 0.05
"""The shares of one-time tasks that are due at once, and that are past by up to a minute."""

PERIODS = (1, 2, 3, 4, 5)
MINUTELY = ("* * * * *", "*/1 * * * *", "0-59 */1 * * *")
CHANGING_PERIOD = 4
CHANGING = 4
"""How many tasks are changed, paused and deleted while it goes on."""

CLOSING = 30.0
"""Seconds after which `close` begins no further try to delete what is left."""

CLOSERS = 4
"""Deletions at once."""

RETRY = {"max_attempts": 5, "backoff": 0.2, "backoff_max": 1, "jitter": False}

log = logging.getLogger(__name__)


class Workload:
    """Load of about `per_second` runs each second, half of it recurring. Its tasks' names start with `prefix`."""

    def __init__(self, api: str, key: str, witness: str, *, per_second: float = 20.0, packed: bool = False) -> None:
        """`api` is the API's base, with /api/v1; `witness` is the URL that each run calls.

        Half of the tasks call it by a target that may travel in packs, where the workers have it (`packed`).
        """
        self.packed = packed
        self.prefix = f"drill-{uuid4().hex[:8]}-"
        self.per_second = per_second
        self.witness = witness
        self.api = httpx.Client(base_url=api, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT)
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        self._numbers = count(1)
        self._stopping = threading.Event()
        self._random = random.Random()
        self._threads = [
            threading.Thread(target=self._keep_registering, name="registering"),
            threading.Thread(target=self._keep_changing, name="changing"),
        ]

    def start(self) -> None:
        """Registers what recurs, and begins to register, change and delete the rest."""
        self._register(list(self._recurring()))
        for thread in self._threads:
            thread.start()

    def burst(self, number: int, at: datetime) -> list[str]:
        """Registers `number` one-time tasks that are due at one instant; returns their names."""
        schedules = [{"type": "once", "at": at.isoformat()} for _ in range(number)]
        return self._register(schedules, slow_one_in=SLOW_ONE_IN_BURST)

    def ask(self, api: str) -> None:
        """Asks another web from here on."""
        self.api.base_url = httpx.URL(api)

    @property
    def history(self) -> History:
        """What was asked and answered so far."""
        with self._lock:
            return History(calls=tuple(sorted(self._calls, key=lambda call: call.asked_at)))

    def stop(self) -> None:
        """Registers and changes nothing more; what recurs goes on."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def close(self) -> History:
        """Deletes what is left of what it made, also what it was never told of, and returns the history.

        Read the rows before, or look only at slots due well before: what has not started is cancelled here.
        """
        self.stop()
        end = time.monotonic() + CLOSING
        while (left := self._remaining()) is None or left:
            if time.monotonic() > end:
                log.warning("%s tasks of this load could not be deleted", "some" if left is None else len(left))
                break
            if left is None:
                time.sleep(TURN)
                continue
            with ThreadPoolExecutor(CLOSERS) as pool:
                list(pool.map(self._delete, left.keys(), left.values()))
        self.api.close()
        return self.history

    def _delete(self, name: str, task: str) -> bool:
        return self._act(name, Deed.DELETE, "DELETE", f"/tasks/{task}")

    def _recurring(self) -> Iterator[Schedule]:
        """Intervals of 1 to 5 s for half of the load, and some that are due each minute."""
        begin = _now().replace(microsecond=0)
        rate = 0.0
        while rate < self.per_second / 2 - CHANGING / CHANGING_PERIOD:
            for period in PERIODS:
                # the anchor is ours, so that the slots are known even where the answer never came
                anchor = begin + timedelta(milliseconds=self._random.randrange(1000 * period))
                yield {"type": "interval", "every": period, "anchor": anchor.isoformat()}
                rate += 1 / period
        for expression in MINUTELY:
            yield {"type": "cron", "expression": expression, "timezone": "UTC"}

    def _keep_registering(self) -> None:
        """One-time tasks, most of them ahead; some of a turn singly, the others in bulk."""
        turn = time.monotonic()
        owed = 0.0
        while not self._stopping.wait(max(0.0, turn - time.monotonic())):
            owed += self.per_second / 2 * TURN
            number, owed = int(owed), owed - int(owed)
            schedules = [self._one_time() for _ in range(number)]
            for schedule in schedules[:2]:
                self._register_one(schedule)
            self._register(schedules[2:])
            turn = max(turn + TURN, time.monotonic())  # what an API that is away has cost is not made up for

    def _one_time(self) -> Schedule:
        draw = self._random.random()
        if draw < PAST:
            ahead = -self._random.uniform(1, 60)
        elif draw < PAST + AT_ONCE:
            ahead = 0.0
        else:
            ahead = self._random.uniform(*AHEAD)
        at = _now() + timedelta(seconds=ahead)
        return {"type": "once", "at": at.replace(microsecond=at.microsecond // 1000 * 1000).isoformat()}

    def _keep_changing(self) -> None:
        """A few recurring tasks live through pause, resume, change and deletion, again and again."""
        lives = [self._life() for _ in range(CHANGING)]
        while True:
            for place, life in enumerate(lives):
                if self._stopping.wait(CHANGE_EVERY):
                    return
                if not next(life, False):  # deleted, or not known to be what it should be: another takes its place
                    lives[place] = self._life()

    def _life(self) -> Iterator[bool]:
        """One step each; ends, or yields False, where the task cannot be gone on with."""
        name = self._register_one(self._changing())
        yield name in self._ids
        path = f"/tasks/{self._ids[name]}"
        yield self._act(name, Deed.PAUSE, "POST", f"{path}/pause", {})
        yield self._act(name, Deed.RESUME, "POST", f"{path}/resume", {"from": "now"})
        schedule = self._changing()
        yield self._act(name, Deed.CHANGE, "PATCH", path, {"schedule": schedule}, schedule)
        yield self._delete(name, self._ids[name])

    def _changing(self) -> Schedule:
        anchor = _now().replace(microsecond=0) + timedelta(milliseconds=self._random.randrange(1000))
        return {"type": "interval", "every": CHANGING_PERIOD, "anchor": anchor.isoformat()}

    def _fields(self, schedule: Schedule, slow_one_in: int = SLOW_ONE_IN) -> dict[str, Any]:
        number = next(self._numbers)
        name = f"{self.prefix}{number}"
        told = {"task": name}
        if number % slow_one_in and self.packed:
            call = {"target": "drill.call", "kwargs": {"url": self.witness, "body": told}}
        else:
            call = {"target": "http.request", "kwargs": {"method": "POST", "url": self.witness, "json": told}}
        return call | {
            "name": name,
            "schedule": schedule,
            "overlap": "allow",
            "catchup": {"policy": "all"},
            "retry": RETRY,
            "timeout": 30,
        }

    def _register_one(self, schedule: Schedule) -> str:
        fields = self._fields(schedule)
        self._registered([fields], *self._call("POST", "/tasks", fields), lambda body: [body])
        return str(fields["name"])

    def _register(self, schedules: Sequence[Schedule], slow_one_in: int = SLOW_ONE_IN) -> list[str]:
        """Registers in bulk; returns the names."""
        names = []
        for begin in range(0, len(schedules), BULK):
            items = [self._fields(schedule, slow_one_in) for schedule in schedules[begin : begin + BULK]]
            answered = self._call("POST", "/tasks/bulk", {"items": items})
            self._registered(items, *answered, lambda body: list(body["items"]))
            names += [str(item["name"]) for item in items]
        return names

    def _registered(
        self,
        sent: Sequence[Mapping[str, Any]],
        asked_at: datetime,
        answer: Answer,
        response: httpx.Response | None,
        tasks_of: Callable[[Any], list[Any]],
    ) -> None:
        """Keeps what became of a registration of one task or of many."""
        made = tasks_of(response.json()) if response is not None and answer == Answer.ACKNOWLEDGED else []
        schedules = {task["name"]: task["schedule"] for task in made}
        self._ids |= {task["name"]: task["id"] for task in made}
        for fields in sent:
            schedule = schedules.get(fields["name"], fields["schedule"])
            self._keep(fields["name"], Deed.REGISTER, asked_at, answer, response, schedule)

    def _act(
        self, name: str, deed: Deed, method: str, path: str, body: Any = None, schedule: Schedule | None = None
    ) -> bool:
        """A call on one task; says whether its effect is certain."""
        asked_at, answer, response = self._call(method, path, body)
        if schedule is not None and response is not None and answer == Answer.ACKNOWLEDGED:
            schedule = response.json()["schedule"]
        self._keep(name, deed, asked_at, answer, response, schedule)
        return answer == Answer.ACKNOWLEDGED

    def _call(self, method: str, path: str, body: Any = None) -> tuple[datetime, Answer, httpx.Response | None]:
        asked_at = _now()
        try:
            response = self.api.request(method, path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            return asked_at, Answer.REFUSED, None  # it was never sent
        except httpx.HTTPError:
            return asked_at, Answer.UNKNOWN, None
        if response.is_server_error:
            return asked_at, Answer.UNKNOWN, response
        return asked_at, Answer.ACKNOWLEDGED if response.is_success else Answer.REFUSED, response

    def _keep(
        self,
        name: str,
        deed: Deed,
        asked_at: datetime,
        answer: Answer,
        response: httpx.Response | None,
        schedule: Schedule | None,
    ) -> None:
        call = Call(
            task=name,
            deed=deed,
            asked_at=asked_at,
            answered_at=_now(),
            answer=answer,
            schedule=schedule,
            status=response.status_code if response is not None else None,
        )
        with self._lock:
            self._calls.append(call)

    def _remaining(self) -> dict[str, str] | None:
        """Its tasks that are not deleted, by name; None where the API does not tell."""
        found: dict[str, str] = {}
        query: dict[str, str | int] = {"q": self.prefix, "limit": 200}
        while True:
            try:
                response = self.api.get("/tasks", params=query)
            except httpx.HTTPError:
                return None
            if not response.is_success:
                return None
            page = response.json()
            found |= {task["name"]: task["id"] for task in page["items"] if task["state"] != "completed"}
            if not page["next"]:
                return found
            query["after"] = page["next"]


def _now() -> datetime:
    return datetime.now(UTC)
