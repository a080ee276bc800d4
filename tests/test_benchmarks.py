"""benchmarks/training.py: that it measures what it says, on networks small enough for a test."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO, SMALL

from gancompress.data import FALLBACK, rng
from gancompress.loading import load_gan

TINY = {
    "dcgan": (SMALL["dcgan"][0], 4),
    "biggan": (SMALL["biggan"][1] | {"truncation": 1.0}, 4),
    "unet": (SMALL["unet"][0], 2),
}
#: what the first losses of both loops need to be comparable: no latents that each draws for itself
ALIKE = {"imitate": [("weights.resolutions", [4])], "tinygan-blackbox": [("weights.gan", 0), ("weights.d_gan", 0), ("weights.adversarial_every", 1)]}


@pytest.fixture
def scripts(monkeypatch):
    """A function that imports a module of benchmarks/, with small sizes."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    before = set(sys.modules)
    cases = importlib.import_module("training_cases")
    monkeypatch.setitem(cases.SIZES, "small", TINY)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(REPO / "benchmarks")):
            del sys.modules[name]


def run(scripts, monkeypatch, out, *words):
    monkeypatch.setattr(sys, "argv", ["training.py", "--device", "cpu", "--seconds", "0", "--evaluator-images", "0", "--out", str(out), *words])
    scripts("training").main()
    return json.loads((out / "training.json").read_text()), (out / "training.md").read_text()


def test_a_row_has_rates_as_ratios_to_the_plain_loop_the_parts_of_a_step_and_a_share_of_the_peak(scripts, monkeypatch, tmp_path, capsys):
    found, table = run(scripts, monkeypatch, tmp_path, "--families", "dcgan", "--recipes", "mse,joint")
    mse, joint = found["rows"]
    assert (mse["family"], mse["recipe"], joint["recipe"]) == ("dcgan", "mse", "joint")
    assert {"ours", "plain", "reused"} <= set(mse["rates"])
    assert {"ours", "plain"} <= set(joint["rates"])
    for row in (mse, joint):
        assert row["rates"]["plain"]["ratio"] == 1
        assert all(r["images_per_s"] > 0 and r["ratio"] > 0 and r["rounds"] >= 3 for r in row["rates"].values())
        assert 0 < row["share_of_peak"] < 2
        assert set(row["ms_of_writing"]) == {"log", "pictures", "states"}
    assert {"teacher", "student", "student_update", "data", "average", "rest"} <= set(mse["ms"])
    assert {"critics", "critics_update"} <= joint["ms"].keys() - mse["ms"].keys()
    assert [row["width"] for row in found["latency"]] == [1.0, 0.5, 0.25]
    assert [row["fewer_macs"] for row in found["latency"]] == sorted(row["fewer_macs"] for row in found["latency"])
    assert all("--reference" in row["left_out"] for row in found["references"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert "| dcgan | joint | ours | 4 |" in table


def test_a_recipe_that_a_family_cannot_have_is_told_in_the_plan_s_words(scripts, monkeypatch, tmp_path):
    found, table = run(scripts, monkeypatch, tmp_path, "--families", "biggan", "--recipes", "imitate")
    assert "resolutions" in found["rows"][0]["refused"]
    assert found["rows"][0]["refused"] in table


def test_a_switch_is_a_row_of_its_own_and_one_that_the_device_has_not_is_told_in_the_plan_s_words(scripts, monkeypatch, tmp_path):
    found, table = run(scripts, monkeypatch, tmp_path, "--families", "dcgan", "--recipes", "scratch", "--switches", "bf16,tf32")
    row = found["rows"][0]
    assert set(row["rates"]) == {"ours", "bf16", "plain"}
    assert "--precision tf32" in row["refused_switches"]["tf32"]
    assert row["refused_switches"]["tf32"] in table
    assert "| dcgan | scratch | bf16 | 4 |" in table


def test_an_unknown_reference_is_refused(scripts, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(scripts, monkeypatch, tmp_path, "--reference", "tinygan2=here")
    assert "--reference: tinygan2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        *(("dcgan", recipe) for recipe in ("mse", "joint", "scratch", "akdg", "dgl", "imitate")),
        *(("biggan", "dgl"), ("biggan", "tinygan-blackbox"), ("unet", "portable-i2i")),
    ],
)
def test_the_plain_loop_goes_down_by_the_losses_of_ours(scripts, tmp_path, family, recipe):
    cases, loops = scripts("training_cases"), scripts("plain_loops")
    fields, n = TINY[family]
    given = cases.write_case(family, fields, tmp_path)
    changes = [("schedule.kimg", 100), *ALIKE.get(recipe, [])]
    plan, other = (cases.plan_of(*given, recipe, n, torch.device("cpu"), changes) for _ in range(2))
    trainer, batches = cases.trainer_of(plan)
    batch = batches(0, 0)

    def draw():
        real = batch.real_and_condition if "real" in plan.loss.needs | plan.loss.uses else (batch.inputs, None)
        others = plan.teacher.sample(n, rng(0, 0, FALLBACK, 0)) if plan.student.arch.nz else (batch.inputs, None)
        return batch.inputs, batch.condition, *real, *others

    step = loops.plain_loop(other, draw)
    theirs = step()
    trainer.train_step(batches)
    lazy = {"d_r1"} if plan.loss.d_every else set()  # a step of its own
    ours = {name: float(value) for name, value in trainer.sums.items() if not name.startswith("score") and name not in lazy}
    assert float(theirs["g"]) == pytest.approx(sum(v for k, v in ours.items() if not k.startswith("d_")), rel=1e-4)
    if "d" in theirs:
        assert float(theirs["d"]) == pytest.approx(sum(v for k, v in ours.items() if k.startswith("d_")), rel=1e-4)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["tinygan", "dgl", "rosinality"])
def test_a_reference_s_step_trains_networks_that_we_read(scripts, name, tmp_path):
    folder = Path(os.environ.get("GANCOMPRESS_REFERENCES", "")) / name
    if not os.environ.get("GANCOMPRESS_REFERENCES") or not folder.is_dir():
        pytest.skip(f"no checkout {name} in GANCOMPRESS_REFERENCES")
    reference = scripts("reference_steps").REFERENCES[name][1](folder.resolve(), tmp_path, False, torch.device("cpu"))
    reference.step()
    reference.step()
    student = load_gan(str(reference.student))
    assert torch.isfinite(student.generator(*student.sample(2, torch.Generator().manual_seed(0)))).all()
