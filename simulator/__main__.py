"""`python -m simulator`: runs many beats through trouble and judges, or says what they ask of the stores."""

import argparse
import gc
import sys
import time

from simulator import costs
from simulator.firing import FiringSystem
from simulator.judge import judge
from simulator.world import World

AFTERWARDS = 10.0
"""Seconds for the last slots that are judged."""

SIZES = ((2, 16, 0), (2, 64, 0), (2, 256, 0), (8, 256, 0), (32, 256, 0), (2, 16, 10), (2, 16, 100), (2, 64, 100),
         (8, 64, 100), (8, 64, 400), (8, 256, 400))  # fmt: skip
"""Beats, buckets, and runs per second."""


def trouble(given: argparse.Namespace) -> int:
    """One run through trouble. Returns 1 where a slot was doubled, lost or early, or a run was never sent."""
    began = time.process_time()
    system = FiringSystem(World(given.seed), given.buckets)
    system.register(given.tasks, given.every)
    system.join(given.beats)
    for _ in range(given.emptied):
        system.world.at(system.world.random.uniform(5.0, 5.0 + given.seconds), system.redis.clear)
    gc.freeze()
    system.disturb(given.seconds, given.beats)
    system.settle()
    until = system.world.time
    system.run(AFTERWARDS)
    verdict = judge(system, until)
    print(f"seed {given.seed}: {len(system.beats)} beats came, {len(system.alive)} are left; {until:.0f} s went by")
    print(f"  {verdict}")
    print(f"  {len(system.failures.texts)} errors logged; {time.process_time() - began:.0f} s of processor")
    return int(bool(verdict.faults or system.failures.texts))


def tables() -> int:
    """What beats ask of the stores, as a table."""
    print("| beats | buckets | runs/s | ticks/s of a beat | Redis: trips/s | keys/s | PostgreSQL: trips/s | trans./s |")
    print("|---|---|---|---|---|---|---|---|")
    for beats, buckets, rate in SIZES:
        cost = costs.measure(beats, buckets, rate)
        figures = (cost.ticks / beats, cost.redis_round_trips, cost.redis_keys, cost.database_round_trips)
        shown = " | ".join(f"{figure:,.0f}" for figure in (*figures, cost.database_transactions))
        print(f"| {beats} | {buckets} | {rate} | {shown} |")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--beats", type=int, default=200)
    parser.add_argument("--buckets", type=int, default=2048)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two slots of a task (default: 60)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long the trouble lasts, simulated (default: 20)"
    )
    parser.add_argument("--emptied", type=int, default=2, help="how often Redis is emptied (default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--costs", action="store_true", help="no trouble: what beats ask of the stores, by their number"
    )
    given = parser.parse_args()
    return tables() if given.costs else trouble(given)


if __name__ == "__main__":
    sys.exit(main())
