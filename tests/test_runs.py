"""The run folder: one process, one identity, whatever the paths are called."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.console import Silent
from gancompress.errors import DivergedError, UsageError
from gancompress.loading import load_gan
from gancompress.loop import Trainer
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan
from gancompress.runs import locked

SHORT = {"steps": 2, "device": "cpu", "overrides": [("schedule.batch_size", 4), ("student.ch_mul", 0.5)]}


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_processes_do_not_train_in_one_folder(tiny_teacher, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UsageError, match="another process"):
        gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT)
    assert gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT).is_file()


def test_a_folder_is_free_again_after_a_run_that_failed(tiny_teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: {}["nothing"])
        with pytest.raises(KeyError):
            gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT)
    assert gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT).is_file()


def test_a_run_is_the_same_however_its_teacher_is_called(tiny_teacher, elsewhere):
    shutil.copy(tiny_teacher, elsewhere / "t.safetensors")
    first = gancompress.distill("t.safetensors", out="run", **SHORT)
    for name in (str(elsewhere / "t.safetensors"), "./t.safetensors", str(tiny_teacher)):
        assert gancompress.distill(name, out=elsewhere / "run", **SHORT).samefile(first)


def test_the_teacher_of_a_run_is_found_from_another_directory(tiny_teacher, elsewhere, monkeypatch):
    shutil.copy(tiny_teacher, elsewhere / "t.safetensors")
    gancompress.distill("t.safetensors", out="run", **SHORT)
    (elsewhere / "deep").mkdir()
    monkeypatch.chdir(elsewhere / "deep")
    words = ["eval", "../run", "--num-images", "4", "--feature-extractor", "digits", "--json", "--device", "cpu"]
    found = json.loads(call(*words).stdout)
    assert found["against"] == str(elsewhere / "t.safetensors")
    assert found["student"]["inception_score"] >= 1, "four images are fewer than ten splits"
    (elsewhere / "t.safetensors").unlink()
    gone = call(*words)
    assert json.loads(gone.stdout)["against"] is None
    assert "t.safetensors is left out: it is not here" in gone.stderr.replace("\n", "")
    assert "--against PATH" in gone.stderr


def test_the_same_call_again_finds_the_finished_run(tiny_teacher, elsewhere):
    first = gancompress.distill(str(tiny_teacher), **SHORT)
    assert gancompress.distill(str(tiny_teacher), **SHORT) == first
    assert gancompress.distill(str(tiny_teacher), **{**SHORT, "steps": 3}) != first


def test_a_folder_of_another_run_is_refused_by_the_plan_itself(tiny_teacher, elsewhere):
    gancompress.distill(str(tiny_teacher), out="run", **SHORT)
    said = call("distill", tiny_teacher, "--out", "run", "--steps", "7", "--batch-size", "4", "--ch-mul", "0.5", "--device", "cpu", "--dry-run", code=2).stderr
    assert "schedule.kimg" in said


def test_a_recipe_file_that_was_lost_is_written_again(tiny_teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: {}["nothing"])
        with pytest.raises(KeyError):
            gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT)
    (tmp_path / "run" / "recipe.yaml").unlink()
    gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT)
    assert (tmp_path / "run" / "recipe.yaml").is_file()


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_is_never_saved(at, tiny_teacher, tmp_path, monkeypatch):
    """The loss of that step is finite; its gradient, and so every weight after it, is not."""
    original, calls = Trainer.train_step, []

    def spoiled(self, batches):
        original(self, batches)
        calls.append(self.step)
        if len(calls) == at:
            with torch.no_grad():
                next(self.student.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Trainer, "train_step", spoiled)
    path = gancompress.distill(str(tiny_teacher), out=tmp_path / "run", **SHORT)
    assert all(torch.isfinite(t).all() for t in load_file(path).values() if t.is_floating_point())
    assert "rolled back" in (tmp_path / "run" / "log.jsonl").read_text()
    monkeypatch.setattr(Trainer, "train_step", lambda self, batches: (calls.clear(), spoiled(self, batches)) if at == 1 else spoiled(self, batches))
    if at == 1:
        with pytest.raises(DivergedError):
            gancompress.distill(str(tiny_teacher), out=tmp_path / "again", **SHORT)
        assert not (tmp_path / "again" / "student.safetensors").exists()


def test_the_critic_of_a_student_of_another_family_is_saved_under_its_own(tiny_teacher, tmp_path):
    overrides = [*SHORT["overrides"], ("student.family", "mlp")]
    gancompress.distill(str(tiny_teacher), "joint", out=tmp_path / "run", **{**SHORT, "overrides": overrides})
    run = load_gan(str(tmp_path / "run"))
    assert run.family.name == "mlp"
    critic = load_gan_part(tmp_path / "run" / "discriminator.safetensors")
    assert critic.arch.d_widths == load_gan(str(tiny_teacher)).arch.d_widths


def load_gan_part(path):
    return gancompress.load(str(path), part="discriminator")


def test_a_target_counts_the_fields_set_by_hand(tiny_teacher, tmp_path):
    """Biases set by hand make the student larger, so that a smaller share of the width fits."""
    gan = gancompress.loading.load_gan(str(tiny_teacher))
    wide = gan.family.build_arch(gan.arch, {"width": 64, "d_width": 4})
    save_networks(tmp_path / "wide.safetensors", gan.family, wide, {"generator": gan.family.generator(wide)}, {})
    limit = "9000"
    plans = [
        make_plan(Request(str(tmp_path / "wide.safetensors"), overrides=o, target_params=limit, out=tmp_path / "run", device="cpu"))
        for o in ([], [("student.arch.g_bias", True), ("student.init", "random")])
    ]
    assert plans[1].student.arch.g_bias
    assert all(p.student_cost.parameters <= 9000 for p in plans)
    assert plans[0].recipe.student.ch_mul >= plans[1].recipe.student.ch_mul


def test_planning_twice_and_running_once_is_the_same(tiny_teacher, tmp_path):
    plan = make_plan(Request(str(tiny_teacher), out=tmp_path / "run", **SHORT))
    again = make_plan(Request(str(tiny_teacher), out=tmp_path / "run", **SHORT))
    assert plan.identity == again.identity
    assert run_plan(plan, Silent()) == run_plan(again, Silent())
