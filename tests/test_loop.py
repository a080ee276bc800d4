"""The run: cut anywhere it goes on bitwise, and whatever stops it leaves something whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import gancompress
from gancompress import checkpoint, report
from gancompress.checkpoint import atomic_write, load_state, save_networks, save_state
from gancompress.cli import app
from gancompress.config import Schedule
from gancompress.console import Silent
from gancompress.errors import CheckpointError, DivergedError, GanCompressError, StoppedError, UsageError
from gancompress.loading import load_gan
from gancompress.loop import Ema, Log, Trainer, _seed
from gancompress.losses.mse import Mse
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.usefixtures("no_curves")

# batches of 4: a log line every 2 steps, a state every 3, a picture every 5
TINY = [
    ("schedule.batch_size", 4),
    ("schedule.ema_kimg", 0.02),
    ("student.ch_mul", 0.5),
    ("output.log_kimg", 0.008),
    ("output.save_kimg", 0.012),
    ("output.pictures_kimg", 0.02),
]
WGAN_GP = [("weights.game", "wasserstein"), ("weights.gradient_penalty", 10), ("schedule.d_steps", 2)]
RECIPES = {
    "mse": ("mse", []),
    "mse-pool": ("mse", [("schedule.teacher_pool", 12)]),
    "joint": ("joint", []),
    "joint-wgan-gp": ("joint", WGAN_GP),
    "scratch": ("scratch", []),
    "scratch-clip": ("scratch", [("weights.game", "wasserstein"), ("weights.clip", 0.01), ("schedule.d_steps", 3)]),
}
STEPS = 8


class Cut(Exception):
    """Pulls the plug."""


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def plan_of(case, teacher, data, out, steps=STEPS, more=()):
    recipe, overrides = RECIPES[case]
    return make_plan(
        Request(str(teacher), recipe, data=None if recipe == "mse" else str(data), out=out, device="cpu", steps=steps, overrides=[*TINY, *overrides, *more])
    )


def run(*args, reporter=None, **kwargs):
    return run_plan(plan_of(*args, **kwargs), reporter or Silent()).parent


def log_of(folder):
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_run(a, b):
    names = {p.name for p in a.glob("*.safetensors")}
    assert names == {p.name for p in b.glob("*.safetensors")}
    for name in names:
        one, other = load_file(a / name), load_file(b / name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), f"{name}: {key}"
    assert log_of(a) == log_of(b)
    assert [(p.name, p.read_bytes()) for p in sorted((a / "samples").iterdir())] == [(p.name, p.read_bytes()) for p in sorted((b / "samples").iterdir())]


@pytest.fixture(scope="module")
def unbroken(tiny_teacher, tiny_data, tmp_path_factory):
    """{case: folder of a run that nobody disturbed}, made when first asked for."""
    made = {}

    def get(case):
        if case not in made:
            made[case] = run(case, tiny_teacher, tiny_data, tmp_path_factory.mktemp("unbroken") / "run")
        return made[case]

    return get


def cut_at(monkeypatch, *steps):
    """Raise in the middle of the given steps, once each."""
    left, train_step = list(steps), Trainer.train_step

    def step(self, batches):
        if left and self.step == left[0]:
            self.ema.net.requires_grad_(False)
            next(self.student.parameters()).data.add_(1)  # what was half done must not count
            del left[0]
            raise Cut
        train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", step)


# ---------------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("case", RECIPES)
def test_a_run_leaves_what_it_should(case, unbroken):
    folder = unbroken(case)
    expected = {"recipe.yaml", "run.json", "log.jsonl", "samples", "curves.png", "state.pt", "state.previous.pt", "student.safetensors", "report.html"}
    assert {p.name for p in folder.iterdir() if p.name != ".lock"} == expected | (set() if case.startswith("mse") else {"discriminator.safetensors"})
    assert [p.name for p in sorted((folder / "samples").iterdir())] == ["step-0000005.png", "step-0000008.png"]
    assert [e["step"] for e in log_of(folder) if "diversity" not in e] == [2, 4, 6, 8]
    terms = {"mse": {"mse"}, "joint": {"adv", "mse", "d_adv"}, "scratch": {"adv", "d_adv"}}[RECIPES[case][0]] | ({"d_gp"} if "gp" in case else set())
    assert set(log_of(folder)[0]) - {"step", "kimg"} == terms
    assert load_state(folder / "state.pt")["step"] == STEPS
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["schedule"]["batch_size"] == 4
    facts = json.loads((folder / "run.json").read_text())
    assert {"identity", "command", "device", "versions"} <= facts.keys()


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 5, 7)], ids=lambda c: "-".join(map(str, c)))
def test_an_interrupted_run_repeats_the_unbroken_one_bitwise(case, cuts, unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    expected = unbroken(case)
    cut_at(monkeypatch, *cuts)
    for _ in cuts:
        with pytest.raises(Cut):
            run(case, tiny_teacher, tiny_data, tmp_path / "run")
        assert not (tmp_path / "run" / "student.safetensors").exists()
    run(case, tiny_teacher, tiny_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", expected)


def test_a_cut_between_the_end_of_training_and_the_student_is_made_good(unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(report, "save_curves", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken("joint"))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(unbroken, tiny_teacher, tiny_data, tmp_path):
    assert_same_run(run("joint", tiny_teacher, tiny_data, tmp_path / "same"), unbroken("joint"))
    other = run("joint", tiny_teacher, tiny_data, tmp_path / "other", more=[("seed", 1)])
    assert log_of(other) != log_of(unbroken("joint"))


def test_a_finished_run_is_not_trained_again(unbroken, tiny_teacher, tiny_data, monkeypatch):
    folder = unbroken("mse")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("it was trained"))
    assert run("mse", tiny_teacher, tiny_data, folder) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_teacher_or_data_in_the_folder_is_refused_with_the_difference(finished, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    if not finished:
        cut_at(monkeypatch, 4)
    with contextlib.suppress(Cut):
        run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=r"recipe.optim.g_lr: 0.001 -> 0.01") as caught:
        run("joint", tiny_teacher, tiny_data, tmp_path / "run", more=[("optim.g_lr", 1e-2)])
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"recipe.loss: joint -> mse"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    other = another_teacher(tiny_teacher, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"teacher.sha256: \w+ -> \w+"):
        run("joint", other, tiny_data, tmp_path / "run")
    data = tmp_path / "other.npz"
    np.savez(data, np.zeros((9, 8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"data.sha256: \w+ -> \w+"):
        run("joint", tiny_teacher, data, tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def another_teacher(like, path):
    """Another teacher of the same shapes."""
    gan = load_gan(str(like))
    with torch.no_grad():
        next(gan.generator.parameters()).mul_(-1)
    save_networks(path, gan.family, gan.arch, gan.networks, {})
    return path


@pytest.mark.parametrize("what", ["a file", "a folder of files"])
def test_somebodys_files_are_never_written_over(what, tiny_teacher, tiny_data, tmp_path):
    out = tmp_path / "mine"
    if what == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="mine"):
        run("mse", tiny_teacher, tiny_data, out)
    assert (out if what == "a file" else out / "thesis.txt").read_text() == "precious"
    assert out.is_file() or len(list(out.iterdir())) == 1


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_state_is_put_aside_and_the_one_before_it_is_taken(unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    out, reporter = tmp_path / "run", Notes()
    with monkeypatch.context() as patch:
        cut_at(patch, 7)
        with pytest.raises(Cut):
            run("mse", tiny_teacher, tiny_data, out)
    damage(out / "state.pt")
    run("mse", tiny_teacher, tiny_data, out, reporter=reporter)
    assert f"{out / 'state.pt'}: the run's state is damaged (its hash is another); the one before it is taken" in reporter.said
    assert "going on at step 3 of 8" in reporter.said
    assert (out / "state.damaged.pt").is_file()
    assert_same_run(out, unbroken("mse"))


def test_two_damaged_states_are_a_clear_error(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    cut_at(monkeypatch, 4)
    with pytest.raises(Cut):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    for name in ("state.pt", "state.previous.pt"):
        damage(tmp_path / "run" / name)
    with pytest.raises(CheckpointError, match=r"state.previous.pt: the run's state is damaged"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")


def test_a_state_with_a_flipped_bit_or_cut_short_is_never_loaded_as_if_whole(unbroken, tmp_path):
    content = (unbroken("joint") / "state.pt").read_bytes()
    flips = [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in range(0, len(content), len(content) // 200)]
    cuts = [content[:length] for length in range(0, len(content), len(content) // 50)]
    assert len(flips) >= 200
    assert len(cuts) >= 50
    path = tmp_path / "state.pt"
    for spoilt in flips + cuts:
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match="damaged"):
            load_state(path)
    path.write_bytes(content)
    assert load_state(path)["step"] == STEPS


def test_log_lines_after_the_saved_step_are_taken_back(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in (2, 4, 6):
        log.write(step=step, kimg=step / 1000)
    with path.open("a") as file:
        file.write('{"step": 3, "ki')  # killed while writing
    Log(path, 4).write(step=6, kimg=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]


# --------------------------------------------------------------------------------------------------------------------- signals

LONG = 300


def command(teacher, out, steps=LONG, save_every=50):
    overrides = ["output.log_kimg=0.008", f"output.save_kimg={save_every * 0.004}", "output.pictures_kimg=1"]
    return ["distill", str(teacher), "--steps", str(steps), "--batch-size", "4", "--ch-mul", "0.5", "--device", "cpu", "--out", str(out), *overrides]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


@pytest.fixture(scope="module")
def long_run(tiny_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "run"
    assert CliRunner().invoke(app, command(tiny_teacher, out)).exit_code == 0
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_signal_saves_the_state_and_the_same_command_goes_on(number, code, long_run, tiny_teacher, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "gancompress", *command(tiny_teacher, out)], stderr=subprocess.PIPE, text=True, env=environment())
    for _ in range(6000):
        if ((out / "log.jsonl").is_file() and (out / "log.jsonl").stat().st_size) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert f"stopped by {number.name} at step" in said
    assert "the same command goes on" in said
    step = load_state(out / "state.pt")["step"]
    assert 0 < step < LONG
    assert f"at step {step:,} of {LONG:,}" in said
    assert not list(out.glob("*.tmp"))
    again = CliRunner().invoke(app, command(tiny_teacher, out))
    assert again.exit_code == 0, again.output
    assert f"going on at step {step:,}" in again.output + again.stderr
    assert_same_run(out, long_run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_signal_within_a_step_ends_the_run_after_it(number, code, at, unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def step(self, batches):
        train_step(self, batches)
        if self.step == at:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with pytest.raises(StoppedError, match=f"stopped by {number.name} at step {at} of 8") as caught:
            run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    assert caught.value.exit_code == code
    assert load_state(tmp_path / "run" / "state.pt")["step"] == at
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken("joint"))


def test_a_signal_while_the_run_writes_waits_until_it_can_be_saved(unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    """It comes between the look at the signals and the end of the step: the message must not speak of a state that is not there."""
    write = Log.write

    def signalled(self, **entry):
        write(self, **entry)
        if entry["step"] == 4:  # a step that logs and saves nothing
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", signalled)
        with pytest.raises(StoppedError) as caught:
            run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    step = load_state(tmp_path / "run" / "state.pt")["step"]
    assert f"at step {step} of 8" in str(caught.value)
    run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken("mse"))


KILLER = """
import io, os, signal, sys
from pathlib import Path

open_, left = Path.open, [{nth}]

class Dying(io.FileIO):
    def write(self, data):
        super().write(bytes(data)[: len(data) // 2])
        os.fsync(self.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

def opened(self, mode="r", *args, **kwargs):
    if "w" in mode and self.name == "state.pt.tmp":
        left[0] -= 1
        if not left[0]:
            return Dying(str(self), "w")
    return open_(self, mode, *args, **kwargs)

Path.open = opened
sys.argv = ["gancompress", *{words!r}]
from gancompress.cli import main
main()
"""


@pytest.mark.parametrize("nth", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_kill_in_the_middle_of_a_save_leaves_the_state_before_it(nth, long_run, tiny_teacher, tmp_path):
    out = tmp_path / "run"
    code = KILLER.format(nth=nth, words=command(tiny_teacher, out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / "state.pt.tmp").is_file()  # it was killed there
    if nth > 1:
        assert load_state(out / "state.pt")["step"] == 50 * (nth - 2)
    else:
        assert not (out / "state.pt").exists()
    again = CliRunner().invoke(app, command(tiny_teacher, out))
    assert again.exit_code == 0, again.output
    assert not list(out.glob("*.tmp"))
    assert_same_run(out, long_run)


# ------------------------------------------------------------------------------------------------------------------ divergence


def spoil(monkeypatch, when):
    """Make the loss NaN at the given calls (counted from 1)."""
    loss, calls = Mse.generator_loss, [0]

    def generator_loss(self, batch, fake):
        calls[0] += 1
        terms = loss(self, batch, fake)
        return {k: v * float("nan") for k, v in terms.items()} if when(calls[0]) else terms

    monkeypatch.setattr(Mse, "generator_loss", generator_loss)


def finite(path):
    return all(torch.isfinite(t).all() for t in load_file(path).values() if t.is_floating_point())


@pytest.mark.parametrize("bad", [1, 3, 5, 6, 8])
def test_a_loss_that_is_not_finite_once_goes_back_once_and_the_run_ends_well(bad, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda call: call == bad)
    reporter = Notes()
    folder = run("mse", tiny_teacher, tiny_data, tmp_path / "run", reporter=reporter)
    events = [e for e in log_of(folder) if "event" in e]
    saved = (bad - 1) // 3 * 3  # states are of steps 0, 3, 6
    assert events == [{"step": saved, "event": "rolled back", "non_finite_at_step": bad, "non_finite": "loss term mse"}]
    assert sum("peak memory" in said for said in reporter.said) == 1
    (said,) = (said for said in reporter.said if "peak memory" not in said)
    assert f"loss term mse was not finite at step {bad}" in said
    assert f"step {saved}," in said
    assert finite(folder / "student.safetensors")
    assert all(v == v for e in log_of(folder) for v in e.values())
    assert all(json.loads(line).get("images_per_s", 1) > 0 for line in (folder / "log.jsonl").read_text().splitlines())
    assert [e["step"] for e in log_of(folder) if "mse" in e] == [2, 4, 6, 8]  # each step once: what was undone is out of the log
    assert load_state(folder / "state.pt")["attempt"] == 1


def test_a_run_that_went_back_is_resumed_bitwise(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, lambda call: call == 2)
        expected = run("mse", tiny_teacher, tiny_data, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        spoil(patch, lambda call: call == 2)
        cut_at(patch, 5)
        with pytest.raises(Cut):
            run("mse", tiny_teacher, tiny_data, tmp_path / "run")
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", expected)


def test_after_going_back_other_random_numbers_are_drawn(unbroken, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda call: call == 2)
    folder = run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    assert log_of(folder)[-1] != log_of(unbroken("mse"))[-1]


def test_a_third_loss_that_is_not_finite_ends_the_run_with_the_last_good_student(tiny_teacher, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda call: call >= 25)
    out = tmp_path / "run"
    result = CliRunner().invoke(app, command(tiny_teacher, out, 60, save_every=10))
    assert result.exit_code == 5
    said = result.output + result.stderr
    assert "loss term mse was not finite at step 2" in said
    assert "for the third time" in said
    assert "g_lr" in said
    kept = out / "student-last-good.safetensors"
    assert str(kept) in said.replace("\n", "")
    assert finite(kept)
    images = gancompress.load(str(kept))(torch.randn(2, 4))
    assert torch.isfinite(images).all()
    state = load_state(out / "state.pt")
    assert state["step"] == 20
    for key, tensor in load_file(kept).items():
        assert torch.equal(tensor, state["ema"][key.removeprefix("generator.")])
    assert not (out / "student.safetensors").exists()


def test_a_run_that_diverges_at_once_keeps_the_student_it_began_with(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda call: True)
    with pytest.raises(DivergedError, match="at step 1, for the third time"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    assert finite(tmp_path / "run" / "student-last-good.safetensors")


def test_two_losses_that_are_not_finite_are_gone_back_from(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda call: call in (3, 7))
    folder = run("mse", tiny_teacher, tiny_data, tmp_path / "run")
    assert load_state(folder / "state.pt")["attempt"] == 2
    assert finite(folder / "student.safetensors")


def _nan_(module):
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")


def spoil_teacher(trainer, batches):
    batches.teacher.generator.register_forward_hook(lambda module, inputs, images: images * float("nan"))


def spoil_data(trainer, batches):
    batches.images.__class__ = type("Spoilt", (type(batches.images),), {"__getitem__": lambda self, i: (torch.full((len(i), 1, 8, 8), float("nan")), None)})


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        (lambda trainer, batches: _nan_(trainer.student), "loss term d_adv, adv, mse was"),
        (lambda trainer, batches: _nan_(trainer.loss.critics), "loss term d_adv, adv was"),
        (spoil_teacher, "loss term mse was"),
        (spoil_data, "loss term d_adv, adv was"),
    ],
    ids=["student", "critic", "teacher", "data"],
)
def test_nan_in_anything_ends_with_the_term_named_and_a_good_student(spoilt, named, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    """Put in for good at the fifth step: twice the run goes back, the third time it ends."""
    train_step = Trainer.train_step

    def step(self, batches):
        if self.step == 4:
            spoilt(self, batches)
        train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(DivergedError, match=named) as caught:
        run("joint", tiny_teacher, tiny_data, tmp_path / "run")
    assert caught.value.exit_code == 5
    assert finite(tmp_path / "run" / "student-last-good.safetensors")
    assert all(torch.isfinite(t).all() for t in load_state(tmp_path / "run" / "state.pt")["student"].values())


def test_a_student_whose_images_grow_alike_is_told_of_and_the_one_before_is_kept(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    """Pictures are drawn after steps 5 and 8; from the sixth step on, the student's last layer is nought."""
    train_step, reporter = Trainer.train_step, Notes()

    def step(self, batches):
        if self.step >= 5:
            for net in (self.student, self.ema.net):
                for parameter in net.parameters():
                    parameter.data.zero_()
        train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    out = tmp_path / "run"
    run("mse", tiny_teacher, tiny_data, out, reporter=reporter, more=[("optim.g_lr", 1e-12)])
    (said,) = (said for said in reporter.said if "collapse" in said)
    assert f"the student of step 5 is kept: {out / 'student-before-collapse.safetensors'}" in said
    kept, shares = load_gan(str(out / "student-before-collapse.safetensors")), [e["diversity"] for e in log_of(out) if "diversity" in e]
    assert shares[0] > 0.1
    assert shares[1] == 0
    images = kept.generator(torch.randn(4, 4), None)
    assert float((images[0] - images[1]).abs().max()) > 1e-3


def test_a_sound_student_is_not_called_collapsed(unbroken):
    assert all(e["diversity"] > 0.1 for e in log_of(unbroken("joint")) if "diversity" in e)


# -------------------------------------------------------------------------------------------------------------------- average


def averaging(half_life, rampup, start=0.0):
    return Schedule(kimg=1, batch_size=1, ema_kimg=half_life, ema_rampup=rampup, ema_start_kimg=start)


def test_a_step_s_numbers_are_those_that_torch_s_own_seed_gives():
    torch.manual_seed(7)
    expected = torch.randn(3)
    _seed(7, torch.device("cpu"))
    assert torch.equal(torch.randn(3), expected)


def test_before_its_start_the_average_is_the_student():
    net = nn.Linear(1, 1)
    ema = Ema(net, averaging(1.0, 0.0, start=0.02))
    for images, follows in ((10, True), (20, True), (30, False)):
        nn.init.constant_(net.weight, images)
        ema.update(images, 10)
        assert torch.equal(ema.net.weight, net.weight) == follows


def test_the_average_is_that_of_the_formula_buffers_included():
    net = nn.BatchNorm1d(1)
    ema = Ema(net, averaging(0.1, 0.05))
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.running_mean.fill_(8.0)
        net.num_batches_tracked.fill_(7)
    # half-life min(0.1, 0.05 * 0.4 kimg) = 0.02 kimg; a batch of 0.02 kimg halves the distance: 1 -> 2, 0 -> 4
    ema.update(400, 20)
    assert ema.net.weight.item() == pytest.approx(2.0)
    assert ema.net.running_mean.item() == pytest.approx(4.0)
    assert ema.net.num_batches_tracked.item() == 7  # counts are copied
    # half-life min(0.1, 0.05 * 20) = 0.1: beta = 2^(-20/100)
    ema.update(20_000, 20)
    assert ema.net.weight.item() == pytest.approx(3 - 2 ** (-0.2))
    assert ema.net.running_mean.item() == pytest.approx(8 - 4 * 2 ** (-0.2))


@pytest.mark.parametrize(("half_life", "rampup", "beta"), [(0.0, 0.05, 0.0), (0.02, 0.0, 0.5), (0.01, 0.0, 0.25)])
def test_the_average_without_ramp_or_without_memory(half_life, rampup, beta):
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    ema = Ema(net, averaging(half_life, rampup))
    nn.init.ones_(net.weight)
    ema.update(20, 20)
    assert ema.net.weight.item() == pytest.approx(1 - beta)


def test_the_student_that_is_written_is_the_average(unbroken):
    folder = unbroken("mse")
    state = load_state(folder / "state.pt")
    student = load_file(folder / "student.safetensors")
    assert all(torch.equal(student[f"generator.{k}"], v) for k, v in state["ema"].items())
    assert any(not torch.equal(v, state["ema"][k]) for k, v in state["student"].items())


def test_rates_fall_by_half_a_cosine(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    seen, update = [], Trainer._update

    def noted(self, optimizer, terms, rate, *scaler):
        seen.append(rate)
        update(self, optimizer, terms, rate, *scaler)

    monkeypatch.setattr(Trainer, "_update", noted)
    run("mse", tiny_teacher, tiny_data, tmp_path / "run", steps=4)
    # 1e-3 * (1 + cos(pi t / 4)) / 2 at t = 0, 1, 2, 3
    assert seen == pytest.approx([1e-3, 1e-3 * (1 + 0.5**0.5) / 2, 0.5e-3, 1e-3 * (1 - 0.5**0.5) / 2])


# ------------------------------------------------------------------------------------------------------- disk and memory full


def fail_fsync(monkeypatch, number, after=0):
    fsync, calls = os.fsync, [0]

    def failing(handle):
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", failing)


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk full while writing 2,000 bytes"), (errno.EROFS, "cannot be written"), (errno.EACCES, "denied")]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(number, said, tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    atomic_write(path, b"old")
    fail_fsync(monkeypatch, number)
    with pytest.raises(GanCompressError) as caught:
        atomic_write(path, b"x" * 2000)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_space_is_looked_at_before_writing(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    atomic_write(path, b"old")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1999))
    monkeypatch.setattr(checkpoint, "_write", None)
    with pytest.raises(GanCompressError, match=r"state.pt: disk full while writing 2,000 bytes; what was there before is intact"):
        atomic_write(path, b"x" * 2000)
    assert path.read_bytes() == b"old"


def test_a_write_that_is_interrupted_leaves_no_part_of_it(tmp_path, monkeypatch):
    def interrupted(path, data):
        path.write_bytes(data[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "state.pt", b"whole")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_during_a_run_leaves_a_state_to_go_on_from(long_run, tiny_teacher, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        save, calls = checkpoint.save_state, [0]

        def full(path, state):
            calls[0] += 1
            if calls[0] > 3:
                fail_fsync(patch, errno.ENOSPC)
            save(path, state)

        patch.setattr("gancompress.loop.save_state", full)
        result = CliRunner().invoke(app, command(tiny_teacher, out))
    assert result.exit_code == 1
    said = (result.output + result.stderr).replace("\n", "")
    assert f"{out / 'state.pt'}: disk full while writing" in said
    assert not list(out.rglob("*.tmp"))
    assert load_state(out / "state.pt")["step"] == 100
    assert CliRunner().invoke(app, command(tiny_teacher, out)).exit_code == 0
    assert_same_run(out, long_run)


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    log, open_ = Log(tmp_path / "log.jsonl", 0), Path.open

    def full(self, mode="r", *args, **kwargs):
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(GanCompressError, match=r"log.jsonl: disk full"):
        log.write(step=1, kimg=0)


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("not enough memory: you tried to allocate 9 GB")]


def room_for(monkeypatch, images, error=OUT_OF_MEMORY[0]):
    """A memory that so many images at a time fit into; what was tried."""
    tried, train_step = [], Trainer.train_step

    def step(self, batches):
        tried.append((len(batches(self.step, 0).inputs), self.step))
        if tried[-1][0] > images:
            raise error
        train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    return tried


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_names_the_largest_batch_size_that_fits(error, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    tried, folder = room_for(monkeypatch, 3, error), tmp_path / "run"
    with pytest.raises(GanCompressError, match="out of memory with --batch-size 16 on cpu") as caught:
        run("joint", tiny_teacher, tiny_data, folder, more=[("schedule.batch_size", 16)])
    assert tried == [(16, 0), (8, 0), (4, 0), (2, 0), (2, 8 * STEPS - 1)]  # at the last step too: what begins late is to fit
    assert "--batch-size 2," in caught.value.hint
    assert "schedule.accumulate=8 keeps a batch of 16" in caught.value.hint
    assert caught.value.exit_code == 1
    assert caught.value.__context__ is None  # it would hold the memory


def test_what_is_tried_after_out_of_memory_leaves_the_run_as_it_was(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    def files():
        return {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}

    before, train_step = {}, Trainer.train_step

    def step(self, batches):
        if len(batches(0, 0).inputs) == 4 and self.step == 5:
            before.update(files())
            raise MemoryError
        train_step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with pytest.raises(GanCompressError, match="out of memory"):
            run("mse-pool", tiny_teacher, tiny_data, tmp_path / "run")
    assert len(before) > 3
    assert files() == before


@pytest.mark.parametrize(("more", "remedies"), [([], ["--precision bf16", "schedule.accumulate=4"]), ([("precision", "bf16"), ("schedule.accumulate", 4)], [])])
def test_where_not_even_one_image_fits_other_remedies_are_named(more, remedies, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    room_for(monkeypatch, 0)
    with pytest.raises(GanCompressError, match="and no smaller one fits") as caught:
        run("mse", tiny_teacher, tiny_data, tmp_path / "run", more=more)
    assert caught.value.hint == ", ".join([*remedies, "a smaller --ch-mul"]) + ", in a new --out"


def test_an_error_in_a_trial_that_is_not_of_memory_is_not_hidden(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    def step(self, batches):
        raise MemoryError if len(batches(0, 0).inputs) == 4 else RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")


def test_another_runtime_error_is_not_called_out_of_memory(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    def step(self, batches):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run")


def test_a_state_goes_round_without_loss(tmp_path):
    state = {"step": 3, "tensor": torch.randn(4), "nested": {"a": [1, 2.5, None]}}
    save_state(tmp_path / "state.pt", state)
    back = load_state(tmp_path / "state.pt")
    assert back["nested"] == state["nested"]
    assert torch.equal(back["tensor"], state["tensor"])
