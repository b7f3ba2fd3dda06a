"""The workflows of .github: what they run is there, with stores that are supported and no more rights than it takes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
JOBS = {f"{flow}.{name}": job for flow, each in WORKFLOWS.items() for name, job in each["jobs"].items()}
STEPS = [step for job in JOBS.values() for step in job.get("steps", ())]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
MAY_WRITE = {"release.image": "packages", "release.notes": "contents"}


@pytest.mark.parametrize("name", JOBS)
def test_each_job_has_an_end_and_the_least_rights(name):
    job = JOBS[name]
    assert "uses" in job or 0 < job["timeout-minutes"] <= 90
    assert WORKFLOWS[name.partition(".")[0]]["permissions"] == {}
    writes = {right for right, level in job["permissions"].items() if level != "read"}
    assert writes == ({MAY_WRITE[name]} if name in MAY_WRITE else set())


def test_each_script_that_a_step_runs_is_there_and_can_be_run():
    named = {word for step in STEPS for word in re.findall(r"(?:^|\s)((?:script|\.ci)/\w+)", step.get("run", ""))}
    assert {".ci/run", ".ci/scan", ".ci/notes", "script/setup", "script/test"} == named
    assert [name for name in named if not (ROOT / name).stat().st_mode & 0o100] == []


def test_the_linters_are_those_of_script_test():
    lint = next(step["run"] for step in JOBS["ci.lint"]["steps"] if "ruff" in step.get("run", ""))
    checks = [line for line in lint.splitlines() if not line.startswith("export ")]
    lines = [line.strip() for line in (ROOT / "script/test").read_text().splitlines()]
    assert [line for line in lines if line in checks] == checks


def test_all_tests_run_with_the_stores_of_compose_and_with_the_oldest_that_are_supported():
    newest, oldest = JOBS["ci.tests"]["strategy"]["matrix"]["include"]
    page = (ROOT / "docs/operations.md").read_text()
    for store, name in {"PostgreSQL": "postgres", "Redis": "redis"}.items():
        assert re.search(rf"\*\*{store}\*\* (\S+) or newer", page)[1] == oldest[name]
        assert re.search(r":(\d+)", COMPOSE[name]["image"])[1] == newest[name]
    # of RabbitMQ Debian 12 has the oldest one, and Debian 13 that of compose
    assert re.search(r"\*\*RabbitMQ\*\* (\S+) or newer", page)[1] == "3.10"
    assert COMPOSE["rabbitmq"]["image"].startswith("rabbitmq:4")
    assert (oldest["python"], newest["python"]) == ("3.11-bookworm", "3.13-trixie")


def test_all_tests_have_the_history_in_which_the_previous_release_is():
    [checkout] = [step for step in JOBS["ci.tests"]["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["fetch-depth"] == 0


def test_unit_tests_run_on_each_python_that_is_supported():
    wanted = re.search(r'^requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    image = re.search(r"^FROM python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    tested = JOBS["ci.unit"]["strategy"]["matrix"]["python"]
    assert (tested[0], tested[-1]) == (wanted, image)


def test_nothing_is_released_that_was_not_tested_and_scanned():
    assert JOBS["release.ci"]["uses"] == "./.github/workflows/ci.yml"
    assert (JOBS["release.image"]["needs"], JOBS["release.notes"]["needs"]) == ("ci", "image")
    steps = JOBS["release.image"]["steps"]
    scan = next(at for at, step in enumerate(steps) if step.get("run", "").startswith(".ci/scan"))
    push = next(at for at, step in enumerate(steps) if step.get("with", {}).get("push"))
    assert scan < push
    assert steps[push]["with"]["platforms"] == "linux/amd64,linux/arm64"
    assert steps[push]["with"]["sbom"]
    assert steps[push]["with"]["provenance"] == "mode=max"


def test_each_image_that_compose_builds_is_built_and_scanned():
    built = {service["image"]: service["build"] for service in COMPOSE.values() if "build" in service}
    assert built == {"punctual": ".", "punctual-backup": {"context": ".", "target": "backup"}}
    said = [step.get("run") for step in JOBS["ci.image"]["steps"]]
    for image, build in built.items():
        target = "" if build == "." else f"--target {build['target']} "
        assert f"docker build {target}--tag {image}:ci ." in said
        assert f".ci/scan {image}:ci" in said


def test_no_hole_is_known_in_the_workflows():
    zizmor = shutil.which("zizmor", path=Path(sys.executable).parent)
    command = [zizmor, "--offline", "--no-progress", "--strict-collection", "--min-severity=medium", ROOT / ".github"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def notes(version, changelog):
    done = subprocess.run(
        [ROOT / ".ci/notes", version], check=False, capture_output=True, text=True, env={"CHANGELOG": str(changelog)}
    )
    return done.returncode, done.stdout


def test_the_notes_of_a_release_are_what_the_changelog_has_under_it(tmp_path):
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(
        "# Log\n\n## Unreleased\n\n- c\n\n## 1.10.0\n\n- b\n\n## [1.1.0] - 2026-11-28\n\n### Added\n\n- a\n"
    )
    assert notes("1.10.0", changelog) == (0, "- b\n")
    assert notes("1.1.0", changelog) == (0, "### Added\n\n- a\n")
    assert notes("1.1", changelog) == (1, "")
    assert notes("Unreleased", ROOT / "CHANGELOG.md")[0] == 0
