"""The previous release: which it is, and its files. Knows no process of it."""

import subprocess
from pathlib import Path

from deploy.processes import StartError

ROOT = Path(__file__).parent.parent

STAND_IN = "dab4ddd57e8c6e6bd6f222aeddf1c58584c25e1a"
"""Stands for the previous release while no tag names one: four migrations ago, before Punctual watched itself, told of
incidents and let go of old runs. Goes once a release is tagged."""


def previous(root: Path = ROOT) -> str:
    """The newest release before this commit."""
    # of a commit that is a release itself, the one before it
    described = _git(root, "describe", "--tags", "--abbrev=0", "--match=v[0-9]*", "--exclude=*-*", "HEAD^")
    return described.stdout.decode().strip() or STAND_IN


def is_there() -> bool:
    """Whether its files can be had: not without git, nor from a clone without history."""
    try:
        return _git(ROOT, "cat-file", "-e", f"{previous()}^{{commit}}").returncode == 0
    except OSError:
        return False


def extract(folder: Path) -> Path:
    """Writes its files into a new folder, and returns that. Raises StartError where they cannot be had."""
    release = previous()
    archive = _git(ROOT, "archive", "--format=tar", release)
    if archive.returncode:
        raise StartError(f"no files of the previous release, {release}: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)  # noqa: S607
    return folder


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    # in a container the files may be another user's
    command = ["git", "-c", f"safe.directory={root}", *words]
    return subprocess.run(command, cwd=root, check=False, capture_output=True)
