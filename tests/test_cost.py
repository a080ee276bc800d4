"""Counting multiply-adds: our counter against torch's, and what it must not cost."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gancompress.cost import generator_cost, macs, peak_memory
from gancompress.families import FAMILIES


def conv_at_output(_x, weight, *_, out_shape, **__):
    return 2 * out_shape[0] * math.prod(weight) * math.prod(out_shape[2:])


def counted_by_torch(net, inputs):
    found = []
    for mapping in (None, {torch.ops.aten.convolution: conv_at_output}):
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            net(*inputs)
        found.append(counter.get_total_flops() // 2)
    return tuple(found)


@pytest.mark.parametrize(("family", "fields"), [pytest.param(f, v, id=f"{f}{i}") for f, variants in SMALL.items() for i, v in enumerate(variants)])
def test_costs_of_every_family_are_what_torch_counts(family, fields):
    record = FAMILIES[family]
    arch = record.build_arch(None, fields)
    cost = generator_cost(record, arch)
    assert (cost.macs_in, cost.macs_out) == counted_by_torch(record.generator(arch).eval(), record.sample(arch, 1, torch.Generator().manual_seed(0)))
    assert cost.macs_in > 0


class Everything(nn.Module):
    """Operations of all kinds that form products, in a network somebody might bring."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(4, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.convs = nn.ModuleList([nn.Conv1d(5, 8, 3, padding="same"), nn.Conv3d(1, 2, 3, dilation=2), nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2)])
        self.bilinear = nn.Bilinear(3, 3, 2)

    def forward(self, z):
        y = self.convs[0](self.recurrent(z)[0].mT).mT
        heads = self.attention(y, y, y)[0].unflatten(2, (2, 4)).transpose(1, 2)
        mixed = torch.einsum("nhsd,nhtd->nhst", heads, heads)
        image = self.convs[2](z.reshape(len(z), 4, 2, -1))
        with torch.inference_mode():
            F.linear(mixed, torch.ones(7, 6))
        torch.baddbmm(torch.zeros(2, 3, 3), z[:, :3], z[:, :3].mT)
        return self.convs[1](F.interpolate(torch.cat([image, image.relu_()], 3), scale_factor=2)[:, None]), self.bilinear(z[..., :3], z[..., 1:])


def test_every_kind_of_product_is_counted_as_torch_counts_it():
    torch.manual_seed(0)
    net, z = Everything().eval(), torch.randn(2, 6, 4)
    found = macs(net, (z,))
    assert found == counted_by_torch(net, (z,))
    assert found[0] < found[1]


def test_attention_is_two_products():
    """Older torch counts none of it on the CPU."""
    net = nn.Identity()
    net.forward = lambda q: F.scaled_dot_product_attention(q, q[:, :, :6], q[:, :, :6])
    assert macs(net, (torch.rand(2, 3, 8, 4),)) == (2 * 3 * 8 * 6 * (4 + 4),) * 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: F.batch_norm(x, None, None, training=True) + y,
        lambda x, y: F.conv2d(x, y[:, :, :2, :3], stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        lambda x, y: F.conv2d(x[:, :2], y[:2, :1, 1:, 1:], padding="same", groups=2) + F.conv1d(x[0], y[0, :, :, 1:], padding=1).mean(),
        lambda x, y: F.conv_transpose2d(x, y[:, :, 1:], stride=(3, 2), padding=1, output_padding=(1, 0), dilation=(1, 2)),
        lambda x, y: F.conv_transpose2d(x[:, :2], y[:2], stride=2, groups=2),
        lambda x, y: x.relu_().add_(1) * y[:, :1],
        lambda x, y: torch.cat([x, y], -3),
        lambda x, y: torch.cat([x, y.clamp(min=0)], 1).mean((2, 3)),
        lambda x, y: torch.where(x > y, x, y.tanh()) ** 2 / 3,
        lambda x, y: torch.addmm(x[0, 0, 0], x[0, 0], y[0, 0]),
        lambda x, y: torch.baddbmm(x[0, :, :1], x[0], y[0]).reshape(3, -1).T,
        lambda x, y: F.interpolate(F.pad(x, (1, 2, 0, 1), mode="reflect"), scale_factor=2, mode="bilinear").unflatten(3, (2, -1)).permute(4, 1, 3, 2, 0),
        lambda x, y: F.instance_norm(x, eps=1e-3).sum(1, keepdim=True) * y,
    ],
)
def test_the_meta_device_has_the_shapes_of_the_real_one(function):
    """The counter makes up the results of operations there; another shape would count the next layer wrongly."""
    expected = function(*torch.rand(2, 3, 3, 4, 4)).shape
    found = []

    class Network(nn.Module):
        def forward(self, pair):
            found.append(function(*pair))

    macs(Network(), (torch.empty(2, 3, 3, 4, 4, device="meta"),))
    assert found[0].shape == expected


def test_inspect_does_not_wait_for_the_compiler_to_be_imported():
    code = "import sys, gancompress; gancompress.inspect('sample:dcgan-mnist'); print([m for m in ('torch._dynamo', 'sympy', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_peak_memory_is_weights_and_what_a_pass_holds_at_once():
    """x * w holds 1,000 floats an image, its relu as many more before the first is let go; then half of it is kept in a third."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1000))

        def forward(self, x, condition):
            return torch.relu(x * self.w)[:, :500] + 1

    gan = SimpleNamespace(generator=Net(), sample=lambda n, generator: (torch.ones(n, 1000), None))
    for n in (1, 32):
        assert peak_memory(gan, n, torch.device("cpu")) == 4000 + n * 8000
