import re
from dataclasses import replace
from pathlib import Path

from bench import figures, sizing
from bench.__main__ import BENCHMARKS, GROUPS, chosen
from bench.figures import STOCK, Figure, Row

ROOT = Path(__file__).parent.parent.parent


def test_a_time_is_better_when_it_is_shorter_and_a_rate_when_it_is_higher():
    def row(unit: str, value: float) -> Row:
        return Row(what="x", unit=unit, system="any", values=[value])

    assert figures.ratio(row("s", 2.0), row("s", 10.0)) == 5.0
    assert figures.ratio(row("runs/s", 2000.0), row("runs/s", 500.0)) == 4.0
    assert figures.ratio(row("ms", 3.0), row("ms", -300.0)) is None


def test_a_row_holds_all_rounds_of_its_figure_and_of_its_system():
    rows = figures.rows(
        [
            Figure(what="last started", value=3.0, unit="s"),
            Figure(what="last started", value=9.0, unit="s", system=STOCK),
            Figure(what="last started", value=1.0, unit="s"),
            Figure(what="last started", value=2.0, unit="s"),
        ]
    )
    assert [(row.system, row.values, row.median) for row in rows] == [
        ("punctual", [3.0, 1.0, 2.0], 2.0),
        ("stock", [9.0], 9.0),
    ]
    ours, stock = figures.table(rows).splitlines()[1:]
    assert ours.split()[-5:] == ["2.00", "1.00", "3.00", "s", "4.5x"]
    assert stock.startswith("last started, stock ")
    assert stock.split()[-1] == "s"


def test_each_name_is_measured_once_and_a_group_stands_for_its_members():
    assert chosen([]) == list(BENCHMARKS)
    assert chosen(["stock", "burst"]) == ["steady", "stock-steady", "burst", "stock-burst"]
    assert {member for members in GROUPS.values() for member in members} <= BENCHMARKS.keys()


def test_the_page_names_every_benchmark():
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    table = page.partition("## The benchmarks")[2].partition("Groups:")[0]
    named = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else "")
    }
    assert named == BENCHMARKS.keys()
    assert {f"`{group}`" for group in GROUPS} <= set(re.findall(r"`[a-z]+`", page))


def test_the_page_of_scaling_shows_what_was_measured_and_what_follows_from_it():
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert sizing.measured() in page
    assert sizing.table(sizing.LOADS, sizing.Prices()) in page


def test_ten_times_the_runs_take_ten_times_the_processors_and_cost_the_same_each():
    one = sizing.Load(tasks=0, per_second=1_000, packed=0.5)
    less, more = (sizing.need(load, sizing.Prices()) for load in (one, replace(one, per_second=10_000)))
    assert round(more.postgresql_cores / less.postgresql_cores, 6) == 10
    assert round(more.usd_per_million_runs / less.usd_per_million_runs, 6) == 1


def test_packs_spare_processors_and_transactions():
    single, packed = (sizing.need(sizing.Load(tasks=0, per_second=1_000, packed=p), sizing.Prices()) for p in (0, 1))
    assert packed.postgresql_cores < single.postgresql_cores / 2
    assert packed.transactions < single.transactions / 10
