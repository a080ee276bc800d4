"""Several processes train the student that one would: the same images, gradients averaged, one of them writes, and they end together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gan, small_gan

from gancompress.checkpoint import load_state, save_networks
from gancompress.collecting import collect
from gancompress.console import Silent
from gancompress.planning import make_plan, run_plan

WORKER = Path(__file__).with_name("ranks_worker.py")
CLOSE = 1e-5
SHORT = {"output.log_kimg": 0.016, "output.pictures_kimg": 10, "output.save_kimg": 10, "schedule.batch_size": 8, "schedule.ema_kimg": 0.02}
#: no BatchNorm, whose statistics are each process's own
DCGAN = {"g_norm": "none", "d_norm": "none", "g_bias": True, "d_bias": True}
STYLED = {"resolution": 8, "nc": 1, "nz": 4, "w_dim": 6, "map_layers": 2, "const_width": 8, "g_widths": (8, 4), "noise": "random"}
#: recipe, teacher, and settings that use all a recipe has, with batches of 8
CASES = {
    "mse": ("mse", "dcgan", {"schedule.teacher_pool": 40}),
    "mse-stylegan3": ("mse", "stylegan3", {}),
    "mse-recorded": ("mse", "recorded", {}),
    "joint": ("joint", "dcgan", {"weights.game": "wasserstein", "weights.gradient_penalty": 10, "schedule.d_steps": 2, "schedule.accumulate": 2}),
    "scratch": ("scratch", "dcgan", {"weights.r1": 1, "weights.r1_every": 4, "weights.augment": ["colour", "translation", "cutout"], "data.mirror": True}),
    "akdg": ("akdg", "dcgan", {"schedule.accumulate": 2, "schedule.kimg": 1}),
    "dgl": ("dgl", "stylegan2", {"weights.guide_from_kimg": "auto", "weights.r1_every": 4, "student.init": "slice"}),
    "imitate": ("imitate", "stylegan2", {"weights.resolutions": [4], "weights.d_inter": 0.2, "weights.d_out": 0.2}),
    "tinygan-blackbox": ("tinygan-blackbox", "dcgan", {"student.family": "dcgan", "student.arch": {**DCGAN, "g_widths": [4], "d_widths": [4]}}),
    "portable-i2i": ("portable-i2i", "unet", {}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{name: (teacher, data)} as paths."""
    folder = tmp_path_factory.mktemp("sources")
    made = {
        "dcgan": make_gan(**DCGAN),
        "stylegan2": small_gan("stylegan2", STYLED),
        "stylegan3": small_gan("stylegan3", {"resolution": 16, "nz": 4, "w_dim": 8, "widths": (6, 4, 4), "margin": 2}),
        "unet": small_gan("unet", {"resolution": 16, "nc": 1, "nc_in": 1, "g_widths": (4, 6, 6), "g_norm": "instance", "g_bias": False, "dropout": True}
                          | {"d_widths": (4, 8), "d_norm": "instance-affine", "d_nc": 2}),
    }  # fmt: skip
    for name, gan in made.items():
        save_networks(folder / f"{name}.safetensors", gan.family, gan.arch, gan.networks, {})
    pixels = np.random.default_rng(0)
    np.savez(folder / "real.npz", x_train=pixels.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    np.savez(folder / "pairs.npz", source=pixels.integers(0, 256, (40, 16, 16), dtype=np.uint8), target=pixels.integers(0, 256, (40, 16, 16), dtype=np.uint8))
    collect(str(folder / "dcgan.safetensors"), folder / "recorded", num=40, device="cpu")
    return folder


def case_of(name, sources, steps, **more):
    """One case as ranks_worker.py takes it."""
    recipe, teacher, settings = CASES[name]
    options = {"steps": steps, "overrides": list((SHORT | {"student.ch_mul": 0.5} | settings).items())}
    if "arch" in str(settings):
        options["overrides"].remove(("student.ch_mul", 0.5))
    if recipe not in ("mse", "tinygan-blackbox"):
        options["data"] = str(sources / ("pairs.npz" if teacher == "unet" else "real.npz"))
    if teacher == "recorded":
        options["recorded"] = str(sources / "recorded")
    return {"args": [None if teacher == "recorded" else str(sources / f"{teacher}.safetensors"), recipe], "options": options, **more}


def start(count, cases, folder):
    """So many processes at work on these cases."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(WORKER), str(folder / "cases.json"), str(folder)]
    return [subprocess.Popen(command, env=os.environ | place | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE) for r in range(count)]


def wait(processes, seconds=600):
    for process in processes:
        said = process.communicate(timeout=seconds)[1].decode()
        assert process.returncode == 0, said


def left(folder, count):
    """What each process of a case left."""
    return [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in range(count)]


def difference(a, b):
    """The largest absolute one between two states, numbers and tensors; infinite where they are not of one shape."""
    if isinstance(a, dict):
        return max([difference(a[k], b[k]) for k in a], default=0.0) if a.keys() == b.keys() else float("inf")
    if isinstance(a, list | tuple):
        return max([difference(x, y) for x, y in zip(a, b, strict=True)], default=0.0)
    if isinstance(a, torch.Tensor):
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    return abs(a - b) if isinstance(a, float) and not isinstance(a, bool) else 0.0 if a == b else float("inf")


def apart(a, b):
    """The largest difference of any weight, average or statistic of two states."""
    return max(difference(a[part], b[part]) for part in ("step", "attempt", "student", "ema", "loss"))


def in_this_process(case, out):
    """The same case trained by one process; its run folder."""
    return run_plan(make_plan(*case["args"], **case["options"], out=out, device="cpu"), Silent()).parent


# ------------------------------------------------------------------------------------------------------------ the student of one

STEPS = 20
BRIEF = ("joint", "dgl")


@pytest.fixture(scope="module")
def two(sources, tmp_path_factory):
    """Folder of what two processes left of some cases: two recipes to their end, one stopped on its way, one with a loss that was not finite."""
    folder = tmp_path_factory.mktemp("two")
    cases = {name: case_of(name, sources, STEPS) for name in BRIEF}
    cases["stopped"] = case_of("joint", sources, STEPS, stop_at=9)
    cases["spoilt"] = case_of("mse", sources, STEPS, spoil_at=5)
    wait(start(2, cases, folder))
    return folder


@pytest.fixture(scope="module")
def one(sources, tmp_path_factory):
    """{case: run folder} of a single process."""
    folder = tmp_path_factory.mktemp("one")
    return {name: in_this_process(case_of(name, sources, STEPS), folder / name) for name in BRIEF}


@pytest.mark.parametrize("name", BRIEF)
def test_two_processes_train_the_student_of_one(name, one, two):
    mine, other = left(two / name, 2)
    assert mine["code"] == other["code"] == 0
    assert difference(mine["state"], other["state"]) == 0
    assert apart(mine["state"], load_state(one[name] / "state.pt")) < CLOSE


@pytest.mark.parametrize("name", BRIEF)
def test_the_first_of_two_processes_writes_all_and_the_other_nothing(name, two):
    assert {p.name for p in (two / name).iterdir()} == {"run", "rank-0.pt", "rank-1.pt"}
    assert {"run.json", "log.jsonl", "samples", "curves.png", "state.pt", "student.safetensors", "discriminator.safetensors"} <= {
        p.name for p in (two / name / "run").iterdir()
    }


def test_logged_losses_are_means_over_the_processes(one, two):
    alone, together = ([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one["joint"], two / "joint" / "run"))
    terms = [(a[k], b[k]) for a, b in zip(alone, together, strict=True) for k in ("adv", "mse", "d_adv", "d_gp") if k in a]
    assert len(terms) == 4 * STEPS // 2
    assert all(a == pytest.approx(b, abs=CLOSE) for a, b in terms)


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_one_goes_on_from_there(sources, one, two):
    mine, other = left(two / "stopped", 2)
    assert mine["code"] == other["code"] == 75
    assert mine["state"]["step"] == other["state"]["step"] == 12  # sent in the tenth step; they look every four
    resumed = in_this_process(case_of("joint", sources, STEPS), two / "stopped" / "run")
    assert apart(*(load_state(folder / "state.pt") for folder in (resumed, one["joint"]))) < CLOSE


def test_a_loss_that_is_not_finite_in_one_process_takes_both_back(two):
    mine, other = left(two / "spoilt", 2)
    assert mine["code"] == other["code"] == 0
    assert mine["state"]["attempt"] == other["state"]["attempt"] == 1
    assert difference(mine["state"], other["state"]) == 0
    assert torch.isfinite(torch.cat([t.flatten() for t in mine["state"]["student"].values()])).all()


@pytest.mark.slow
def test_one_two_and_four_processes_agree_after_a_hundred_steps_of_every_recipe(sources, tmp_path):
    found = {}
    for count in (2, 4):
        wait(start(count, {name: case_of(name, sources, 100) for name in CASES}, tmp_path / str(count)), 3000)
    for name in CASES:
        alone = load_state(in_this_process(case_of(name, sources, 100), tmp_path / "one" / name) / "state.pt")
        for count in (2, 4):
            states = [each["state"] for each in left(tmp_path / str(count) / name, count)]
            assert all(difference(states[0], other) == 0 for other in states[1:]), (name, count)
            found[name, count] = {part: difference(states[0][part], alone[part]) for part in ("student", "ema", "loss", "g_opt", "d_opt")}
            print(name, count, {k: f"{v:.1e}" for k, v in found[name, count].items()})
    assert all(max(each["student"], each["ema"], each["loss"]) < CLOSE for each in found.values()), found
