"""Spectral norm, and the six ways in which files spell it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hook

from gancompress.layers import read_spectral, spectral_norm

W = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
U = normalize(torch.randn(4, generator=torch.Generator().manual_seed(1)), dim=0)
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(2))


def ours(state):
    net = spectral_norm(nn.Conv2d(3, 4, 3))
    net.load_state_dict({"bias": torch.zeros(4), **state})
    return net.eval().requires_grad_(False)


def conv(weight):
    return nn.functional.conv2d(X, weight)


def after_one_step(u):
    """W over the norm that one more power step gives, worked out here once more."""
    m = W.flatten(1)
    v = normalize(u @ m, dim=0)
    u = normalize(m @ v, dim=0)
    return W / (u @ m @ v)


@pytest.mark.parametrize("make", [hook, parametrizations.spectral_norm])
def test_torch_s_own_two_are_read_as_they_are_in_evaluation(make):
    torch.manual_seed(0)
    theirs = make(nn.Conv2d(3, 4, 3)).train()
    theirs(X)
    theirs.eval().requires_grad_(False)
    torch.testing.assert_close(ours(read_spectral(theirs.state_dict()))(X), theirs(X))


def test_vectors_that_have_not_converged_are_used_as_stored():
    v = normalize(torch.ones(27), dim=0)
    found = ours(read_spectral({"weight_orig": W, "weight_u": U, "weight_v": v}))(X)
    torch.testing.assert_close(found, conv(W / (U @ W.flatten(1) @ v)))


def test_the_hook_of_torch_04_stored_the_divided_weight():
    found = ours(read_spectral({"weight_orig": W * 3, "weight": W, "weight_u": U}))(X)
    torch.testing.assert_close(found, conv(W))


@pytest.mark.parametrize(
    "state",
    [
        {"weight": W, "u0": U[None], "sv0": torch.tensor([0.1])},
        {"weight": W, "sn_u": U[None], "sn_sigma": torch.tensor([0.1])},
        {"module.weight_bar": W, "module.weight_u": U, "module.weight_v": torch.ones(27), "module.bias": torch.zeros(4)},
    ],
    ids=["biggan", "mimicry", "sagan"],
)
def test_wrappers_that_step_once_more_in_evaluation_are_read_after_that_step(state):
    found = read_spectral(state)
    torch.testing.assert_close(ours(found)(X), conv(after_one_step(U)))
    assert not [k for k in found if "sv0" in k or "sigma" in k or "module" in k]


def test_prefixes_are_kept_and_other_tensors_untouched():
    found = read_spectral({"a.b.weight_orig": W, "a.b.weight_u": U, "a.b.weight_v": torch.ones(27), "c.weight": W, "c.bias": U})
    assert set(found) == {"a.b.parametrizations.weight.original", "a.b.parametrizations.weight.0.u", "a.b.parametrizations.weight.0.v", "c.weight", "c.bias"}


def test_in_training_the_norm_comes_to_the_largest_singular_value_and_in_evaluation_nothing_moves():
    torch.manual_seed(0)
    net = spectral_norm(nn.Linear(6, 5))
    for _ in range(50):
        net(torch.randn(2, 6))
    assert float(torch.linalg.matrix_norm(net.weight.detach(), 2)) == pytest.approx(1, abs=1e-3)
    before = copy.deepcopy(net.eval().state_dict())
    net(torch.randn(2, 6)).sum().backward()
    assert all(t.equal(before[k]) for k, t in net.state_dict().items())
    assert net.parametrizations.weight.original.grad.abs().sum() > 0


def test_the_gradient_is_that_of_the_divided_weight_with_fixed_vectors():
    net = spectral_norm(nn.Linear(3, 2, bias=False)).eval()
    w = net.parametrizations.weight.original.detach().clone().requires_grad_(True)
    u, v = net.parametrizations.weight[0].u, net.parametrizations.weight[0].v
    x = torch.randn(4, 3)
    net(x).square().sum().backward()
    (x @ (w / (u @ w @ v)).T).square().sum().backward()
    torch.testing.assert_close(net.parametrizations.weight.original.grad, w.grad)
