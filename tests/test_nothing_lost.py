"""Whatever kills a run, and whenever: the same command ends in the very files of a run that nobody disturbed. All marked slow; CI runs them apart."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_loop import TINY, assert_same_run, command, environment
from typer.testing import CliRunner

from gancompress import checkpoint, report
from gancompress.cli import app
from gancompress.console import Silent
from gancompress.loop import Log
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.slow

# -------------------------------------------------------------------------------------------------- every event of a short run


class Mortal:
    """Counts what a process does to the disk below a folder; the process dies at the ``nth`` (0: never), before it is done.

    Python tells of opened, renamed and removed files; writes are cut in halves with an event between them.
    """

    def __init__(self, folder: Path, nth: int) -> None:
        self.folder, self.left, self.seen = str(folder), nth, 0
        sys.addaudithook(self.hook)
        checkpoint._write = self.write
        checkpoint.save_file = self.save_file(checkpoint.save_file)
        Log.write = self.log(Log.write)

    def event(self) -> None:
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, name: str, args: tuple) -> None:
        if (
            name in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod")
            and isinstance(args[0], str | os.PathLike)
            and str(args[0]).startswith(self.folder)
        ):
            self.event()

    def write(self, path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            self.event()
            file.write(data[len(data) // 2 :])

    def save_file(self, original):
        def halves(tensors, path, metadata) -> None:
            original(tensors, path, metadata)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            self.event()
            path.write_bytes(whole)

        return halves

    def log(self, original):
        def halves(log: Log, **entry) -> None:
            before = log.path.read_bytes()
            original(log, **entry)
            whole = log.path.read_bytes()
            os.truncate(log.path, (len(before) + len(whole)) // 2)
            self.event()
            log.path.write_bytes(whole)

        return halves


def in_a_child(work) -> tuple[int, str]:
    """(exit status or minus the signal, what it printed) of a fork of this process, which has torch loaded already."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        said, code = "", 1
        try:
            said, code = str(work()), 0
        except BaseException as error:  # all that a child may tell is its last words
            said = repr(error)
        os.write(writing, said.encode()[:60000])
        os._exit(code)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def test_a_run_that_is_killed_at_any_event_ends_like_one_that_is_not(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save_curves", lambda log_path, path: path.write_bytes(b"curves"))
    monkeypatch.setattr("gancompress.running._report", lambda plan, reporter: None)  # written after the run, and no part of it
    changes = {**dict(TINY), "output.log_kimg": 0.004, "output.save_kimg": 0.004, "output.pictures_kimg": 0.012}

    def undisturbed(out: Path) -> None:
        run_plan(make_plan(Request(str(tiny_teacher), "joint", data=str(tiny_data), out=out, device="cpu", steps=12, overrides=changes.items())), Silent())

    def run(out: Path, nth: int) -> int:
        mortal = Mortal(out, nth)
        undisturbed(out)
        return mortal.seen

    undisturbed(tmp_path / "unbroken")  # in this process: what torch loads late is then there for all its children
    code, said = in_a_child(lambda: run(tmp_path / "counted", 0))
    assert code == 0, said
    events = int(said)
    assert events >= 150
    for nth in range(1, events + 1):
        out = tmp_path / f"killed-{nth}"
        assert in_a_child(lambda: run(out, nth))[0] == -signal.SIGKILL  # noqa: B023 it is called at once
        code, said = in_a_child(lambda: undisturbed(out))  # noqa: B023
        assert code == 0, f"after a kill at event {nth} of {events}: {said}"
        assert_same_run(out, tmp_path / "unbroken")
        assert not list(out.rglob("*.tmp")), nth


# ------------------------------------------------------------------------------------------------------ the real command line


def test_twenty_kills_of_the_command_line_lose_nothing(tiny_teacher, tmp_path):
    words, kills, draws = command(tiny_teacher, tmp_path / "run", steps=4000, save_every=40), 0, random.Random(0)
    log = tmp_path / "run" / "log.jsonl"
    while kills < 20:
        before = log.stat().st_size if log.is_file() else 0
        process = subprocess.Popen([sys.executable, "-m", "gancompress", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
        while process.poll() is None and not (log.is_file() and log.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(draws.random() * 0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before its twentieth kill"
        kills += 1
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, command(tiny_teacher, tmp_path / "unbroken", steps=4000, save_every=40)).exit_code == 0
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


PHASES = {
    "import": ("", ["distill", "{teacher}", "--out", "{out}", "--steps", "4", "--batch-size", "4"]),
    "plan": ("gancompress.planning.make_plan", ["distill", "{teacher}", "--out", "{out}", "--steps", "4", "--batch-size", "4"]),
    "training": ("gancompress.loop.Trainer.train_step", ["distill", "{teacher}", "--out", "{out}", "--steps", "4", "--batch-size", "4"]),
    "saving": ("gancompress.checkpoint._write", ["distill", "{teacher}", "--out", "{out}", "--steps", "4", "--batch-size", "4"]),
    "eval": ("gancompress.metrics.evaluate", ["eval", "{teacher}", "--num-images", "4"]),
    "collect": ("gancompress.collecting._draw", ["collect", "{teacher}", "--out", "{out}", "--num", "64"]),
    "export": ("gancompress.exporter.describe", ["export", "{teacher}", "--out", "{out}"]),
}
SIGNALLED = """
import importlib, os, signal, sys
sys.argv = ["gancompress", *{words!r}]
from gancompress import cli
from gancompress.cli import main

def send():
    os.kill(os.getpid(), signal.SIGTERM)

where = {where!r}
if not where:
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                send()
    sys.meta_path.insert(0, Finder())
else:
    parts = where.split(".")
    owner = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:-1]:
        owner = getattr(owner, part)
    original = getattr(owner, parts[-1])
    def signalled(*args, **kwargs):
        send()
        return original(*args, **kwargs)
    setattr(owner, parts[-1], signalled)
main()
"""


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_any_phase_leaves_with_75_and_nothing_half_written(phase, tiny_teacher, tmp_path):
    where, words = PHASES[phase]
    words = [w.format(teacher=tiny_teacher, out=tmp_path / "out") for w in words] + ([] if phase == "export" else ["--device", "cpu"])
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED.format(words=words, where=where)], capture_output=True, text=True, timeout=120, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert "SIGTERM" in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    if phase in ("training", "saving", "plan", "import", "collect"):
        again = CliRunner().invoke(app, words)
        assert again.exit_code == 0, again.output


def test_a_second_process_on_one_run_folder_is_refused(tiny_teacher, tmp_path):
    words = command(tiny_teacher, tmp_path / "run", steps=100000)
    first = subprocess.Popen([sys.executable, "-m", "gancompress", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
    try:
        while not (tmp_path / "run" / "log.jsonl").is_file():
            assert first.poll() is None
            time.sleep(0.01)
        second = CliRunner().invoke(app, words)
        assert second.exit_code == 2
        assert "another process is training in this folder" in second.stderr
    finally:
        first.terminate()
        assert first.wait(60) == 75
