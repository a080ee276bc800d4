"""What several test files use: a tiny GAN, tiny data, and the places of third-party models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gancompress.checkpoint import save_networks
from gancompress.families import FAMILIES
from gancompress.gan import GAN

REPO = Path(__file__).resolve().parent.parent
TINY = {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (4,), "d_widths": (4,)}

#: fields of small networks of each family, one entry for each variant worth testing; the tests of every family run on them
SMALL = {
    "dcgan": [
        {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (6,), "d_widths": (4,)},
        {"resolution": 16, "nc": 3, "nz": 4, "classes": 3, "g_widths": (8, 4), "d_widths": (4, 8)},
    ],
    "mlp": [
        {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (8, 8), "d_widths": (8, 8)},
        {"resolution": 8, "nc": 3, "nz": 4, "classes": 3, "g_widths": (8, 4), "d_widths": (4, 8)},
    ],
    "stylegan2": [
        {"resolution": 16, "nc": 3, "nz": 5, "w_dim": 6, "map_layers": 2, "const_width": 10, "g_widths": (8, 8, 4)},
        {
            "resolution": 8,
            "nc": 1,
            "nz": 4,
            "w_dim": 6,
            "map_width": 5,
            "map_layers": 2,
            "classes": 3,
            "g_widths": (8, 4),
            "g_kind": "resnet",
            "d_kind": "orig",
        },
        {"resolution": 16, "nc": 3, "nz": 4, "w_dim": 6, "map_layers": 1, "g_widths": (8, 6, 4), "g_kind": "orig", "g_clamp": 0.9, "d_kind": "skip"},
    ],
}

torch.set_num_threads(1)


def small_gan(family, fields, seed=0, ch_mul=1.0):
    """A GAN of these fields with a family's own random weights, moved off their neutral values, frozen."""
    record = FAMILIES[family]
    arch = record.scale(record.build_arch(None, fields), ch_mul)
    networks = []
    for part in ("generator", "discriminator") if family != "stylegan3" else ("generator",):
        torch.manual_seed(seed)
        net = getattr(record, part)(arch)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point() and not name.endswith(("_u", "_v")):
                    tensor += 0.1 * torch.rand(tensor.shape, generator=rng)  # statistics, biases and gains that are not all alike
        networks.append(net)
    return GAN(record, arch, *networks, source=f"a small {family}").freeze()


def make_gan(family="dcgan", seed=0, **fields):
    """A small GAN with random weights and BatchNorm statistics that are not the identity."""
    record = FAMILIES[family]
    arch = record.build_arch(None, {**TINY, **fields})
    networks = (randomise(record.generator(arch), seed), randomise(record.discriminator(arch), seed + 1))
    return GAN(record, arch, *networks, source="a tiny GAN").freeze()


@pytest.fixture
def tiny_gan():
    return make_gan()


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """Path of a .safetensors with a tiny G and D of resolution 8."""
    gan = make_gan()
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_networks(path, gan.family, gan.arch, gan.networks, {})
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Path of an .npz with x_train uint8 (64, 8, 8)."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x_train=np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def assets():
    """The folder of third-party models and data, outside the repository."""
    folder = Path(os.environ.get("GANCOMPRESS_ASSETS") or REPO.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip(f"no third-party models in {folder}; set GANCOMPRESS_ASSETS")
    return folder


@pytest.fixture(scope="session")
def golden(assets):
    """Folder of checkpoints with the outputs their own code gave."""
    return assets / "golden"


@pytest.fixture(scope="session")
def faces_teacher(assets):
    """A real trained 64x64 faces generator, downloaded once."""
    cache = Path(os.environ.get("GANCOMPRESS_FETCHED") or Path.home() / ".cache" / "gancompress-test-assets")
    if not (found := sorted(cache.rglob("dcgan_faces64.tar"))):
        script = assets / "assets" / "fetch.py"
        try:
            done = subprocess.run([sys.executable, script, cache, "dcgan_faces64.tar"], capture_output=True, text=True, timeout=240)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the faces teacher could not be fetched: {error}")
        found = sorted(cache.rglob("dcgan_faces64.tar"))
        if done.returncode or not found:
            pytest.skip(f"the faces teacher could not be fetched: {(done.stderr or done.stdout).strip()[-200:]}")
    return found[-1]


def sequential_generator(nz, widths, nc, *, bias=False, norm="batch", dropout=False, seed=1):
    """A DCGAN generator as an nn.Sequential, the way most people write one: the reference our reader is held against."""
    layers, n_in = [], nz
    for i, width in enumerate(widths):
        layers.append(nn.ConvTranspose2d(n_in, width, 4, *((1, 0) if i == 0 else (2, 1)), bias=bias))
        layers += [nn.BatchNorm2d(width, affine=norm == "batch")] if norm != "none" else []
        layers += [nn.ReLU()] + ([nn.Dropout(0.3)] if dropout and i == 1 else [])
        n_in = width
    return randomise(nn.Sequential(*layers, nn.ConvTranspose2d(n_in, nc, 4, 2, 1, bias=bias), nn.Tanh()), seed)


def sequential_discriminator(nc, widths, *, bias=False, norm="batch", norm_first=False, dropout=False, seed=2):
    """Its mirror; ends in the logits (N, 1, 1, 1)."""
    layers, n_in = [], nc
    for i, width in enumerate(widths):
        layers.append(nn.Conv2d(n_in, width, 4, 2, 1, bias=bias))
        layers += [nn.BatchNorm2d(width, affine=norm == "batch")] if norm != "none" and (i or norm_first) else []
        layers += [nn.LeakyReLU(0.2)] + ([nn.Dropout(0.3)] if dropout and i == 1 else [])
        n_in = width
    return randomise(nn.Sequential(*layers, nn.Conv2d(n_in, 1, 4, 1, 0, bias=bias)), seed)


def randomise(net, seed):
    """Every weight, bias and statistic off its neutral value, so that a mix-up of two of them shows in the output."""
    rng = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 0.9, generator=rng) if tensor.ndim == 1 else tensor.normal_(0, 0.2, generator=rng)
    return net.eval().requires_grad_(False)


def named(net, prefix="main."):
    """Its state dict under pytorch/examples' names."""
    return {prefix + key: tensor for key, tensor in net.state_dict().items()}
