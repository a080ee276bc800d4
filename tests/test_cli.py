"""The user's own words, run as written; whatever the command line does, Python does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import gancompress
from gancompress.cli import app
from gancompress.config import load_recipe, recipe_names, recipe_path
from gancompress.loading import load_gan

SHORT = ["--steps", "3", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gancompress.metrics.latency", lambda gan, batch_size, device: (1.0, 0.1))
    return tmp_path


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def wide_teacher(tmp_path_factory):
    """A teacher with enough channels to choose from."""
    from gancompress.checkpoint import save_networks
    from gancompress.families import FAMILIES

    family = FAMILIES["dcgan"]
    arch = family.build_arch(None, {"resolution": 8, "nc": 1, "nz": 4, "width": 64})
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    save_networks(path, family, arch, {"generator": family.generator(arch), "discriminator": family.discriminator(arch)}, {})
    return path


def test_distill_then_eval_export_and_sample_without_an_argument(tiny_teacher, elsewhere):
    said = call("distill", tiny_teacher, "--recipe", "mse", "--ch-mul", "0.5", *SHORT).output
    run = elsewhere / "runs" / "00000-mse-dcgan-x0.5"
    assert said.splitlines()[-1].startswith(f"student: {run.relative_to(elsewhere)}")
    assert "next: gancompress eval" in said.splitlines()[-1]
    assert {"student.safetensors", "report.html", "curves.png", "log.jsonl", "recipe.yaml", "run.json", "state.pt", "state.previous.pt", "samples"} == {
        p.name for p in run.iterdir() if p.name[0] != "."
    }
    assert Image.open(run / "curves.png").size[0] > 200
    assert Image.open(run / "samples" / "step-0000003.png").size[1] > 0

    found = json.loads(call("eval", "--num-images", "64", "--feature-extractor", "digits", "--json", "--device", "cpu").stdout)
    assert found["source"] == str(run.relative_to(elsewhere))
    assert found["against"] == str(tiny_teacher)
    assert {"student", "teacher", "paired", "protocol"} <= found.keys()
    assert found["student"]["parameters"] < found["teacher"]["parameters"]
    table = call("eval", "--num-images", "64", "--feature-extractor", "digits", "--device", "cpu").output
    assert "digit" in table
    assert "FID" not in table

    call("export")
    assert {p.name for p in (run / "export").iterdir()} == {"model.safetensors", "config.json", "parity.json"}
    call("sample", "--num", "9", "--device", "cpu")
    assert Image.open(elsewhere / "samples.png").size == (192, 192)  # three to a row, 8 x 8 enlarged to 64
    z = torch.randn(3, 4)
    assert torch.equal(gancompress.load(str(run))(z), gancompress.load(str(run / "export"))(z))


def test_eval_without_inception_weights_leaves_the_distance_out_and_says_so(tiny_teacher, elsewhere, monkeypatch):
    import urllib.error

    def refused(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(elsewhere / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    call("distill", tiny_teacher, *SHORT)
    result = call("eval", "--num-images", "8", "--device", "cpu")
    assert "left out" in result.stderr
    assert "--weights" in result.stderr
    assert "MSE" in result.output
    asked = call("eval", "--num-images", "8", "--device", "cpu", "--feature-extractor", "inception", code=4)
    assert "weights-inception" in asked.stderr


@pytest.mark.parametrize("command", ["eval", "export", "sample"])
def test_without_a_finished_run_the_commands_say_what_to_do(command):
    result = call(command, code=4)
    assert "no finished run under ./runs" in result.stderr
    assert "gancompress distill" in result.stderr


def test_the_newest_finished_run_is_taken(tiny_teacher, elsewhere):
    for seed in (0, 1):
        call("distill", tiny_teacher, "--seed", seed, *SHORT)
    runs = sorted((elsewhere / "runs").iterdir())
    assert len(runs) == 2
    os.utime(runs[0] / "student.safetensors", (2e9, 2e9))
    call("export")
    assert (runs[0] / "export").is_dir()


def test_the_same_command_again_is_done_already(tiny_teacher, elsewhere):
    words = ["distill", tiny_teacher, "--out", "run", *SHORT]
    call(*words)
    before = (elsewhere / "run" / "student.safetensors").stat().st_mtime_ns
    assert "finished already" in call(*words).stderr
    assert (elsewhere / "run" / "student.safetensors").stat().st_mtime_ns == before
    assert "recipe.optim.g_lr" in call(*words, "optim.g_lr=0.5", code=2).stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_teacher, tiny_data, elsewhere):
    said = call("distill", tiny_teacher, "--recipe", "joint", "--data", tiny_data, "--ch-mul", "0.5", "--dry-run", *SHORT).output
    for word in ("teacher", "student", "parameters", "MACs", "joint", "critic: starts from the teacher's discriminator", "64 images", "runs/00000-joint"):
        assert word in said
    assert everything(elsewhere) == []


def test_joint_without_data_says_what_stands_in(tiny_teacher):
    assert "the teacher's own samples stand in for real images" in call("distill", tiny_teacher, "--recipe", "joint", "--dry-run", *SHORT).output


def test_scratch_trains_without_a_teacher(tiny_data, elsewhere):
    words = ["--recipe", "scratch", "--arch", "dcgan", "student.arch.width=4", "student.arch.resolution=8", "student.arch.nz=5", "--data", tiny_data]
    call("distill", *words, "--out", "run", *SHORT)
    gan = load_gan("run")
    assert (gan.arch.nz, gan.arch.nc, gan.arch.resolution, gan.arch.g_widths) == (5, 1, 8, (4,))  # grey, as the data is
    assert gan.discriminator is not None
    call("distill", "run", "--ch-mul", "0.5", "--out", "student", *SHORT)  # and what it made is a teacher
    assert load_gan("student").arch.g_widths == (2,)


def test_scratch_with_a_teacher_has_its_shapes(tiny_teacher, tiny_data):
    call("distill", tiny_teacher, "--recipe", "scratch", "--ch-mul", "0.5", "--data", tiny_data, "--out", "run", *SHORT)
    assert load_gan("run").arch.g_widths == (2,)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--recipe", "scratch", "--arch", "dcgan"], 4, "needs real images"),
        (["--recipe", "mse"], 2, "needs a teacher"),
        (["--recipe", "scratch", "--data", "DATA"], 2, "no teacher and no architecture"),
        (["TEACHER", "--recipe", "mes"], 2, "did you mean 'mse'"),
        (["TEACHER", "--arch", "stylegan9"], 2, "families: "),
        (["TEACHER", "optim.glr=1"], 2, "did you mean 'g_lr'"),
        (["TEACHER", "--ch-mul", "5"], 2, "student.ch_mul=5"),
        (["TEACHER", "--ch-mul", "0"], 2, "student.ch_mul=0"),
        (["TEACHER", "--ch-mul", "-1"], 2, "student.ch_mul=-1"),
        (["TEACHER", "--kimg", "1", "--steps", "1"], 2, "give one of them"),
        (["TEACHER", "--steps", "0"], 2, "at least 1"),
        (["TEACHER", "--target-params", "lots"], 2, "expected a number"),
        (["TEACHER", "--target-params", "1"], 2, "the least is"),
        (["TEACHER", "--target-params", "1k", "--target-macs", "2x"], 2, "give one target"),
        (["TEACHER", "--target-macs", "0.5x"], 2, "4x means a quarter"),
        (["TEACHER", "--device", "gpu"], 2, "expected auto, cpu, cuda"),
        (["TEACHER", "--teacher-module", "a.py:b"], 2, "two teachers"),
        (["nowhere.pt"], 4, "no such file"),
        (["TEACHER", "--recipe", "joint", "--data", "nowhere"], 4, "no such file"),
        (["TEACHER", "student.arch.nz=9"], 2, "nz is 4 in the teacher and 9 in the student"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_wrong_word_ends_with_its_code_and_nothing_written(words, code, said, tiny_teacher, tiny_data, elsewhere):
    result = call("distill", *({"TEACHER": tiny_teacher, "DATA": tiny_data}.get(w, w) for w in words), code=code)
    assert said in result.stderr
    assert result.stderr.startswith(("error:", "no CUDA")), result.stderr
    assert "Traceback" not in result.output + result.stderr
    assert everything(elsewhere) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused_and_auto_gives_one_line_of_notice(tiny_teacher):
    assert "sees no CUDA device" in call("distill", tiny_teacher, "--device", "cuda", code=2).stderr
    assert call("distill", tiny_teacher, "--dry-run").stderr == "no CUDA device: running on the CPU\n"


# ------------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("flag", "text", "key", "limit"),
    [("--target-params", "5k", "parameters", 5000), ("--target-macs", "4x", "macs_input_convention", None), ("--target-size", "12kB", "bytes", 12_000)],
)
def test_a_target_chooses_the_width_and_the_plan_says_which(flag, text, key, limit, wide_teacher):
    said = call("distill", wide_teacher, flag, text, "--out", "run", *SHORT).output
    chosen = json.loads(Path("run/run.json").read_text())["identity"]["recipe"]["student"]["ch_mul"]
    assert f"{flag} {text}: ch_mul {chosen:g} chosen" in said
    teacher, student = gancompress.inspect(str(wide_teacher)), gancompress.inspect("run")
    measured = student[key] if key != "bytes" else sum(t.numel() * t.element_size() for t in load_file("run/student.safetensors").values())
    limit = limit or teacher[key] / 4
    assert limit * 0.75 < measured <= limit


# ------------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_are_listed_with_papers_and_needs():
    said = call("recipes").output
    rows = json.loads(call("recipes", "--json").stdout)
    assert [r["name"] for r in rows] == recipe_names()
    for row in rows:
        assert row["name"] in said
        assert row["paper"]
        assert row.keys() == {"name", "paper", "needs", "uses"}


def test_recipes_show_prints_the_file():
    assert call("recipes", "show", "joint").stdout == recipe_path("joint").read_text()
    assert "did you mean 'joint'" in call("recipes", "show", "jiont", code=2).stderr


def test_recipes_copy_gives_a_file_to_edit_and_never_writes_over_one(tiny_teacher, elsewhere):
    call("recipes", "copy", "mse", "mine.yaml")
    assert load_recipe("mine.yaml") == load_recipe("mse")
    (elsewhere / "mine.yaml").write_text((elsewhere / "mine.yaml").read_text().replace("g_lr: 1e-3", "g_lr: 5e-4"))
    assert "mine.yaml exists already" in call("recipes", "copy", "mse", "mine.yaml", code=2).stderr
    assert load_recipe("mine.yaml").optim.g_lr == 5e-4
    assert "Adam 0.0005" in call("distill", tiny_teacher, "--recipe", "mine.yaml", "--dry-run").output
    (elsewhere / "folder").mkdir()
    call("recipes", "copy", "mine.yaml", "folder")
    assert (elsewhere / "folder" / "mine.yaml").is_file()
    call("recipes", "copy", "joint", "folder")
    assert (elsewhere / "folder" / "joint.yaml").is_file()


# ------------------------------------------------------------------------------------------------------------ inspect, env, sample


def test_inspect_tells_all_as_json(tiny_teacher):
    found = json.loads(call("inspect", tiny_teacher, "--json").stdout)
    assert found == json.loads(json.dumps(gancompress.inspect(str(tiny_teacher))))
    assert (found["family"], found["arch"]["resolution"], found["arch"]["g_widths"]) == ("dcgan", 8, [4])
    # 4 x 4 x (4 * 4 + 4 * 1) weights, 2 * 4 of the BatchNorm
    assert found["parameters"] == 16 * 20 + 8
    # 4x4 kernels: 16 * (4 * 4) products for the 1 x 1 input, 16 * 4 at each of 4 x 4 inputs; counted at outputs 4 x 4 and 8 x 8
    assert found["macs_input_convention"] == 16 * 16 * 1 + 16 * 4 * 16
    assert found["macs_output_convention"] == 16 * 16 * 16 + 16 * 4 * 64
    assert [c["part"] for c in found["contents"]] == ["generator", "discriminator"]
    assert found["bytes"] == tiny_teacher.stat().st_size
    assert found["recipes"].keys() == set(recipe_names())
    assert found["recipes"]["mse"]["feeds"]


def test_inspect_tells_a_person_the_conventions_of_its_counts(tiny_teacher):
    said = call("inspect", tiny_teacher).output
    for word in ("dcgan", "generator", "discriminator", "transposed", "input", "output", "328", "recipes it can feed"):
        assert word in said


def test_env_prints_what_a_bug_report_needs():
    said = call("env").output
    for word in ("gancompress", "torch", torch.__version__, "python", "platform", "cuda"):
        assert word in said


def test_sample_is_a_function_of_its_seed(tiny_teacher, elsewhere):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        call("sample", tiny_teacher, "--out", f"{name}.png", "--num", "4", "--seed", seed, "--device", "cpu")
    assert (elsewhere / "a.png").read_bytes() == (elsewhere / "b.png").read_bytes()
    assert (elsewhere / "a.png").read_bytes() != (elsewhere / "c.png").read_bytes()


def test_sample_into_a_folder_writes_numbered_files_of_the_true_size(tiny_teacher, elsewhere):
    call("sample", tiny_teacher, "--out", "many", "--num", "5", "--device", "cpu")
    assert everything(elsewhere / "many") == [f"{i:06d}.png" for i in range(5)]
    assert Image.open(elsewhere / "many" / "000000.png").size == (8, 8)
    assert "not an empty directory" in call("sample", tiny_teacher, "--out", "many", "--device", "cpu", code=2).stderr
    assert "no classes" in call("sample", tiny_teacher, "--label", "1", "--device", "cpu", code=2).stderr


# ------------------------------------------------------------------------------------------------------------ modules, and Python

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    nz = 4
    def __init__(self):
        super().__init__()
        self.main = nn.Linear(4, 3 * 8 * 8)
    def forward(self, z):
        return torch.tanh(self.main(z)).reshape(-1, 3, 8, 8)

def build():
    torch.manual_seed(0)
    return Net()

def broken():
    raise KeyError("weights.bin")
"""


def test_a_teacher_of_ones_own_architecture_is_distilled(elsewhere):
    (elsewhere / "mine.py").write_text(MODULE)
    call("distill", "--teacher-module", "mine.py:build", "--student", "dcgan", "student.arch.width=4", "--out", "run", *SHORT)
    gan = load_gan("run")
    assert (gan.family.name, gan.arch.nz, gan.arch.nc, gan.arch.resolution, gan.arch.g_widths) == ("dcgan", 4, 3, 8, (4,))
    again = ["eval", "run", "--num-images", "8", "--feature-extractor", "digits", "--json", "--device", "cpu"]
    assert json.loads(call(*again).stdout)["against"] is None, "code that a run folder names is not run"
    found = json.loads(call(*again, "--against", "module:mine.py:build").stdout)
    assert found["against"] == "module:mine.py:build"
    assert found["paired"]["mse"] > 0


def test_a_module_that_fails_says_where(elsewhere):
    (elsewhere / "mine.py").write_text(MODULE)
    said = call("distill", "--teacher-module", "mine.py:broken", *SHORT, code=1).stderr
    assert "KeyError" in said
    assert "mine.py:" in said
    assert "no function 'nothing'" in call("distill", "--teacher-module", "mine.py:nothing", *SHORT, code=2).stderr


def test_python_does_what_the_command_line_does(tiny_teacher, tiny_data, elsewhere):
    call("distill", tiny_teacher, "--recipe", "joint", "--ch-mul", "0.5", "--data", tiny_data, "--seed", "3", "weights.alpha=0.5", "--out", "a", *SHORT)
    path = gancompress.distill(
        str(tiny_teacher),
        "joint",
        overrides=[("weights.alpha", 0.5), ("student.ch_mul", 0.5), ("schedule.batch_size", 4), ("seed", 3)],
        data=str(tiny_data),
        out="b",
        device="cpu",
        steps=3,
    )
    assert str(path) == "b/student.safetensors"
    for name in ("student.safetensors", "discriminator.safetensors"):
        one, other = load_file(f"a/{name}"), load_file(f"b/{name}")
        assert all(torch.equal(one[k], other[k]) for k in one)
    one, other = (json.loads(Path(f"{run}/run.json").read_text())["identity"] for run in "ab")
    assert one == other


def test_python_evaluates_exports_and_samples(tiny_teacher, elsewhere):
    student = load_gan(str(tiny_teacher))
    assert gancompress.evaluate(student, student, num_images=4)["paired"]["mse"] == 0
    assert gancompress.export(str(tiny_teacher), "out").is_dir()
    assert gancompress.sample(str(tiny_teacher), "grid.png", num=4).is_file()
    assert gancompress.load(str(tiny_teacher), part="discriminator")(torch.zeros(2, 1, 8, 8)).shape == (2,)
    assert np.asarray(Image.open("grid.png")).shape[0] == 128
