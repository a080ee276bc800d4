"""Distances within classes, over a list of them, and the pictures between latents and between classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from torch import Tensor, nn
from typer.testing import CliRunner

from gancompress.checkpoint import save_networks
from gancompress.classwise import class_list, evaluate_classes, interpolations
from gancompress.cli import app
from gancompress.data import EVALUATION, Images, rng
from gancompress.errors import MissingError, UsageError
from gancompress.extractors import Extractor
from gancompress.fidelity import generated

CPU = torch.device("cpu")


class Two(Extractor):
    """Features: means of the left and of the right half."""

    name, distance, score, weights_sha256 = "two", "Frechet distance", "score", "none"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        left, right = images.float().chunk(2, 3)
        found = torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)
        return found, found


class Levels(nn.Module):
    """Class c is an image of level c / 10 with a little of z on it."""

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        level = condition[:, None, None, None] / 10 + 0.1 * inputs[:, :1, None, None]
        return level.expand(-1, 3, 16, 16)


@pytest.fixture
def levels():
    gan = small_gan("tinygan", SMALL["tinygan"][0])
    gan.generator = Levels()
    return gan


def data_at(path, levels, each=40):
    labels = np.repeat(np.arange(3), each)
    noise = 0.1 * np.random.default_rng(0).normal(size=len(labels))
    pixels = ((np.array(levels)[labels] + noise + 1) * 127.5).round().astype(np.uint8)
    np.savez(path, x_train=np.broadcast_to(pixels[:, None, None, None], (len(labels), 16, 16, 3)), y_train=labels)
    return Images(str(path), 16, 3)


def measured(gan, images, classes, **more):
    return evaluate_classes(gan, None, images, Two(), classes, num_images=64, seed=0, device=CPU, **more)["student"]


def test_the_class_that_is_off_has_the_distance_and_is_the_worst(levels, tmp_path):
    found = measured(levels, data_at(tmp_path / "d.npz", [0.0, 0.1, 0.6]), [0, 1, 2])
    # class 2 is at 0.2 and should be at 0.6: 0.4 * 127.5 = 51 levels in each of two features
    assert found["of_class"]["2"] == pytest.approx(2 * 51**2, rel=0.2)  # of 40 and 64 images
    assert max(found["of_class"]["0"], found["of_class"]["1"]) < 100
    assert found["worst"][0] == 2
    assert found["mean"] == pytest.approx(sum(found["of_class"].values()) / 3)


def test_only_the_listed_classes_count(levels, tmp_path):
    images = data_at(tmp_path / "d.npz", [0.0, 0.1, 0.6])
    assert measured(levels, images, [0, 1])["of_class"].keys() == {"0", "1"}


def test_without_images_the_teachers_samples_are_the_reference(levels):
    found = evaluate_classes(levels, levels, None, Two(), [0, 2], num_images=64, seed=0, device=CPU)
    assert found["protocol"]["reference"] == "the teacher's samples"
    assert found["student"]["of_class"] == found["teacher"]["of_class"]
    with pytest.raises(UsageError, match="distances to what"):
        evaluate_classes(levels, None, None, Two(), [0], num_images=64, seed=0, device=CPU)


def test_what_a_class_lacks_is_said(levels, tmp_path):
    with pytest.raises(MissingError, match="1 images of class 0"):
        measured(levels, data_at(tmp_path / "few.npz", [0, 0, 0], each=1), [0])
    images = data_at(tmp_path / "bare.npz", [0, 0, 0])
    images.labels = None
    with pytest.raises(MissingError, match="has none"):
        measured(levels, images, [0])


def test_lists_of_classes_are_read_and_checked(levels):
    assert class_list("all", levels) == [0, 1, 2]
    assert class_list("0,1-2", levels) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"--per-class 7: there is no class 7"):
        class_list("7", levels)
    with pytest.raises(UsageError, match="no classes"):
        class_list("all", make_gan())


@pytest.mark.parametrize("family", ["tinygan", "biggan"])
def test_rows_go_from_the_first_end_to_the_last_and_leave_the_network_as_it_was(family):
    gan = small_gan(family, SMALL[family][0])
    before = gan.sha256()
    (_, latents), (name, classes) = interpolations(gan, [0, 2], 0, CPU)
    assert gan.sha256() == before
    assert name == "0-2"
    assert torch.allclose(latents[0], classes[0], atol=1e-5)  # both begin at the same latent and class
    assert not torch.allclose(latents[0], latents[-1])
    z = gan.sample(2, rng(0, EVALUATION))[0]
    assert torch.allclose(classes[-1:], gan.generator(z[:1], torch.tensor([2])), atol=1e-6)
    assert torch.allclose(latents[-1:], gan.generator(z[1:], torch.tensor([0])), atol=1e-6)


def test_images_of_a_class_are_of_that_class(levels):
    images = torch.cat(list(generated(levels, 70, 0, CPU, label=2)))
    assert len(images) == 70
    assert float(images.mean()) == pytest.approx(0.2, abs=0.05)


def test_the_command_prints_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("gancompress.api.make_extractor", lambda *_: Two())
    gan = small_gan("tinygan", SMALL["tinygan"][0])
    save_networks(tmp_path / "s.safetensors", gan.family, gan.arch, gan.networks, {})
    words = ["eval", str(tmp_path / "s.safetensors"), "--against", str(tmp_path / "s.safetensors"), "--num-images", "8", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--per-class", "0,2", "--pictures", str(tmp_path / "p"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["student"]["of_class"].keys() == {"0", "2"}
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["interpolations.png", "worst.png"]
    assert "class 2" in CliRunner().invoke(app, [*words, "--per-class", "2"]).output
    refused = CliRunner().invoke(app, [*words, "--pictures", str(tmp_path / "p")])
    assert (refused.exit_code, "--per-class" in refused.output) == (2, True)
