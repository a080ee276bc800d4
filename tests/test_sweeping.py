"""A grid of runs: refused whole or run through, resumed, and compared at its end."""

import json
import shlex

import pytest
from conftest import make_gan
from test_comparing import quickly  # noqa: F401
from test_runreport import BRIEF, check_inert
from typer.testing import CliRunner

from gancompress import running, sweeping
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.errors import DivergedError, StoppedError, UsageError

WORDS = [f"{key}={value}" for key, value in [*BRIEF, ("schedule.kimg", 0.008)]]
MEASURED = ["--num-images", "8", "--feature-extractor", "digits", "--device", "cpu"]


def sweep(teacher, *more):
    return CliRunner().invoke(app, ["sweep", str(teacher), *WORDS, "--ch-mul", "1,0.5", *MEASURED, *map(str, more)])


def test_a_grid_is_run_and_compared_with_means_over_seeds_and_the_same_command_trains_nothing_again(tiny_teacher, tmp_path, monkeypatch):
    done = sweep(tiny_teacher, "--out", tmp_path / "s", "--seeds", 2)
    assert done.exit_code == 0, done.output
    names = ["mse-x1-seed0", "mse-x1-seed1", "mse-x0.5-seed0", "mse-x0.5-seed1"]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted([*names, "compare.html", "compare.json"])
    found = json.loads((tmp_path / "s" / "compare.json").read_text())
    assert [row["source"] for row in found["rows"]] == [str(tiny_teacher), *(str(tmp_path / "s" / name) for name in names)]
    assert [group["members"] for group in found["over_seeds"]] == [[2, 3], [4, 5]]
    assert "Over seeds" in check_inert((tmp_path / "s" / "compare.html").read_text()).text
    assert "Over seeds" in done.stdout
    monkeypatch.setattr(running, "_train", None)
    again = sweep(tiny_teacher, "--out", tmp_path / "s", "--seeds", 2)
    assert again.exit_code == 0, again.output
    assert again.stderr.count("finished already") == 4
    assert json.loads((tmp_path / "s" / "compare.json").read_text())["rows"][1]["frechet_distance"] == found["rows"][1]["frechet_distance"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--recipes", "mse,dgl"], 4, "dgl-x1-seed0: recipe 'dgl' needs the teacher's discriminator"),
        (["--recipes", "mse,nosuch"], 2, "nosuch-x1-seed0: no recipe 'nosuch'"),
        (["student.arch.widht=3"], 2, "mse-x1-seed0: "),
        (["--feature-extractor", "nowhere.pth"], 4, "nowhere.pth: no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(more, code, said, tmp_path, tiny_data):
    gan = make_gan()
    save_networks(tmp_path / "g.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {})
    done = sweep(tmp_path / "g.safetensors", "--out", tmp_path / "s", "--data", tiny_data, *more)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert not (tmp_path / "s").exists()


def test_a_run_that_diverges_is_told_at_the_end_and_the_others_are_made_and_compared(tiny_teacher, tmp_path, monkeypatch):
    real = sweeping.run_plan

    def run_plan(plan, reporter):
        if plan.run_dir.name == "mse-x1-seed0":
            raise DivergedError("a loss was not finite again", "lower optim.g_lr")
        return real(plan, reporter)

    monkeypatch.setattr(sweeping, "run_plan", run_plan)
    done = sweep(tiny_teacher, "--out", tmp_path / "s")
    assert done.exit_code == 5, done.output
    assert "error: 1 of 2 runs failed: mse-x1-seed0: a loss was not finite again\nhint: lower optim.g_lr" in done.stderr
    found = json.loads((tmp_path / "s" / "compare.json").read_text())
    assert [row["source"] for row in found["rows"]] == [str(tiny_teacher), str(tmp_path / "s" / "mse-x0.5-seed0")]
    assert "mse-x1-seed0 failed: a loss was not finite again" in found["notes"]
    monkeypatch.setattr(sweeping, "run_plan", lambda plan, reporter: (_ for _ in ()).throw(DivergedError("again")))
    none = sweep(tiny_teacher, "--out", tmp_path / "none")
    assert none.exit_code == 5
    assert "2 of 2 runs failed" in none.stderr
    assert not (tmp_path / "none").exists()


def test_a_signal_ends_the_sweep_with_its_code(tiny_teacher, tmp_path, monkeypatch):
    calls = []

    def run_plan(plan, reporter):
        calls.append(plan)
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(sweeping, "run_plan", run_plan)
    done = sweep(tiny_teacher, "--out", tmp_path / "s")
    assert (done.exit_code, len(calls)) == (75, 1)
    assert "hint: the same command goes on" in done.stderr


def test_printed_commands_make_the_very_runs_of_the_sweep(tiny_teacher, tiny_data, tmp_path):
    done = sweep(tiny_teacher, "--out", tmp_path / "a folder", "--data", tiny_data, "--recipes", "mse,joint", "--reader", "nc=1", "--print-commands")
    assert done.exit_code == 0, done.output
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [c[c.index("--out") + 1].rpartition("/")[2] for c in commands] == [f"{r}-x{w}-seed0" for w in ("1", "0.5") for r in ("mse", "joint")]
    assert not (tmp_path / "a folder").exists()
    for words in commands[2:]:
        assert words[0] == "gancompress"
        made = CliRunner().invoke(app, words[1:])
        assert made.exit_code == 0, made.output
    cells = sweeping.grid("0.5", "mse,joint", 1)
    wanted = sweeping.Sweep(str(tiny_teacher), cells, tmp_path / "a folder", str(tiny_data), None, {"nc": 1}, "cpu", WORDS)
    assert [wanted.plan(cell).finished for cell in cells] == [True, True]


@pytest.mark.parametrize(
    ("widths", "recipes", "said"),
    [("0.5,2", "mse", "'2' is no width"), ("x", "mse", "'x'"), ("0.5,0.50", "mse", "same run twice"), (",", "mse", "no run to make"), ("1", "", "no run")],
)
def test_a_grid_that_is_none_is_refused(widths, recipes, said):
    with pytest.raises(UsageError, match=said):
        sweeping.grid(widths, recipes, 1)
