"""The run folder: whose it is, where it lies, that one process at a time works in it, and what it tells afterwards."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from gancompress import __version__
from gancompress.checkpoint import atomic_write, read_json, write_json
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.hub import SCHEME, in_cache

RUNS = Path("runs")
LOCK = ".lock"
#: what `eval` measured of a run's student, with the hash of its weights
EVALUATION_FILE = "eval.json"
#: what a run of two directions leaves beside student.safetensors and discriminator.safetensors
STUDENT_BACK, CRITIC_BACK = "student_back.safetensors", "discriminator_back.safetensors"


def versions() -> dict[str, str]:
    return {"gancompress": __version__, "torch": torch.__version__, "python": platform.python_version()}


def record_of(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder, None where there is none or it is damaged."""
    try:
        found = read_json(folder / "run.json")
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(identity := found.get("identity"), dict) or not isinstance(found.get("sources"), dict):
        return None
    teacher = identity.get("teacher")
    return found if teacher is None or (isinstance(teacher, dict) and isinstance(teacher.get("options"), dict)) else None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """``key: old -> new`` for everything that differs between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def refuse_foreign(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder is this run's already; False where it is free.

    Raises:
        UsageError: it holds another run (the differences are listed) or somebody's files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a directory", "choose another --out")
    if not folder.is_dir() or all(p.suffix == ".tmp" or p.name == LOCK for p in folder.iterdir()):
        return False
    record = record_of(folder)
    if record is None:
        raise UsageError(f"{folder} is not empty and holds no run", "choose another --out")
    if found := differences(record["identity"], identity):
        raise UsageError(f"{folder} holds another run:\n  " + "\n  ".join(found), "choose another --out, or repeat the old command to go on with it")
    return True


def default_dir(label: str, identity: dict[str, Any]) -> Path:
    """The newest folder under ./runs that holds this very run, else a new numbered one."""
    existing = sorted(RUNS.glob("[0-9]*-*")) if RUNS.is_dir() else []
    for folder in reversed(existing):
        if (record := record_of(folder)) and record["identity"] == identity:
            return folder
    last = max((int(p.name.split("-")[0]) for p in existing if p.name.split("-")[0].isdigit()), default=-1)
    return RUNS / f"{last + 1:05d}-{label}"


@contextmanager
def locked(folder: Path, name: str = LOCK, doing: str = "training", seconds: float = 0) -> Iterator[None]:
    """Hold a folder, or the part of it that ``name`` stands for; it is made if need be. Another's hold is waited for so many seconds.

    Raises:
        UsageError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name, timeout=seconds)
        lock.acquire()
    except Timeout:
        raise UsageError(f"{folder}: another process is {doing} in this folder", "wait for it, or choose another --out") from None
    except OSError as error:
        raise GanCompressError(f"{folder}: cannot be written ({error.strerror or error})", "choose another directory with --out") from None
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, identity: dict[str, Any], sources: dict[str, str | None], device: str) -> None:
    """Write down in a free folder what is run in it; a folder of this very run is left as it is.

    Raises:
        UsageError: as ``refuse_foreign``.
    """
    if not refuse_foreign(folder, identity):
        facts = {"identity": identity, "sources": sources, "command": shlex.join(sys.argv), "device": device, "versions": versions()}
        write_json(folder / "run.json", facts)  # first: it makes the folder ours, should we be stopped here
    if not (folder / "recipe.yaml").is_file():
        atomic_write(folder / "recipe.yaml", yaml.safe_dump(identity["recipe"], sort_keys=False).encode())


# --------------------------------------------------------------------------------------------------------- what a run folder tells


def newest_run() -> Path:
    """The newest finished run under ./runs.

    Raises:
        MissingError: there is none.
    """
    finished = sorted(RUNS.glob("*/student.safetensors"), key=lambda p: p.stat().st_mtime) if RUNS.is_dir() else []
    if not finished:
        raise MissingError("no finished run under ./runs", "name a student or a run folder, or make one: gancompress distill TEACHER")
    return finished[-1].parent


def keep_evaluation(source: str, result: dict[str, Any]) -> list[str]:
    """Write what was measured of a run folder's student into its eval.json, for a published card; returns the line that says so.

    ``result["student_sha256"]``, the hash of the generator's tensors, tells later whose numbers they are; without it nothing is kept.
    """
    folder = Path(source)
    if "student_sha256" not in result or record_of(folder) is None:
        return []
    try:
        write_json(folder / EVALUATION_FILE, result)
    except GanCompressError as error:
        return [f"not kept: {error}"]
    return [f"kept: {folder / EVALUATION_FILE}"]


def teacher_of(source: str) -> tuple[str | None, dict[str, Any], str]:
    """(teacher, its reader options, why it is None where there should be one) of a run folder or a student in it."""
    path = Path(source)
    record = record_of(path if path.is_dir() else path.parent)
    if record is None or not record["identity"].get("teacher"):
        return None, {}, ""
    sources = record.get("sources") or {}
    if sources.get("recorded"):
        return None, {}, f"the run's teacher was seen through {sources['recorded']} alone\nhint: --against TEACHER, where you have it"
    teacher = str(sources.get("back" if path.name == STUDENT_BACK else "teacher"))
    # a run folder may be somebody else's: code that it names is not run, and nothing is downloaded for it
    if teacher.startswith("sample:") or Path(teacher).exists() or in_cache(teacher):
        return teacher, record["identity"]["teacher"].get("options") or {}, ""
    reason = "code of your own is run only where you name it" if teacher.startswith("module:") else "it is not here"
    named = teacher if teacher.startswith(("module:", SCHEME)) else "PATH"
    return None, {}, f"the run's teacher {teacher} is left out: {reason}\nhint: --against {named}"
