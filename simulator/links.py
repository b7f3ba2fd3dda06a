"""What a beat has in its hands: clients of the models, over links that are slow, lose requests and answers, or deliver
them late."""

from collections.abc import Callable, Sequence
from typing import Any

import redis

from app import bell
from simulator import world
from simulator.redis_model import RedisModel
from simulator.world import Process, Reply

SOCKET_TIMEOUT = 2.0


class Link:
    """Between one process and one store."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.is_cut = False
        self.latency = process.world.random.uniform(0.0002, process.world.slowest)

    def way(self) -> tuple[float | None, float | None]:
        """How long a request is on its way there and its answer on its way back; None where it is lost."""
        if self.is_cut:
            return None, None
        chance, trouble = self.process.world.random, self.process.world.trouble
        there, back = (self.latency * chance.uniform(0.5, 3) for _ in range(2))
        fate = chance.random() / trouble if trouble else 1.0
        if fate < 0.4:  # arrives when nobody waits for it any more, after later ones
            return there + chance.uniform(1, 15), back
        if fate < 0.7:
            return there, None
        return (None, None) if fate < 1 else (there, back)


class Client:
    """Redis's client, as far as beats use it."""

    def __init__(self, link: Link, model: RedisModel, hints: "Hints") -> None:
        self.link = link
        self.model = model
        self.hints = hints

    def register_script(self, source: str) -> Callable[..., Any]:
        return lambda keys, args, client: client.execute_script(source, keys, args)

    def execute_script(self, source: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self.call(lambda: self.model.execute(source, keys, args))

    def pipeline(self, *, transaction: bool) -> "Pipeline":
        assert not transaction
        return Pipeline(self)

    def zrem(self, key: str, member: str) -> None:
        self.call(lambda: self.model.zrem(key, member))

    def pubsub(self, **_: Any) -> "Subscription":
        return Subscription(self.link, self.hints)

    def call(self, act: Callable[[], Any]) -> Any:
        """As the real client: a call that is not answered in time is sent once more, then it raises."""
        for _ in range(2):
            world.wait(self.link.process.world.random.uniform(0, 0.005))  # paused here it has sent nothing yet
            answer = world.call(self.link.way(), lambda reply: self._act(act, reply), SOCKET_TIMEOUT)
            if answer is not None:
                return answer[0]
        raise redis.TimeoutError

    def _act(self, act: Callable[[], Any], reply: Reply) -> None:
        self.model.counted["round trips"] += 1
        reply(act())


class Pipeline:
    """Commands that travel together."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.acts: list[Callable[[], Any]] = []

    def exists(self, key: str) -> None:
        self.acts.append(lambda: self.client.model.exists(key))

    def execute(self) -> list[Any]:
        answer: list[Any] = self.client.call(lambda: [act() for act in self.acts])
        return answer


class Hints:
    """Redis's pub/sub: whoever listens at this moment hears it."""

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []

    def publish(self, hint: bell.Hint) -> None:
        for subscription in self.subscriptions:
            subscription.heard(hint.encode())


class Subscription:
    """What a beat listens to while it waits."""

    def __init__(self, link: Link, hints: Hints) -> None:
        self.link = link
        self.hints = hints
        self.subscribed = False
        self.waiting: Callable[[], None] | None = None
        self.messages: list[str] = []

    def subscribe(self, _channel: str) -> None:
        self.subscribed = True
        self.hints.subscriptions.append(self)

    def get_message(self, timeout: float) -> dict[str, str] | None:
        strand = world.current()
        here = self.link.process.world
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                strand.resume()

        if not self.messages:
            self.waiting = end
            here.at(here.time + timeout, end)
            world.pause()
            self.waiting = None
        return {"data": self.messages.pop(0)} if self.messages else None

    def heard(self, data: str) -> None:
        """A hint came, after its way; one that is lost is lost."""
        here = self.link.process.world
        there, _ = self.link.way()
        if there is not None and self.link.process.alive:
            here.at(here.time + there, lambda: self._deliver(data))

    def _deliver(self, data: str) -> None:
        self.messages.append(data)
        if self.waiting is not None:
            self.waiting()
