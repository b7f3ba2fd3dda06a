"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from app import settings, states

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


def test_every_setting_stands_in_the_table_and_nothing_else_does():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert table == list(settings.Settings.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_apps_that_are_shown_are_those_that_are_tested():
    shown = re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", (ROOT / "docs/celery.md").read_text(), re.DOTALL)
    assert {name for name, _ in shown} == {"tests/strangers/caller.py", "tests/strangers/billing.py"}
    assert [name for name, source in shown if source != (ROOT / name).read_text()] == []


def test_the_diagram_of_a_runs_life_shows_each_allowed_move():
    drawn = set(re.findall(r"^ {4}(\w+) --> (\w+)", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    # a rescue moves a run to retrying or failed: nothing goes from running straight to pending
    allowed = {(source.value, to.value) for source, targets in states.MOVES.items() for to in targets}
    assert drawn == allowed


def test_the_chores_in_the_architecture_are_those_that_run():
    source = (ROOT / "beat/chores.py").read_text()
    running = dict(re.findall(r'Chore\(name="(\w+)", every=([\d.]+)', source))
    shown = re.findall(r"^\| `(\w+)` \| ([\d.]+) (s|h) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert {name: float(every) * (3600 if unit == "h" else 1) for name, every, unit in shown} == {
        name: float(every) for name, every in running.items()
    }


def test_the_readme_shows_the_page_of_every_document():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []
