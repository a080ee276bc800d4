"""The toys: distributions and counts by hand, a fair comparison, and a command that leaves a picture and its numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gancompress import toys
from gancompress.cli import app
from gancompress.config import load_recipe
from gancompress.data import rng
from gancompress.errors import StoppedError
from gancompress.gan import state_hash
from gancompress.toys import TOYS, Points, Toy, recipe_of

CPU = torch.device("cpu")
#: two modes, at distance 1 of each other
PAIR = Toy(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 0.1)


@pytest.mark.parametrize(("name", "modes", "apart"), [("ring", 8, 2 * math.sin(math.pi / 8)), ("grid", 25, 2.0)])
def test_the_toys_are_the_field_s(name, modes, apart):
    toy = TOYS[name]()
    assert toy.modes.shape == (modes, 2)
    assert float(toy.modes.mean(0).abs().max()) < 1e-6
    distances = torch.cdist(toy.modes, toy.modes) + 100 * torch.eye(modes)
    assert distances.min(1).values.tolist() == pytest.approx([apart] * modes, abs=1e-5)


@pytest.mark.parametrize("name", TOYS)
def test_real_points_are_the_modes_evenly_and_of_high_quality_as_often_as_three_deviations_say(name):
    toy = TOYS[name]()
    points = toy.draw(20_000, rng(1))
    assert points.shape == (20_000, 2, 1, 1)
    index, good = toy.nearest(points.flatten(1))
    assert float(good.float().mean()) == pytest.approx(1 - math.exp(-4.5), abs=0.003)  # of a round normal in the plane
    even = 20_000 / len(toy.modes)
    assert all(abs(n - even) < 5 * even**0.5 for n in torch.bincount(index).tolist())


def test_modes_and_quality_are_counted_as_by_hand():
    # eight points at the first mode, one 0.3 from the second (just within), one 0.4 from it
    points = torch.tensor([[0.0, 0.0]] * 8 + [[0.7, 0.0], [1.4, 0.0]])
    # an even spread gives each 5, a fifth of which is 1: the second has it with its one good point
    assert PAIR.measure(points) == {"modes": 2, "modes_hit": 2, "high_quality": 0.9}
    assert PAIR.nearest(points)[1].tolist() == [True] * 9 + [False]
    # of twenty, a fifth of ten is 2
    assert PAIR.measure(torch.cat([points[:1].expand(10, 2), points])) == {"modes": 1, "modes_hit": 2, "high_quality": 0.95}
    assert PAIR.measure(torch.full((4, 2), 9.0)) == {"modes": 0, "modes_hit": 0, "high_quality": 0.0}


def test_points_are_a_function_of_seed_and_step():
    recipe = recipe_of("akdg", 1, 3)
    student = toys.FAMILIES["mlp"].build_arch(None, toys.SHAPES)
    gan = toys.GAN(toys.FAMILIES["mlp"], student, toys.FAMILIES["mlp"].generator(student))
    one, same = (Points(PAIR, gan, gan, recipe, CPU)(5, 0).real for _ in range(2))
    assert torch.equal(one, same)
    assert one.shape == (256, 2, 1, 1)
    assert not torch.equal(one, Points(PAIR, gan, gan, recipe, CPU)(6, 0).real)
    assert not torch.equal(one, Points(PAIR, gan, gan, recipe_of("akdg", 1, 4), CPU)(5, 0).real)


def test_vanilla_and_akdg_differ_in_their_loss_alone(monkeypatch, tmp_path):
    seen = {}

    def train(student, loss, recipe, batches, folder, reporter, device):
        if batches.teacher is not None:
            real = None if recipe.loss == "mse" else batches(0, 0).real
            seen[recipe.loss] = (state_hash(student.generator.state_dict()), loss, recipe, batches(0, 0).inputs, real)
        return student

    monkeypatch.setattr(toys, "train", train)
    toys.run("grid", tmp_path, seed=0, kimg=1, device=CPU)
    assert seen.keys() == {"scratch", "mse", "akdg"}
    assert len({start for start, *_ in seen.values()}) == 1
    assert all(torch.equal(inputs, seen["mse"][3]) for *_, inputs, _ in seen.values())
    assert torch.equal(seen["scratch"][4], seen["akdg"][4])
    vanilla, akdg = seen["scratch"], seen["akdg"]
    assert (vanilla[2].optim, vanilla[2].schedule, vanilla[2].seed) == (akdg[2].optim, akdg[2].schedule, akdg[2].seed)
    assert {k for k, v in vanilla[2].weights.items() if akdg[2].weights.get(k, v) != v} <= {"game"}  # vanilla's is the family's, which is the same:
    assert vanilla[1].adversary.game == akdg[1].against_real.game
    assert state_hash(vanilla[1].critics["student"].state_dict()) == state_hash(akdg[1].critics["student"].state_dict())
    assert seen["mse"][2].schedule == akdg[2].schedule


def test_a_toy_s_recipe_is_the_package_s_with_its_numbers():
    recipe, akdg = recipe_of("akdg", 10, 2), load_recipe("akdg")
    assert recipe.seed == 2
    assert recipe.schedule.steps == 40  # 10,000 points, 256 at a time
    assert {k for k, v in recipe.weights.items() if v != akdg.weights[k]} == {"r1"}


@pytest.fixture
def short(monkeypatch):
    """Few samples."""
    monkeypatch.setattr(toys, "SAMPLES", 1000)


def call(*args):
    return CliRunner().invoke(app, ["toy", *map(str, args)])


def test_the_command_leaves_a_picture_and_the_numbers_it_prints(tmp_path, short):
    done = call("ring", "--kimg", 2, "--out", tmp_path / "toy")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "toy").iterdir()} == {"ring.png", "ring.json"}
    found = json.loads((tmp_path / "toy" / "ring.json").read_text())
    assert list(found["networks"]) == ["real", "teacher", "vanilla", "mse", "akdg"]
    assert (found["of_modes"], found["seed"], found["kimg"]) == (8, 0, 2)
    assert found["networks"]["real"]["modes"] == 8
    sizes = [found["networks"][name]["parameters"] for name in ("vanilla", "mse", "akdg")]
    assert len(set(sizes)) == 1
    assert sizes[0] < found["networks"]["teacher"]["parameters"] / 3
    for name, row in found["networks"].items():
        line = next(line for line in done.output.splitlines() if line.startswith(name))
        assert f"{row['high_quality']:.1%}" in line
    with Image.open(tmp_path / "toy" / "ring.png") as picture:
        assert picture.width > 4 * picture.height > 400
    again = call("ring", "--kimg", 2, "--out", tmp_path / "toy")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "toy-2" / "ring.json").read_text()) == found  # the same numbers, and nothing written over


def test_an_unknown_toy_is_refused_before_anything_is_written(tmp_path):
    done = call("rings", "--out", tmp_path / "toy")
    assert done.exit_code == 2
    assert "no toy 'rings'" in done.output
    assert "ring, grid" in done.output
    assert not (tmp_path / "toy").exists()


def test_a_stopped_toy_says_that_nothing_is_kept(tmp_path, monkeypatch):
    def stopped(*args):
        raise StoppedError("stopped; the state is saved in a folder that will be gone", exit_code=130)

    monkeypatch.setattr(toys, "train", stopped)
    done = call("grid", "--kimg", 1, "--out", tmp_path / "toy")
    assert done.exit_code == 130
    assert "keeps nothing" in done.output
    assert "will be gone" not in done.output
    assert not list((tmp_path / "toy").iterdir())
