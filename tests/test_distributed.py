"""Several processes train the student that one would: the same images, gradients averaged, one of them writes, and they end together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gan, small_gan
from typer.testing import CliRunner

from gancompress import distributed as ranks
from gancompress import layers
from gancompress.augment import augment
from gancompress.checkpoint import load_state, save_networks
from gancompress.cli import app
from gancompress.collecting import collect
from gancompress.config import load_recipe
from gancompress.console import Silent
from gancompress.data import Batches, Images
from gancompress.errors import UsageError
from gancompress.loading import load_gan
from gancompress.planning import make_plan
from gancompress.recorded import Feed, Recorded
from gancompress.request import Request
from gancompress.running import run_plan

WORKER = Path(__file__).with_name("ranks_worker.py")
CLOSE = 1e-5
SHORT = {"output.log_kimg": 0.016, "output.pictures_kimg": 10, "output.save_kimg": 10, "schedule.batch_size": 8, "schedule.ema_kimg": 0.02}
#: no BatchNorm, whose statistics are each process's own; below, no bias in front of a norm that takes it away: its gradient is rounding alone
DCGAN = {"g_norm": "none", "d_norm": "none", "g_bias": True, "d_bias": True}
STYLED = {"resolution": 8, "nc": 1, "nz": 4, "w_dim": 6, "map_layers": 2, "const_width": 8, "g_widths": (8, 4), "noise": "random"}
#: recipe, teacher, and settings that use all a recipe has
CASES = {
    "mse": ("mse", "dcgan", {"schedule.teacher_pool": 48}),
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
        # no norm in this small critic: InstanceNorm over a few nearly constant pixels blows rounding up a thousandfold (docs/scaling.md)
        "unet": small_gan("unet", {"resolution": 16, "nc": 1, "nc_in": 1, "g_widths": (4, 6, 6), "g_norm": "instance", "g_bias": False, "dropout": True}
                          | {"d_widths": (4, 8), "d_norm": "none", "d_bias": True, "d_nc": 2}),
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
    return run_plan(make_plan(Request(*case["args"], **case["options"], out=out, device="cpu")), Silent()).parent


# ------------------------------------------------------------------------------------------------------------ the student of one

STEPS = 20
BRIEF = ("joint", "imitate")


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


# -------------------------------------------------------------------------------------------------------------- shares of a batch


def shares(monkeypatch, count, make):
    """What each of ``count`` processes would make, dealt out like cards."""
    made = []
    for rank in range(count):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "_here", ranks._Here(rank, count))
            torch.manual_seed(3)
            made.append(make())
    return torch.stack(made, 1).flatten(0, 1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("make", [
    lambda n: augment(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(n, -1, -1, -1), ["colour", "translation", "cutout"]),
    lambda n: layers.dropout(torch.ones(n, 5), 0.5),
    lambda n: ranks.normal(torch.empty(n, 3, 2)),
], ids=["augment", "dropout", "normal"])  # fmt: skip
def test_random_numbers_of_a_batch_are_those_of_one_process(count, make, monkeypatch):
    torch.manual_seed(3)
    whole = make(8)
    assert whole.std() > 0
    assert torch.equal(shares(monkeypatch, count, lambda: make(8 // count)), whole)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("source", ["live", "pool", "recorded"])
def test_a_batch_is_the_same_images_for_any_number_of_processes(count, source, sources, monkeypatch):
    teacher, images = load_gan(str(sources / "dcgan.safetensors")), Images(str(sources / "real.npz"), 8, 1)
    schedule = load_recipe("joint", [("schedule.batch_size", 16), ("schedule.accumulate", 2), ("schedule.d_steps", 2)]).schedule
    recorded = {}
    if source == "recorded":
        recorded = {name: Feed(Recorded(str(sources / "recorded")), 0, stream, torch.device("cpu")) for stream, name in enumerate(("pairs", "others"))}

    def batch():
        batches = Batches(
            teacher, teacher, images, schedule, mirror=True, seed=0, pool=32 if source == "pool" else 0, device=torch.device("cpu"), **recorded
        )  # fmt: skip
        found = batches(5, 1, 1)
        return torch.cat([x.flatten(1) for x in (found.inputs, found.real, found.teacher, found.unpaired[0])], 1)

    torch.testing.assert_close(shares(monkeypatch, count, batch), batch(), atol=1e-6, rtol=0)


def test_every_process_takes_as_many_pictures_as_one(sources, monkeypatch):
    feed = Feed(Recorded(str(sources / "recorded")), 0, 0, torch.device("cpu"))
    monkeypatch.setattr(ranks, "_here", ranks._Here(0, 4))
    assert len(feed.take(0, 16)[0]) == 16


def test_groups_of_a_minibatch_deviation_are_those_of_one_process(monkeypatch):
    critic = small_gan("stylegan2", STYLED).discriminator
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for count in (2, 4):
        parts = torch.stack([critic(images[r::count], None) for r in range(count)], 1).flatten()
        torch.testing.assert_close(parts, critic(images, None))


# --------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("count", "accumulate", "said", "remedy"), [
    (3, 1, "a batch of 8 does not divide among 3 processes", "--batch-size 9"),
    (4, 4, "a batch of 8 in 4 parts of 2 does not divide among 4 processes", "--batch-size 16"),
])  # fmt: skip
def test_a_batch_that_does_not_divide_is_refused(count, accumulate, said, remedy, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_here", ranks._Here(0, count))
    case = case_of("scratch", sources, 1)
    case["options"]["overrides"].append(("schedule.accumulate", accumulate))
    with pytest.raises(UsageError, match=said) as caught:
        make_plan(Request(*case["args"], **case["options"], out=tmp_path / "run", device="cpu"))
    assert caught.value.hint.startswith(remedy)


def test_the_plan_tells_what_is_of_each_process_alone(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_here", ranks._Here(0, 2))
    notes = make_plan(Request(str(tiny_teacher), "mse", out=tmp_path / "run", device="cpu")).notes
    assert any(note.startswith("2 processes, each with 16 of 32 images at once; BatchNorm normalises over a process's own") for note in notes)


@pytest.mark.parametrize(("environment", "options", "said"), [
    ({"RANK": "2", "WORLD_SIZE": "2"}, (), "RANK=2 and WORLD_SIZE=2"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, (), "no MASTER_ADDR and MASTER_PORT"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, ("--gpus", "3"), "--gpus 3: 2 processes were started"),
])  # fmt: skip
def test_an_environment_that_makes_no_sense_is_refused(environment, options, said, tiny_teacher, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["distill", str(tiny_teacher), "--device", "cpu", "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


def test_more_gpus_than_there_are_and_one_named_for_all_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--gpus 3: this machine has 2"):
        ranks.launch(3, torch.device("cuda"))
    for name, value in {"MASTER_ADDR": "here", "MASTER_PORT": "1", "RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="LOCAL_RANK=2: this machine has 2 CUDA devices"), ranks.joined(torch.device("cuda")):
        pass
    with pytest.raises(UsageError, match="--device cuda:1: each process takes a GPU of its own"), ranks.joined(torch.device("cuda:1")):
        pass


# ------------------------------------------------------------------------------------------------------------- on the command line


def command(teacher, out, steps, *more):
    words = [
        "--gpus",
        "2",
        "--device",
        "cpu",
        "--steps",
        str(steps),
        "--out",
        str(out),
        "schedule.batch_size=4",
        "output.log_kimg=0.04",
        "output.save_kimg=0.04",
    ]
    return [sys.executable, "-m", "gancompress", "distill", str(teacher), *words, *more]


def evaluated(folder, *words):
    """What eval prints as JSON in a process of its own, with its own cache, without what is timed."""
    words = [sys.executable, "-m", "gancompress", "eval", *map(str, words), "--device", "cpu", "--feature-extractor", "random", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder)}, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


METRICS = ["--num-images", 130, "--batch-size", 16, "--metrics", "fid,is,pr,vol,diversity"]


@pytest.mark.parametrize("words", [METRICS, pytest.param(["--num-images", 20, "--batch-size", 8, "--per-class", "all"], marks=pytest.mark.slow)])
def test_two_processes_measure_what_one_does(words, tmp_path):
    """Batches of 16, and a last one of 2: five for the first process, four for the second."""
    gan = small_gan("tinygan", {"resolution": 32, "nz": 4, "classes": 3, "width": 4})
    save_networks(path := tmp_path / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    one, two = (evaluated(tmp_path / name, path, "--against", path, *words, *more) for name, more in (("a", ()), ("b", ("--gpus", "2"))))
    assert one["student"].keys() == two["student"].keys()
    assert difference(one, two) < 1e-9
    assert one["protocol"] == two["protocol"]


def running(teacher, out):
    """A run on two processes that has saved a state on its way."""
    process = subprocess.Popen(
        command(teacher, out, 10**6), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    until = time.monotonic() + 120
    while not (out / "log.jsonl").is_file() or not (out / "log.jsonl").read_text():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def test_a_killed_process_ends_all_within_half_a_minute_and_is_named(tiny_teacher, tmp_path):
    process = running(tiny_teacher, tmp_path / "run")
    first, second = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert "process 2 of 2 was killed by SIGKILL" in said
    assert "another process of this run has ended" in said
    assert "the same command goes on from the last saved state" in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{first}").exists()
    assert load_state(tmp_path / "run" / "state.pt")["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_saves_and_its_code_is_the_runs(number, code, tiny_teacher, tmp_path):
    process = running(tiny_teacher, tmp_path / "run")
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert len(re.findall(r"error: stopped by SIG\w+ at step", said)) == 1
    assert "Traceback" not in said
    step = load_state(tmp_path / "run" / "state.pt")["step"]
    assert f"at step {step:,} of" in said


@pytest.mark.slow
def test_a_refusal_is_told_once_and_ends_all(tiny_teacher, tmp_path):
    done = subprocess.run(command(tiny_teacher, tmp_path / "run", 2, "schedule.batch_size=5"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "a batch of 5 does not divide among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------------- every recipe


@pytest.mark.slow
def test_one_two_and_four_processes_agree_after_a_hundred_steps_of_every_recipe(sources, tmp_path):
    found = {}

    def long(name):
        """Batches of 16: with four processes the groups of StyleGAN2's minibatch deviation, four images, are still whole."""
        case = case_of(name, sources, 100)
        case["options"]["overrides"].append(("schedule.batch_size", 16))
        return case

    for count in (2, 4):
        wait(start(count, {name: long(name) for name in CASES}, tmp_path / str(count)), 3000)
    for name in CASES:
        alone = load_state(in_this_process(long(name), tmp_path / "one" / name) / "state.pt")
        for count in (2, 4):
            states = [each["state"] for each in left(tmp_path / str(count) / name, count)]
            assert all(difference(states[0], other) == 0 for other in states[1:]), (name, count)
            found[name, count] = {part: difference(states[0][part], alone[part]) for part in ("student", "ema", "loss", "g_opt", "d_opt")}
            print(name, count, {k: f"{v:.1e}" for k, v in found[name, count].items()})
    assert all(max(each["student"], each["ema"], each["loss"]) < CLOSE for each in found.values()), found
