"""Beats that do nothing but hold leases, and who of them believes what. Theirs is the real `beat.leases`."""

import redis

from beat.leases import Leases
from simulator import world
from simulator.links import SOCKET_TIMEOUT, Client, Hints, Link
from simulator.redis_model import RedisModel
from simulator.world import Process, World

TICK = 0.5

SETTLED = 5.0
"""Seconds within which, after the last trouble, every bucket has its one owner and shares are fair."""


class Beat(Process):
    """One process, whose life is to renew."""

    def __init__(self, system: "System", name: str) -> None:
        super().__init__(system.world, name)
        self.system = system
        self.client = Client(Link(self), system.redis, system.hints)
        self.leases = system.kind(self.client, system.buckets, self.monotonic, name)
        self.begin()

    def begin(self) -> None:
        self.spawn(self._live, within=TICK)

    def turned(self) -> None:
        self.system.check(self)

    def _live(self) -> None:
        while not self.stopping:
            try:
                self.leases.renew()
            except redis.RedisError:
                self.leases.drop()
            world.wait(self.world.random.uniform(0.05, TICK))
        self.leases.release()
        self.alive = False


class System:
    """The beats and their Redis."""

    beat: type[Beat] = Beat

    def __init__(self, world: World, buckets: int, kind: type[Leases] = Leases) -> None:
        self.world = world
        self.buckets = buckets
        self.kind = kind
        self.redis = RedisModel(world.clock())
        self.hints = Hints()
        self.beats: list[Beat] = []
        self.claims: list[set[Beat]] = [set() for _ in range(buckets)]
        self.violations: list[tuple[float, int, str, str]] = []

    def join(self, number: int = 1) -> list[Beat]:
        joined = [self.beat(self, f"beat{len(self.beats) + n}") for n in range(number)]
        self.beats += joined
        return joined

    @property
    def alive(self) -> list[Beat]:
        return [beat for beat in self.beats if beat.alive]

    def random_beat(self) -> Beat:
        return self.world.random.choice(self.alive)

    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    def check(self, beat: Beat) -> None:
        """A beat may have come to believe something: nobody else may believe the same now."""
        for bucket in beat.leases.held():
            claims = self.claims[bucket]
            claims.add(beat)
            for other in claims - {beat} if len(claims) > 1 else ():
                if not other.alive or bucket not in other.leases.until:
                    claims.discard(other)
                elif bucket in other.leases.held():
                    self.violations.append((self.world.time, bucket, beat.name, other.name))

    def shares(self) -> dict[Beat, set[int]]:
        return {beat: beat.leases.held() for beat in self.alive}

    def is_settled(self) -> bool:
        held = list(self.shares().values())
        sizes = [len(one) for one in held]
        return sum(sizes) == len(set[int]().union(*held)) == self.buckets and max(sizes) - min(sizes) <= 1

    def time_to_settle(self, within: float = 60.0, every: float = 0.05) -> float:
        started = self.world.time
        while not self.is_settled():
            if self.world.time - started > within:
                raise TimeoutError(f"not settled within {within} s")
            self.run(every)
        return self.world.time - started

    def disturb(self, seconds: float, most: int) -> None:
        """Beats join, die, stop, pause and wake, each one each few seconds; the network is bad at times."""
        here = self.world
        chance = here.random
        end = here.time + seconds
        while here.time < end:
            here.trouble = chance.choice([0, 0, 0.02, 0.3])
            for _ in range(chance.randint(1, 10)):
                self.run(chance.uniform(0, 8 / most))
                self._one_deed(most)
        here.trouble = 0.0

    def _one_deed(self, most: int) -> None:
        chance = self.world.random
        deed = chance.choice(["join", "join", "kill", "stop", "pause", "pause", "pause"])
        if deed == "join" and len(self.alive) < most:
            self.join(chance.randint(1, max(1, most // 10)))
        elif deed == "pause":
            for beat in chance.sample(self.alive, min(len(self.alive), chance.randint(1, 3))):
                beat.pause(chance.choice([0.1, 0.5, 1, 2.9, 3, 3.5, 4, 4.5, 10, 30]) * chance.uniform(0.9, 1.1))
        elif deed in {"kill", "stop"} and len(staying := [one for one in self.alive if not one.stopping]) > 1:
            beat = chance.choice(staying)
            beat.kill() if deed == "kill" else beat.stop()

    def settle(self) -> None:
        """Waits for the end of the trouble: beats wake, late requests arrive, what was sent has timed out or was
        answered. From then on what is left of it must be mended in time."""
        quiet_at = max([self.world.last_late, *(beat.paused_until for beat in self.alive)])
        self.run(max(0.0, quiet_at - self.world.time) + 2 * SOCKET_TIMEOUT)
        self.run(SETTLED)
