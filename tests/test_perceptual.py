"""LPIPS on files that are checked, and the path lengths made of a distance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from torch import nn

from gancompress import weights
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.fidelity import paired_fidelity
from gancompress.metrics import evaluate
from gancompress.perceptual import Lpips, _steps, path_length, slerp

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Images that are linear in z: every pixel the first component."""

    def forward(self, inputs, condition=None):
        return inputs[:, :1, None, None].expand(-1, 1, 32, 32)


def linear_gan():
    gan = make_gan(nz=2, resolution=32, g_widths=(4, 4, 4), d_widths=(4, 4, 4))
    gan.generator = Linear()
    return gan


def squares(a, b):
    return (a - b).square().flatten(1).mean(1)


def test_slerp_goes_along_the_sphere():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert torch.allclose(slerp(a, b, torch.tensor([[0.0]])), a, atol=1e-6)
    assert torch.allclose(slerp(a, b, torch.tensor([[1.0]])), b, atol=1e-6)
    assert torch.allclose(slerp(a, b, torch.tensor([[0.5]])), torch.tensor([[1.0, 1.0]]) * 3 / math.sqrt(2), atol=1e-6)


def test_a_path_length_is_the_squared_speed_along_the_path(monkeypatch):
    """For images linear in z and a squared error the distance over epsilon squared is the squared derivative of the path."""
    monkeypatch.setattr("gancompress.perceptual.EPSILON", 1e-2)  # 1e-4 of a squared error drowns in float32
    monkeypatch.setattr("gancompress.perceptual.TRIM", (0, 100))
    gan = linear_gan()
    found, cropped = path_length(gan, "z", squares, 200, 0, CPU, batch_size=32)
    speeds = []
    for a, b, t, _ in _steps(gan, 200, 0, 200):
        for z0, z1, s in zip(a.double(), b.double(), t.double(), strict=True):
            step = 1e-4
            ends = [slerp(z0[None], z1[None], s[None] + d)[0, 0] for d in (0, step)]
            speeds.append(float((ends[1] - ends[0]) / step) ** 2)
    assert found == pytest.approx(float(np.mean(speeds)), rel=0.05)
    assert cropped == pytest.approx(found, rel=1e-3)  # all pixels are alike


def test_path_lengths_do_not_depend_on_the_batch_and_w_needs_a_network_that_makes_w():
    gan = small_gan("stylegan2", SMALL["stylegan2"][0])
    for space in ("z", "w"):
        one, other = (path_length(gan, space, squares, 20, 0, CPU, batch_size=size)[0] for size in (3, 20))
        assert one == pytest.approx(other, rel=1e-2)
        assert one > 0
    with pytest.raises(UsageError, match="has no w"):
        path_length(make_gan(), "w", squares, 4, 0, CPU)
    with pytest.raises(UsageError, match="translator"):
        path_length(small_gan("unet", SMALL["unet"][0]), "z", squares, 4, 0, CPU)


def test_images_too_small_to_crop_have_a_whole_path_alone():
    assert path_length(small_gan("stylegan2", SMALL["stylegan2"][0]), "z", squares, 4, 0, CPU)[1] is None


def test_lpips_without_its_weights_names_the_files_their_hashes_and_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        evaluate(make_gan(), make_gan(), num_images=4, metrics=["lpips"])
    for said in (weights.LPIPS.file, weights.VGG16.file, "a78928a0", "397923af"):
        assert said in str(caught.value)
    assert str(tmp_path) in caught.value.hint
    assert "--fetch-weights" in caught.value.hint
    with pytest.raises(MissingError, match="LPIPS needs"):
        evaluate(make_gan(), num_images=4, metrics=["ppl"])


def test_lpips_is_torch_fidelity_s_network_on_files_that_are_checked(tmp_path, monkeypatch):
    from torchvision.models import vgg16

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights.LPIPS.cached.parent.mkdir(parents=True)
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{k}": 0.05 * torch.randn(v.shape) for k, v in shapes.items()}, weights.VGG16.cached)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 128, 256, 512, 512))}
    torch.save(linear, weights.LPIPS.cached)
    with pytest.raises(CheckpointError, match="sha256"):
        Lpips(CPU)
    for name in ("LPIPS", "VGG16"):
        known = getattr(weights, name)
        monkeypatch.setattr(weights, name, dataclasses.replace(known, sha256=weights.file_sha256(known.cached)[:16]))
    lpips = Lpips(CPU)
    a, b = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    assert lpips(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (lpips(a, b) > 1e-3).all()
    assert torch.allclose(lpips(a, b), lpips.net(*((x.expand(-1, 3, -1, -1) + 1) * 127.5 for x in (a, b))).flatten())
    with pytest.raises(UsageError, match="at least 16"):
        lpips(a[:, :, :8, :8], b[:, :, :8, :8])
    assert paired_fidelity(linear_gan(), linear_gan(), 4, 0, CPU, lpips=lpips)["lpips"] == pytest.approx(0, abs=1e-6)
