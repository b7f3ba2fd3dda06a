"""`shell.run` with real programs: what it returns, what it keeps, and that nothing of it stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from uuid import uuid4

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from stores import ROOT

from workers.targets import shell
from workers.targets.shell import ProgramFailed

SECRETS = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "SECRET_KEY", "PUNCTUAL_ADMIN_KEY", "PUNCTUAL_WEBHOOK_SECRET")


@pytest.fixture
def marker():
    """The run's id, which all that a program starts carries in its environment; all of it is gone at the end."""
    made = uuid4().hex
    yield made
    for pid in marked(made):
        os.kill(pid, signal.SIGKILL)


def marked(marker):
    """The processes that carry the marker."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RUN_ID={marker}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def call(argv, marker="the-run", **kwargs):
    """Calls the target as a worker does."""
    shell.run.push_request(id=marker)
    try:
        return shell.run.run(argv, **kwargs)
    finally:
        shell.run.pop_request()


@pytest.fixture
def struck():
    """Lets the soft limit strike after some seconds."""

    def strike(*_):
        raise SoftTimeLimitExceeded

    kept = signal.signal(signal.SIGALRM, strike)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, kept)


def python(code):
    return [sys.executable, "-c", code]


def test_a_programs_code_and_outputs_are_returned(marker):
    assert call(["sh", "-c", "echo out; echo err >&2"], marker) == {
        "code": 0,
        "stdout": "out\n",
        "stdout_truncated": False,
        "stderr": "err\n",
        "stderr_truncated": False,
    }


def test_no_shell_reads_the_arguments():
    assert call(["echo", "$HOME; ls *", "`id`"])["stdout"] == "$HOME; ls * `id`\n"


@pytest.mark.parametrize("argv", ["ls -l", [], [""], ["ls", 1], None, {"a": "b"}, [["ls"]]])
def test_anything_but_a_list_of_strings_is_refused(argv):
    with pytest.raises(TypeError, match="array of strings"):
        call(argv)


@pytest.mark.parametrize("given", [{"env": {"A": 1}}, {"env": ["A=1"]}, {"cwd": 1}])
def test_an_environment_or_a_directory_of_another_kind_is_refused(given):
    with pytest.raises(TypeError, match="must be"):
        call(["true"], **given)


def test_a_code_other_than_0_fails_with_the_end_of_what_it_said():
    with pytest.raises(ProgramFailed, match=r"^sh ended with code 3: out of paper$"):
        call(["sh", "-c", "echo working; echo out of paper >&2; exit 3"])
    with pytest.raises(ProgramFailed, match=r"^sh ended with code 1: just this$"):
        call(["sh", "-c", "echo just this; exit 1"])
    with pytest.raises(ProgramFailed) as caught:
        call(python("import sys; sys.exit('x' * 100_000 + ' the end')"))
    assert str(caught.value).endswith("x the end")
    assert len(str(caught.value)) < 4096


def test_a_program_that_a_signal_ended_fails_and_names_it():
    with pytest.raises(ProgramFailed, match="was ended by signal SIGKILL"):
        call(["sh", "-c", "kill -9 $$"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-program"], "no-such-program cannot be started: No such file or directory"),
        (["/etc/passwd"], "/etc/passwd cannot be started: Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_is_told_why(argv, says):
    with pytest.raises(ProgramFailed, match=says):
        call(argv)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    assert call(["pwd"], cwd=str(tmp_path))["stdout"] == f"{tmp_path}\n"
    with pytest.raises(FileNotFoundError, match="no-such-directory"):
        call(["pwd"], cwd=str(tmp_path / "no-such-directory"))


def test_a_program_sees_nothing_of_the_workers_environment_but_what_is_given(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"secret of {name}")
        monkeypatch.setenv(f"{name}_FILE", "/run/secrets/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = call(["env"], env={"MINE": "1", "LANG": "C.UTF-8"})["stdout"]
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert names <= {*shell.PASSED, "RUN_ID", "MINE"}
    assert {"PATH", "RUN_ID", "MINE"} <= names
    assert "secret" not in seen
    assert "LANG=C.UTF-8\n" in seen


def test_a_program_inherits_no_open_file_of_the_workers(tmp_path):
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)  # as a careless library would
        open_files = call(["ls", "-l", "/proc/self/fd"])["stdout"]
    assert "secret" not in open_files
    assert "socket:" not in open_files


def test_a_program_reads_nothing_and_finds_its_signals_as_usual():
    code = "import signal, sys; print(repr(sys.stdin.read()), signal.getsignal(signal.SIGTERM).name)"
    kept = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert call(python(code))["stdout"] == "'' SIG_DFL\n"
    finally:
        signal.signal(signal.SIGTERM, kept)


def test_of_a_long_output_both_ends_are_kept_and_memory_is_not_filled():
    code = """if 1:
        import os
        os.write(1, b"first")
        for _ in range(1600): os.write(1, b"." * 65536); os.write(2, b"\\xff\\x00" * 1024)
        os.write(1, b"last"); os.write(2, "é".encode())
    """
    tracemalloc.start()
    result = call(python(code))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result["stdout"].startswith("first...")
    assert result["stdout"].endswith("...last")
    assert f"… {9 + 1600 * 65536 - 2 * shell.END} bytes left out …" in result["stdout"]
    assert result["stderr"].endswith("é")
    assert (result["stdout_truncated"], result["stderr_truncated"]) == (True, True)
    assert len(json.dumps(result)) < 64 * 1024
    assert peak < 2 * 1024 * 1024


def test_an_output_that_just_fits_is_kept_whole():
    result = call(python(f"print('x' * {2 * shell.END}, end='')"))
    assert (result["stdout"], result["stdout_truncated"]) == ("x" * 2 * shell.END, False)


def test_what_a_program_leaves_running_ends_with_it(marker):
    began = time.monotonic()
    assert call(["sh", "-c", "sleep 300 & setsid sleep 300 & echo done"], marker)["stdout"] == "done\n"
    assert marked(marker) == []
    assert time.monotonic() - began < 10


def test_at_the_soft_limit_a_program_may_clean_up_and_is_gone(marker, struck, tmp_path):
    struck(1)
    with pytest.raises(SoftTimeLimitExceeded):
        call(["sh", "-c", f"trap 'echo cleaned > {tmp_path}/mark; exit 0' TERM; sleep 300 & wait"], marker)
    assert (tmp_path / "mark").read_text() == "cleaned\n"
    assert marked(marker) == []


STUBBORN = """
trap '' TERM
(trap '' TERM; setsid sh -c "trap '' TERM; while :; do echo noise; done" & while :; do sleep 1; done) &
while :; do echo noise; echo noise >&2; done
"""


def test_one_that_does_not_want_to_end_is_killed_with_all_it_started_before_the_hard_limit(marker, struck):
    struck(1)
    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded):
        call(["sh", "-c", STUBBORN], marker)
    assert marked(marker) == []
    assert time.monotonic() - began < 1 + 5


@pytest.mark.parametrize("victim", ["worker", "keeper"])
def test_nothing_is_left_when_a_process_on_the_way_is_killed(marker, eventually, victim):
    """The worker's child dies at the hard limit, or for want of memory, with no chance to say so."""
    code = f"""if 1:
        from workers.targets import shell
        shell.run.push_request(id={marker!r})
        shell.run.run(["sleep", "300"] if {victim!r} == "keeper" else ["sh", "-c", {STUBBORN!r}])
    """
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: len(marked(marker)) >= (2 if victim == "keeper" else 4), 30)
        if victim == "worker":
            worker.kill()
        else:
            os.kill(next(pid for pid in marked(marker) if b"keeper.py" in command(pid)), signal.SIGKILL)
        eventually(lambda: marked(marker) == [], 10)
        said = worker.communicate(timeout=10)[1]
    finally:
        worker.kill()
        worker.wait()
    if victim == "keeper":
        assert "sleep was lost, as the process that keeps it was killed" in said


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
