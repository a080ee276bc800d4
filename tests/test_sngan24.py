"""The 24x24 chain that the HugGAN sprint called SNGAN."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families.sngan24 import FAMILY, build_arch, read
from gancompress.gan import Mismatch
from gancompress.loading import load_gan


def theirs_generator(nz=5, nc=4, width=3):
    torch.manual_seed(0)
    layers, n_in = [], nz
    for n_out, geometry in ((4 * width, (3, 1, 0)), (2 * width, (3, 2, 1)), (width, (4, 2, 0))):
        layers += [nn.ConvTranspose2d(n_in, n_out, *geometry, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        n_in = n_out
    return trained(nn.Sequential(*layers, nn.ConvTranspose2d(n_in, nc, 4, 2, 1, bias=False), nn.Tanh()), torch.randn(4, nz, 1, 1))


def theirs_critic(nc=4, width=3):
    torch.manual_seed(1)
    layers, n_in = [], nc
    for n_out, kernel in ((width, 4), (2 * width, 4), (4 * width, 3)):
        layers += [spectral_norm(nn.Conv2d(n_in, n_out, kernel, 2, 1, bias=False)), nn.LeakyReLU(0.2)]
        n_in = n_out
    return trained(nn.Sequential(*layers, spectral_norm(nn.Conv2d(n_in, 1, 3, 1, 0, bias=False)), nn.Sigmoid()), torch.randn(4, nc, 24, 24))


def trained(net, x):
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.rand(p.shape) if p.ndim == 1 else p * 2)
        net.train()(x)
    return net.eval().requires_grad_(False)


def named(net):
    return {f"network.{k}": t for k, t in net.state_dict().items()}


def test_the_default_sizes_are_the_sprint_s():
    assert generator_cost(FAMILY, build_arch(None, {})).parameters == 100 * 256 * 9 + 256 * 128 * 9 + 128 * 64 * 16 + 64 * 4 * 16 + 2 * (256 + 128 + 64)
    assert build_arch(None, {"width": 64}) == build_arch(None, {})


def test_both_files_give_what_their_code_gives(tmp_path):
    generator, critic = theirs_generator(), theirs_critic()
    torch.save(named(generator), tmp_path / "net_g_epoch_9.pth")
    torch.save(named(critic), tmp_path / "net_d_epoch_9.pth")
    gan = load_gan(str(tmp_path))
    assert gan.family is FAMILY
    z = torch.randn(3, 5)
    images = generator(z[:, :, None, None])
    torch.testing.assert_close(gan.generator(z), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gan.discriminator(images).sigmoid(), critic(images).flatten(), rtol=1e-4, atol=1e-5)
    assert images.shape == (3, 4, 24, 24)


@pytest.mark.parametrize("key", ["network.3.weight", "network.4.running_mean", "network.7.bias", "network.9.weight"])
def test_a_key_missing_from_the_generator_is_named(key):
    state = named(theirs_generator())
    del state[key]
    with pytest.raises(Mismatch, match=rf"^{re.escape(key)} is missing"):
        read(state, {})


@pytest.mark.parametrize("key", ["network.2.parametrizations.weight.original", "network.6.parametrizations.weight.0._v"])
def test_a_key_missing_from_the_critic_is_named(key):
    state = named(theirs_critic())
    del state[key]
    with pytest.raises(Mismatch, match=rf"^{re.escape(key)} is missing"):
        read(state, {})


@pytest.mark.parametrize(("key", "shape"), [("network.0.weight", (5, 12, 4, 4)), ("network.1.bias", (5,)), ("network.3.weight", (12,))])
def test_a_wrong_shape_is_named(key, shape):
    with pytest.raises(Mismatch, match=rf"^{re.escape(key)} .*shape {re.escape(str(shape))}"):
        read({**named(theirs_generator()), key: torch.zeros(shape)}, {})


def test_unexpected_keys_and_other_networks_are_refused():
    with pytest.raises(Mismatch, match=r"unexpected keys: network\.11\.weight"):
        read({**named(theirs_generator()), "network.11.weight": torch.zeros(3)}, {})
    with pytest.raises(Mismatch, match="no such network"):
        read({**named(theirs_generator()), "network.0.weight": torch.zeros(0, 12, 3, 3)}, {})
    with pytest.raises(Mismatch) as caught:
        read({"main.0.weight": torch.zeros(4, 4, 4, 4)}, {})
    assert caught.value.score == 0


@pytest.mark.parametrize("fields", [{"resolution": 32}, {"classes": 2}, {"g_widths": (4, 4)}, {"nz": 0}, {"width": "x"}])
def test_impossible_architectures_are_refused(fields):
    with pytest.raises(UsageError):
        build_arch(None, fields)
