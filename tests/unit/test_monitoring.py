"""The alerts and dashboards as Prometheus reads them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
MONITORING = ROOT / "deploy/monitoring"
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "grafana/punctual.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def promtool(*given):
    """What promtool says, and whether it is content."""
    path = shutil.which("promtool") or shutil.which("promtool", path=ROOT / ".data/prometheus/usr/bin")
    if path is None:
        pytest.skip("needs promtool: Debian's package prometheus has it")
    done = subprocess.run([path, *given], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_prometheus_takes_its_configuration_and_the_rules():
    code, said = promtool("check", "config", str(MONITORING / "prometheus.yml"))
    assert code == 0, said
    assert f"{len(RULES)} rules found" in said


def test_each_alert_fires_when_it_should_and_not_before():
    code, said = promtool("test", "rules", str(MONITORING / "rules_test.yml"))
    assert code == 0, said


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names


def test_each_alert_stands_in_the_runbook_and_no_other_does():
    runbook = (ROOT / "docs/operations.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", runbook, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_each_query_of_the_dashboard_can_be_read(tmp_path):
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert len(queries) > 30
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    code, said = promtool("check", "rules", str(path))
    assert code == 0, said


def test_each_panel_says_what_it_shows_and_none_lies_on_another():
    assert [panel["title"] for panel in PANELS if not panel["description"].endswith(".")] == []
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
