"""Runs everything on one machine: the stores, the migrations, then the processes of the Procfile.

A supervisor and no more: what it starts is what any other supervisor would start, by the same lines.
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings
from deploy import embedded, processes
from deploy.processes import StartError

ROOT = Path(__file__).parent.parent
COUNTS = {"web": 1, "beat": 2, "worker": 1, "flower": 1}
READY_WITHIN = 90.0
READY_TARGET = "debug.echo"
"""A target that a worker announces when it is up."""

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where to ask, not to listen


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the running processes are reached, and with what."""

    host: str
    port: int
    flower_port: int
    admin_key: str
    flower_login: str

    @property
    def page(self) -> str:
        return f"http://{self._authority}:{self.port}/"

    @property
    def api(self) -> str:
        return f"{self.page}api/v1"

    @property
    def flower(self) -> str:
        return f"http://{self._authority}:{self.flower_port}/"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def get(self, path: str) -> tuple[int, bytes]:
        """Asks the site directly, whatever proxies the environment names. Raises OSError."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.admin_key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as exc:
            raise OSError(f"no HTTP from {self.host}:{self.port}") from exc
        finally:
            connection.close()


def serve(data: Path, procfile: Path, announce: Callable[[Site], None]) -> None:
    """Runs everything until a signal comes as KeyboardInterrupt. Raises StartError."""
    with embedded.stores(data) as urls:
        env = environment(data.resolve(), urls)
        site = _site(env)
        lines = read(procfile)
        migrate(lines["release"], env)
        keepers = [processes.Keeper(program, _print_line) for program in _programs(lines, env)]
        try:
            for keeper in keepers:
                keeper.start()
            processes.wait_until(lambda: is_ready(site), keepers, within=READY_WITHIN, what="the page or the worker")
            processes.private_text(data / "client.env", f"PUNCTUAL_URL={site.api}\nPUNCTUAL_KEY={site.admin_key}\n")
            announce(site)
            threading.Event().wait()
        finally:
            processes.stop(keepers)


def read(procfile: Path) -> dict[str, str]:
    """The line of each kind of process."""
    return dict(re.findall(r"^([\w-]+):\s*(\S.*)$", procfile.read_text(encoding="utf-8"), re.MULTILINE))


def environment(data: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """What each process gets: what we were given, and what was not, made. Raises StartError."""
    # below the patience with which the processes are stopped
    env = {"PUNCTUAL_STOP_GRACE": "3"} | dict(os.environ) | dict(urls)
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"}
    env |= {processes.MARK: str(data), "PYTHONUNBUFFERED": "1"}
    made: dict[str, Callable[[], str]] = {
        "SECRET_KEY": lambda: processes.secret(data / "secret_key"),
        "PUNCTUAL_ADMIN_KEY": lambda: processes.secret(data / "admin_key"),
        "FLOWER_BASIC_AUTH": lambda: f"admin:{processes.secret(data / 'flower_password')}",
        "LOG_FORMAT": lambda: "console",
        "PORT": lambda: str(processes.free_port(_settings(env).HOST, 8000)),
        "FLOWER_PORT": lambda: str(processes.free_port(_settings(env).HOST, 5555)),
    }
    for name, make in made.items():
        if not embedded.is_set(name, env):
            env[name] = make()
    return env


def _settings(env: Mapping[str, str]) -> Settings:
    try:
        return Settings.read(env)
    except ValueError as exc:
        raise StartError(str(exc)) from None  # the chain could show a secret


def _site(env: Mapping[str, str]) -> Site:
    settings = _settings(env)
    assert settings.PUNCTUAL_ADMIN_KEY is not None
    for name, port in (("PORT", settings.PORT), ("FLOWER_PORT", settings.FLOWER_PORT)):
        if processes.free_port(settings.HOST, port) != port:
            raise StartError(f"{name}: {port} of {settings.HOST} is in use; leave it out to have a free one chosen")
    return Site(
        host=WILDCARDS.get(settings.HOST, settings.HOST),
        port=settings.PORT,
        flower_port=settings.FLOWER_PORT,
        admin_key=settings.PUNCTUAL_ADMIN_KEY.get_secret_value(),
        flower_login=env["FLOWER_BASIC_AUTH"],
    )


def migrate(line: str, env: Mapping[str, str], root: Path = ROOT) -> None:
    """Brings the database up to date with the code at `root`. Raises StartError."""
    done = subprocess.run(shell(line), cwd=root, env=env, check=False, start_new_session=True)
    if done.returncode:
        raise StartError(f"the migration failed with code {done.returncode}; its lines above say why")


def _programs(lines: Mapping[str, str], env: Mapping[str, str]) -> list[processes.Program]:
    return [
        processes.Program(name=f"{name}.{number}", argv=shell(lines[name]), cwd=ROOT, env=env)
        for name, count in COUNTS.items()
        for number in range(1, count + 1)
    ]


def shell(line: str) -> list[str]:
    """A line of the Procfile as arguments."""
    # signals must reach the process, not a shell around it
    return ["/bin/sh", "-c", f"exec {line}"]


def is_ready(site: Site) -> bool:
    """Whether the stores answer and a worker has announced its targets."""
    with suppress(OSError, ValueError):
        status, _ = site.get("/readyz")
        if status == http.client.OK:
            status, body = site.get("/api/v1/targets")
            return status == http.client.OK and READY_TARGET in {target["name"] for target in json.loads(body)["items"]}
    return False


def _print_line(name: str, line: str) -> None:
    with suppress(OSError):  # whoever read our output may have gone; the processes go on
        print(f"{name:<8} | {line}", flush=True)


def _announce(site: Site) -> None:
    login, _, password = site.flower_login.partition(":")
    print(
        f"\nPunctual is ready. Ctrl-C stops all of it.\n\n"
        f"  page       {site.page}\n"
        f"  API        {site.api}   (browse it at {site.page}api/docs)\n"
        f"  Flower     {site.flower}   (user {login}, password {password})\n"
        f"  admin key  {site.admin_key}\n",
        flush=True,
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/server", description="Runs everything on this machine.")
    parser.add_argument("--data", type=Path, default=ROOT / ".data", help="where data and secrets are kept")
    parser.add_argument("--procfile", type=Path, default=ROOT / "Procfile", help="what to run")
    given = parser.parse_args()
    processes.interrupt_on_signal()
    try:
        serve(given.data, given.procfile, _announce)
    except (StartError, OSError) as exc:  # OSError: a folder that is another account's, a full disk
        print(f"punctual: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
