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
#: what a run of a few steps on a tiny teacher needs of recipes that are meant for long ones
BRIEFLY: dict[str, list[tuple[str, object]]] = {
    "dgl": [("weights.guide_from_kimg", 0.004)],
    "imitate": [("weights.resolutions", [4]), ("weights.d_inter", 0.2), ("weights.d_out", 0.2)],
}

SMALL = {
    "dcgan": [
        {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (6,), "d_widths": (4,)},
        {"resolution": 16, "nc": 3, "nz": 4, "classes": 3, "g_widths": (8, 4), "d_widths": (4, 8)},
        {"resolution": 16, "nc": 1, "nz": 4, "g_widths": (8, 4), "d_widths": (4, 8), "g_extra": 2, "d_extra": 1, "output": "linear"},
    ],
    "unet": [
        {"resolution": 16, "nc": 3, "g_widths": (4, 8, 8), "d_widths": (4, 8)},
        {"resolution": 32, "nc": 1, "nc_in": 1, "form": "lindernoren", "g_widths": (4, 6, 8, 8, 8), "g_norm": "instance", "g_bias": False, "dropout": True}
        | {"d_form": "pixel", "d_widths": (4, 8), "d_norm": "instance-affine"},
    ],
    "resnet": [
        {"resolution": 16, "nc": 3, "g_widths": (4, 8, 8), "blocks": 2, "d_widths": (4, 8)},
        {"resolution": 16, "nc": 1, "g_widths": (4, 8), "blocks": 2, "g_norm": "batch", "separable": True, "up": "nearest", "dropout": True}
        | {"d_form": "lindernoren", "d_widths": (4, 8), "d_norm": "batch"},
    ],
    "mlp": [
        {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (8, 8), "d_widths": (8, 8)},
        {"resolution": 8, "nc": 3, "nz": 4, "classes": 3, "g_widths": (8, 4), "d_widths": (4, 8), "output": "linear", "d_activation": "relu"},
    ],
    "pggan": [
        {"resolution": 16, "nz": 4, "g_widths": (8, 6, 4), "d_widths": (4, 6, 8), "d_hidden": 8},
        {
            "resolution": 8,
            "nz": 4,
            "nc": 1,
            "classes": 3,
            "g_widths": (8, 4),
            "d_widths": (4, 8),
            "d_hidden": 4,
            "d_outputs": 4,
            "g_bias": "position",
            "d_stddev": "zoo",
            "output": "tanh",
        },
        {"resolution": 4, "nz": 4, "nc": 1, "g_widths": (8,), "d_widths": (8,), "d_hidden": 8, "d_stddev": "none", "d_fused": True},
    ],
    "tinygan": [
        {"resolution": 16, "nz": 4, "classes": 3, "ch": 4, "d_ch": 4, "embedding": 4},
        {"resolution": 8, "nz": 4, "nc": 1, "classes": 0, "ch": 4, "d_ch": 4, "convolution": "standard"},
    ],
    "sngan24": [{"nz": 4, "g_widths": (8, 6, 4), "d_widths": (4, 6, 8)}],
    "sngan": [
        {"resolution": 8, "nc": 1, "nz": 4, "g_widths": (8, 8), "g_identity": (0,), "d_widths": (4, 4, 8), "d_down": 1},
        {"resolution": 12, "nc": 3, "nz": 4, "classes": 3, "g_widths": (8, 4, 6), "d_widths": (4, 8), "d_down": 2},
        {
            "resolution": 8,
            "nz": 4,
            "classes": 2,
            "g_widths": (16, 16),
            "g_spectral": True,
            "g_attention": 1,
            "d_widths": (16, 16),
            "d_down": 1,
            "d_attention": 1,
        },
    ],
    "stylegan3": [
        {"resolution": 16, "nz": 6, "w_dim": 8, "widths": (8, 6, 6, 4), "margin": 2},
        {"resolution": 16, "nc": 1, "nz": 4, "classes": 3, "w_dim": 8, "widths": (8, 6, 4), "margin": 2, "kernel": 1, "radial": True},
    ],
    "biggan": [
        {"resolution": 16, "nz": 6, "classes": 3, "shared_dim": 4, "g_widths": (16, 8, 8), "g_attn": (0,), "d_widths": (4, 8, 8), "d_attn": (0,)},
        {"resolution": 8, "nz": 4, "classes": 3, "shared_dim": 0, "hier": False, "g_widths": (8, 4), "d_widths": (4, 4, 4), "d_wide": False, "truncation": 0.5},
    ],
    "biggan_deep": [
        {"resolution": 16, "nz": 4, "classes": 3, "shared_dim": 4, "g_widths": (16, 8, 8), "g_attn": (1,), "d_widths": (4, 8, 8), "d_attn": (0,)},
        {"resolution": 8, "nz": 4, "classes": 3, "g_widths": (8, 4), "g_depth": 1, "d_widths": (4, 12), "d_depth": 1, "truncation": 0.4, "latents": "scaled"},
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
    for part in ("generator", "discriminator") if record.has_discriminator else ("generator",):
        torch.manual_seed(seed)
        net = getattr(record, part)(arch)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point() and not name.endswith(("_u", "_v", "_filter")):
                    tensor += 0.2 * torch.rand(tensor.shape, generator=rng) - 0.1  # statistics, biases and gains that are not all alike
        networks.append(net)
    return GAN(record, arch, *networks, source=f"a small {family}").freeze()


def make_gan(family="dcgan", seed=0, **fields):
    """A small GAN with random weights and BatchNorm statistics that are not the identity."""
    record = FAMILIES[family]
    arch = record.build_arch(None, {**TINY, **fields})
    networks = (randomise(record.generator(arch), seed), randomise(record.discriminator(arch), seed + 1))
    return GAN(record, arch, *networks, source="a tiny GAN").freeze()


@pytest.fixture(autouse=True)
def no_cache_at_home(monkeypatch, tmp_path):
    """References measured in tests are kept with the test."""
    monkeypatch.setattr("gancompress.api.cache_folder", lambda: tmp_path / "reference-cache")


@pytest.fixture(scope="module")
def no_curves():
    """Curves take longer than the tiny runs; test_cli draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gancompress.report.save_curves", lambda log_path, path: path.write_bytes(b"curves"))
        yield


@pytest.fixture(scope="module")
def no_report():
    """report.html draws images of the teacher, and tests that ask for this count them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gancompress.running._report", lambda plan, reporter: None)
        yield


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


def fetched(assets, name):
    """Path of a third-party model that is downloaded once."""
    cache = Path(os.environ.get("GANCOMPRESS_FETCHED") or Path.home() / ".cache" / "gancompress-test-assets")
    if not (found := sorted(cache.rglob(name))):
        script = assets / "assets" / "fetch.py"
        try:
            done = subprocess.run([sys.executable, script, cache, name], capture_output=True, text=True, timeout=240)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{name} could not be fetched: {error}")
        found = sorted(cache.rglob(name))
        if done.returncode or not found:
            pytest.skip(f"{name} could not be fetched: {(done.stderr or done.stdout).strip()[-200:]}")
    return found[-1]


@pytest.fixture(scope="session")
def faces_teacher(assets):
    """A real trained 64x64 faces generator."""
    return fetched(assets, "dcgan_faces64.tar")


@pytest.fixture(scope="session")
def vintage_teacher(assets):
    """A real trained CycleGAN generator, from modern to vintage pictures."""
    return fetched(assets, "cyclegan_vintage_resnet9.pth")


def sequential_generator(nz, widths, nc, *, bias=False, norm="batch", dropout=False, extra=0, seed=1):
    """A DCGAN generator as an nn.Sequential, the way most people write one: the reference our reader is held against.

    ``extra``: WassersteinGAN's 3x3 layers in front of the last.
    """
    layers, n_in = [], nz
    for i, width in enumerate(widths):
        layers.append(nn.ConvTranspose2d(n_in, width, 4, *((1, 0) if i == 0 else (2, 1)), bias=bias))
        layers += [nn.BatchNorm2d(width, affine=norm == "batch")] if norm != "none" else []
        layers += [nn.ReLU()] + ([nn.Dropout(0.3)] if dropout and i == 1 else [])
        n_in = width
    for _ in range(extra):
        layers.append(nn.Conv2d(n_in, n_in, 3, 1, 1, bias=bias))
        layers += [nn.BatchNorm2d(n_in), nn.ReLU()] if norm != "none" else [nn.ReLU()]
    return randomise(nn.Sequential(*layers, nn.ConvTranspose2d(n_in, nc, 4, 2, 1, bias=bias), nn.Tanh()), seed)


def sequential_discriminator(nc, widths, *, bias=False, norm="batch", norm_first=False, dropout=False, extra=0, heads=1, seed=2):
    """Its mirror; ends in the logits (N, heads, 1, 1). ``extra``: 3x3 layers behind the first."""
    layers, n_in = [], nc
    for i, width in enumerate(widths):
        layers.append(nn.Conv2d(n_in, width, 4, 2, 1, bias=bias))
        layers += [nn.BatchNorm2d(width, affine=norm == "batch")] if norm != "none" and (i or norm_first) else []
        layers += [nn.LeakyReLU(0.2)] + ([nn.Dropout(0.3)] if dropout and i == 1 else [])
        for _ in range(extra if i == 0 else 0):
            layers.append(nn.Conv2d(width, width, 3, 1, 1, bias=bias))
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)] if norm != "none" else [nn.LeakyReLU(0.2)]
        n_in = width
    return randomise(nn.Sequential(*layers, nn.Conv2d(n_in, heads, 4, 1, 0, bias=bias)), seed)


def randomise(net, seed):
    """Every weight, bias and statistic off its neutral value, so that a mix-up of two of them shows in the output."""
    rng = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 0.9, generator=rng) if tensor.ndim == 1 else tensor.normal_(0, 0.2, generator=rng)
    return net.eval().requires_grad_(False)


def wgan_named(net):
    """The state dict of such a net under WassersteinGAN's names, which tell each layer's place, widths and kind."""
    convs = [m for m in net if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    state, extra, role = {}, 0, ""
    for module in net:
        if module in convs:
            kind = "convt" if isinstance(module, nn.ConvTranspose2d) else "conv"
            if module.kernel_size == (3, 3):
                role, shape, extra = f"extra-layers-{extra}", str(module.out_channels), extra + 1
            else:
                role = {0: "initial", len(convs) - 1: "final"}.get(convs.index(module), "pyramid")
                shape = f"{module.in_channels}-{module.out_channels}"
            state[f"main.{role}:{shape}:{kind}.weight"] = module.weight
        elif isinstance(module, nn.BatchNorm2d):
            state |= {f"main.{role}:{module.num_features}:batchnorm.{leaf}": t for leaf, t in module.state_dict().items()}
    return state


def zoo_named(net):
    """The state dict of such a net under pytorch_GAN_zoo's names; those of D count towards its end, and say convTranspose."""
    convs = [m for m in net if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    generator = isinstance(convs[0], nn.ConvTranspose2d)
    state, number = {}, 0
    for module in net:
        if module in convs:
            at = convs.index(module)
            number = at if generator else len(convs) - 2 - at
            name = f"main.convTranspose{number}"
            if generator and at in (0, len(convs) - 1):
                name = "main.outlayer" if at else "formatLayer"
            elif not generator and at == len(convs) - 1:
                name = "decisionLayer"
            state[f"{name}.weight"] = module.weight
        elif isinstance(module, nn.BatchNorm2d):
            state |= {f"main.batchNorm{number}.{leaf}": t for leaf, t in module.state_dict().items()}
    return state


def named(net, prefix="main."):
    """Its state dict under pytorch/examples' names."""
    return {prefix + key: tensor for key, tensor in net.state_dict().items()}
