"""Widths, and which of the teacher's channels a student starts from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.layers import scale_width
from gancompress.scaling import channel_scores, initialise_from
from gancompress.students import ch_mul_for, parse_target

ARCHS = {
    "dcgan": {"resolution": 16, "nc": 1, "nz": 6, "width": 8},
    "mlp": {"resolution": 8, "nc": 1, "nz": 6, "width": 16},
}


def make(family_name, ch_mul=1.0, seed=0, **fields):
    family = FAMILIES[family_name]
    arch = family.scale(family.build_arch(None, ARCHS[family_name] | fields), ch_mul)
    torch.manual_seed(seed)
    net = family.generator(arch).eval()
    for module in net.modules():  # statistics and biases that are not all alike
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return GAN(family, arch, net)


def images_of(gan):
    inputs, condition = gan.sample(5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return gan.generator(inputs, condition)


@pytest.mark.parametrize(
    ("width", "ch_mul", "expected"),
    [(512, 0.5, 256), (64, 0.25, 16), (100, 1.0, 100), (3, 0.5, 2), (3, 0.1, 1), (1, 0.001, 1), (64, 0.3, 20), (512, 0.3, 152), (24, 0.5, 12), (50, 1.0, 50)],
)
def test_widths_are_rounded_to_what_kernels_like_and_never_to_nothing(width, ch_mul, expected):
    # 3 * 0.5 = 1.5 -> 2; 64 * 0.3 = 19.2 -> 20 (of 4); 512 * 0.3 = 153.6 -> 152 (of 8)
    assert scale_width(width, ch_mul) == expected


@pytest.mark.parametrize("name", ARCHS)
def test_scaling_changes_the_hidden_widths_alone(name):
    full, half = make(name).arch, make(name, 0.5).arch
    same = {f.name for f in dataclasses.fields(full)} - {"g_widths", "d_widths"}
    assert all(getattr(full, k) == getattr(half, k) for k in same)
    assert half.g_widths == tuple(w // 2 for w in full.g_widths)
    assert half.d_widths == tuple(w // 2 for w in full.d_widths)


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_slice_of_a_dcgan_is_the_leading_channels_of_every_tensor(part):
    family = FAMILIES["dcgan"]
    arch = family.build_arch(None, ARCHS["dcgan"])  # widths 16, 8 | 8, 16
    small = family.scale(arch, 0.5)
    build = getattr(family, part)
    teacher, student = build(arch), build(small)
    initialise_from(teacher, student, family.axes(small, part), "slice")
    t, s = teacher.state_dict(), student.state_dict()
    if part == "generator":  # (in, out, 4, 4)
        by_hand = {0: t["layers.0.conv.weight"][:, :8], 1: t["layers.1.conv.weight"][:8, :4], 2: t["layers.2.conv.weight"][:4]}
        norms = {0: 8, 1: 4}
    else:  # (out, in, 4, 4)
        by_hand = {0: t["layers.0.conv.weight"][:4], 1: t["layers.1.conv.weight"][:8, :4], 2: t["layers.2.conv.weight"][:, :8]}
        norms = {1: 8}
    for i, tensor in by_hand.items():
        assert torch.equal(s[f"layers.{i}.conv.weight"], tensor)
    for i, width in norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(s[f"layers.{i}.norm.{leaf}"], t[f"layers.{i}.norm.{leaf}"][:width])


def test_slice_of_an_mlp_is_the_leading_units_of_every_tensor():
    teacher, student = make("mlp"), make("mlp", 0.5, seed=1)
    initialise_from(teacher.generator, student.generator, student.family.axes(student.arch, "generator"), "slice")
    t, s = teacher.generator.state_dict(), student.generator.state_dict()
    assert torch.equal(s["layers.0.weight"], t["layers.0.weight"][:8])
    assert torch.equal(s["layers.1.weight"], t["layers.1.weight"][:8, :8])
    assert torch.equal(s["layers.1.bias"], t["layers.1.bias"][:8])
    assert torch.equal(s["layers.3.weight"], t["layers.3.weight"][:, :8])
    assert torch.equal(s["layers.3.bias"], t["layers.3.bias"])


@pytest.mark.parametrize("name", ARCHS)
def test_top_magnitude_keeps_the_same_channels_in_producer_norm_and_consumer(name):
    """A teacher of which every second channel is nothing: its other half, at half width, makes exactly its images."""
    teacher = make(name)
    axes = teacher.family.axes(teacher.arch, "generator")
    with torch.no_grad():
        for key, tensor in teacher.generator.state_dict().items():
            for axis, group in enumerate(axes[key]):
                if group is not None and not key.endswith("running_var"):
                    dead = torch.arange(int(group) % 2, tensor.shape[axis], 2)  # even ones here, odd ones in the next layer
                    tensor.index_fill_(axis, dead, 0)
    student = make(name, 0.5, seed=1)
    axes = student.family.axes(student.arch, "generator")
    initialise_from(teacher.generator, student.generator, axes, "top-magnitude")
    assert torch.allclose(images_of(teacher), images_of(student), atol=1e-6)
    # and the leading half would not do
    initialise_from(teacher.generator, student.generator, axes, "slice")
    assert not torch.allclose(images_of(teacher), images_of(student), atol=1e-3)


def test_axes_of_several_groups_are_cut_segment_by_segment():
    """h: 2 channels of 2 positions each, then one position that stays, then k: 2 channels."""
    axes = {"w": ((("h", 2), (None, 1), ("k", 1)),), "h": ("h",), "k": ("k",)}

    class Vector(nn.Module):
        def __init__(self, h, k):
            super().__init__()
            self.w, self.h, self.k = (nn.Parameter(t) for t in (torch.zeros(2 * h + 1 + k), torch.zeros(h), torch.zeros(k)))

    teacher, student = Vector(3, 2), Vector(2, 1)
    teacher.w.data = torch.arange(1.0, 10.0)
    initialise_from(teacher, student, axes, "slice")
    assert student.w.tolist() == [1, 2, 3, 4, 7, 8]
    initialise_from(student, teacher, axes, "slice")  # a wider one gets the share there is, each in its place
    assert teacher.w.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_score_of_a_channel_adds_what_makes_it_and_what_it_feeds():
    state = {"a": torch.tensor([[1.0, 1.0], [-3.0, 3.0]]), "b": torch.tensor([[1.0, -2.0], [1.0, 0.0]]), "bias": torch.tensor([100.0, 0.0])}
    axes = {"a": ("h", None), "b": (None, "h"), "bias": ("h",)}
    # a by rows: 2, 6 over their mean 4; b by columns: 2, 2 over their mean 2; biases do not count
    assert channel_scores(state, axes)["h"].tolist() == pytest.approx([0.5 + 1, 1.5 + 1])


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("what", ["parameters", "macs_in", "bytes"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_ch_mul_for_finds_the_largest_that_fits(name, what, share):
    family = FAMILIES[name]
    arch = family.build_arch(None, {**ARCHS[name], "width": 32})

    def cost(c):
        return getattr(c, what)

    limit = cost(generator_cost(family, arch)) * share
    found = ch_mul_for(family, arch, cost, limit, "target")
    assert cost(generator_cost(family, family.scale(arch, found))) <= limit
    assert cost(generator_cost(family, family.scale(arch, round(found + 0.001, 3)))) > limit


def test_ch_mul_for_keeps_the_full_width_where_it_fits_and_refuses_what_cannot_be():
    family = FAMILIES["mlp"]
    arch = family.build_arch(None, ARCHS["mlp"])
    assert ch_mul_for(family, arch, lambda c: c.parameters, 1e9, "target") == 1.0
    least = generator_cost(family, family.scale(arch, 0.001)).parameters
    with pytest.raises(UsageError, match=f"the least is {least:,}"):
        ch_mul_for(family, arch, lambda c: c.parameters, 10, "--target-params 10")


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("500k", "", 5e5),
        ("2.5M", "", 2.5e6),
        ("1MB", "B", 1e6),
        ("1MiB", "B", 2**20),
        ("2 kiB", "B", 2048),
        ("800000", "", 8e5),
        ("1 kB", "B", 1e3),
        ("3G", "(?:MACs)?", 3e9),
    ],
)
def test_targets_are_read_with_their_multipliers(text, unit, value):
    assert parse_target(text, unit) == value


@pytest.mark.parametrize("text", ["", "much", "1..2M", "-5k", "5 apples", "1Mi", "5i"])
def test_a_target_that_is_no_number_is_refused(text):
    with pytest.raises(UsageError, match="expected a number"):
        parse_target(text, "B")


def test_a_planned_student_at_full_width_with_slice_still_is_the_teacher(tmp_path):
    from gancompress.planning import make_plan
    from gancompress.request import Request

    plan = make_plan(Request("sample:dcgan-mnist", "mse", overrides=[("student.ch_mul", 1.0), ("student.init", "slice")], out=tmp_path / "run", device="cpu"))
    z = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plan.student.generator.eval()(z), plan.teacher.generator(z), atol=1e-5)
