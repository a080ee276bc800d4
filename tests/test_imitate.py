"""imitate: its terms against arithmetic written out here, who is trained by them, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SMALL, small_gan
from test_dgl import BASE, lines, teacher_of  # noqa: F401
from test_loop import Cut, assert_same_run, cut_at
from test_losses import LinearCritic, batch_of, gan_of, softplus, trainer_of
from torch import nn

from gancompress.checkpoint import save_networks
from gancompress.console import Silent
from gancompress.errors import MissingError, UsageError
from gancompress.gan import state_hash
from gancompress.losses.imitate import Imitate, ImitateWeights
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.usefixtures("no_curves", "no_report")


class Pixels(nn.Module):
    """G(z) = p z as two images of 2x2 pixels; beside it an activation (N, channels, 1, 1) of q z1 in each channel."""

    def __init__(self, p, q, channels=1):
        super().__init__()
        self.p, self.q, self.channels = nn.Parameter(torch.tensor(p)), nn.Parameter(torch.tensor(q)), channels

    def features(self, inputs, condition=None):
        small = (self.q * inputs[:, :1]).expand(-1, self.channels)[:, :, None, None]
        return [small, (self.p * inputs).reshape(-1, 1, 2, 2)]

    def forward(self, inputs, condition=None):
        return self.features(inputs, condition)[-1]


class Judge(LinearCritic):
    """D(x) = w . x; beside it an activation (N, channels, 1, 1) of a times the sum of x in each channel."""

    def __init__(self, *weights, a=1.0, channels=1):
        super().__init__(*weights)
        self.a, self.channels = nn.Parameter(torch.tensor(a)), channels

    def features(self, x, condition=None):
        total = (self.a * x.flatten(1).sum(1, keepdim=True)).expand(-1, self.channels)[:, :, None, None]
        return [total, super().forward(x)]


def squares(*rows):
    return torch.tensor([[*row, 0.0, 0.0] for row in rows]).reshape(-1, 1, 2, 2)


def gan_with(generator, critic=None):
    gan = gan_of(generator, critic)
    gan.family.sample = lambda arch, n, rng: (torch.ones(n, 4), None)
    gan.family.discriminator = lambda arch: Judge(2.0, 1.0, 0.0, 0.0)
    gan.arch.nc, gan.arch.resolution, gan.arch.classes = 1, 2, 0
    return gan


def imitate_of(channels=1, **weights):
    teacher = gan_with(Pixels(3.0, 5.0, channels), Judge(-1.0, 3.0, 0.0, 0.0, a=4.0, channels=channels))
    student = gan_with(Pixels(1.0, 2.0))
    return Imitate(teacher, student, ImitateWeights(**weights)), student


Z = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 1.0, 2.0]])


@pytest.mark.parametrize("out", [False, True])
def test_g_inter_is_the_mean_absolute_difference_of_activations_for_the_same_latents(out):
    loss, student = imitate_of(g_inter=0.2, resolutions=(1,), out=out, game="wasserstein", clip=1)
    loss.critics["student"].w.data = torch.zeros(4)
    batch = batch_of(Z)
    terms = loss.generator_loss(batch, loss.make_fake(student.generator, batch))
    # activations 2 z1 against 5 z1: |3|, |-6|, mean 4.5; images z against 3 z: |2 z| of 2 and 4 + 2 + 2 + 4 over 8 pixels
    assert float(terms["g_inter"].detach()) == pytest.approx(0.2 * (4.5 + (14 / 8 if out else 0)))
    assert terms.keys() == {"adv", "g_inter"}
    terms["g_inter"].backward()
    assert float(student.generator.q.grad) == pytest.approx(0.2 * -1.5)  # -E|z1|
    assert (student.generator.p.grad is not None) == out


def test_an_adapter_brings_the_students_channels_to_the_teachers_and_is_trained_with_the_student():
    loss, student = imitate_of(channels=2, g_inter=1.0, resolutions=(1,), game="wasserstein", clip=1)
    adapter = loss.adapters["generator"]["1"]
    assert adapter.weight.shape == (2, 1, 1, 1)
    loss.critics["student"].w.data = torch.zeros(4)
    with torch.no_grad():
        adapter.weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        adapter.bias.copy_(torch.tensor([0.0, 10.0]))
    batch = batch_of(Z[:1])
    terms = loss.generator_loss(batch, loss.make_fake(student.generator, batch))
    # the student's 2 becomes 2 and 14, the teacher has 5 and 5
    assert float(terms["g_inter"].detach()) == pytest.approx((3 + 9) / 2)
    terms["g_inter"].backward()
    assert adapter.bias.grad.tolist() == [-0.5, 0.5]
    assert not list(imitate_of(g_inter=1.0, resolutions=(1,))[0].adapters.parameters())  # equal widths need none


def test_d_inter_is_asked_of_real_and_of_fake_images_and_trains_the_critic_and_its_adapter():
    loss, _ = imitate_of(d_inter=0.5, resolutions=(1,))
    real, fake = squares([1.0, 0.0], [0.0, 1.0]), squares([0.0, 0.0], [1.0, 3.0])
    terms = loss.discriminator_loss(batch_of(Z, real=real), fake)
    # sums of pixels 1, 1 and 0, 4; the student's critic takes them once, the teacher's four times: differences 3, 3 and 0, 12
    assert float(terms["d_inter"].detach()) == pytest.approx(0.5 * (3 + 6))
    assert terms.keys() == {"d_adv", "d_inter"}
    terms["d_inter"].backward()
    assert float(loss.critics["student"].a.grad) == pytest.approx(-0.5 * (1 + 2))
    wide, _ = imitate_of(channels=2, d_inter=0.5, resolutions=(1,))
    assert {k for k, _ in wide.critics.named_parameters() if "adapters" in k} == {"adapters.1.weight", "adapters.1.bias"}
    assert wide.generator_loss(batch_of(Z), fake).keys() == {"adv"}


def test_d_out_is_the_cross_entropy_of_the_sigmoids_on_real_and_fake_images():
    loss, _ = imitate_of(d_out=0.5)
    real, fake = squares([1.0, 0.0], [0.0, 1.0]), squares([0.0, 0.0], [1.0, 1.0])
    terms = loss.discriminator_loss(batch_of(Z, real=real), fake)

    def entropy(mine, wanted):  # -p log sigmoid(d) - (1 - p) log(1 - sigmoid(d))
        p = 1 / (1 + math.exp(-wanted))
        return p * softplus(-mine) + (1 - p) * softplus(mine)

    by_hand = (entropy(2, -1) + entropy(1, 3)) / 2 + (entropy(0, 0) + entropy(3, 2)) / 2
    assert float(terms["d_out"].detach()) == pytest.approx(0.5 * by_hand)
    terms["d_out"].backward()
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    # d entropy / d d = sigmoid(d) - p; of w1 on real x = (1, 0) and on fake x = (1, 1)
    assert float(loss.critics["student"].w.grad[0]) == pytest.approx(0.25 * (sigmoid(2) - sigmoid(-1) + sigmoid(3) - sigmoid(2)))


def test_the_teacher_gets_no_gradient():
    loss, student = imitate_of(channels=2, g_inter=1, d_inter=1, d_out=1, resolutions=(1,), out=True)
    batch = batch_of(Z, real=torch.ones(2, 1, 2, 2))
    fake = loss.make_fake(student.generator, batch)
    total = sum(loss.generator_loss(batch, fake).values()) + sum(loss.discriminator_loss(batch, fake.detach()).values())
    total.backward()
    assert all(p.grad is None for net in loss.teacher.networks.values() for p in net.parameters())


@pytest.mark.parametrize(("weights", "says"), [({}, "nothing is imitated"), ({"g_inter": 1.0}, "no layer"), ({"d_inter": 1.0, "out": True}, "no layer")])
def test_weights_that_imitate_nothing_are_refused(weights, says):
    with pytest.raises(ValueError, match=says):
        ImitateWeights(**weights)


def test_the_image_alone_may_be_imitated():
    assert ImitateWeights(g_inter=1, out=True).resolutions == ()


# --------------------------------------------------------------------------------------------------------------------- runs

OFF = [("weights.g_inter", 0), ("weights.d_inter", 0), ("weights.d_out", 0)]
IMITATE = [(k, v) for k, v in BASE if k != "weights.guide_from_kimg"]


def imitating(paths, out, *more, **kwargs):
    teacher, data = paths
    return make_plan(Request(teacher, "imitate", data=data, out=out, device="cpu", steps=kwargs.pop("steps", 4), overrides=[*IMITATE, *more], **kwargs))


ALL = [("weights.g_inter", 0.2), ("weights.d_inter", 0.2), ("weights.d_out", 0.2), ("weights.out", True)]


@pytest.mark.parametrize(("name", "heights"), [("stylegan2", [4, 8]), ("dcgan", [4]), ("biggan", [8])])
def test_all_imitations_at_once_are_trained_and_resumed_bitwise(name, heights, teacher_of, tmp_path, monkeypatch):  # noqa: F811
    more = [*ALL, ("weights.resolutions", heights), ("weights.path_length_every", 2)]
    plan = imitating(teacher_of(name), tmp_path / "run", *more)
    before = plan.teacher.sha256()
    adapters = {k: v.clone() for k, v in plan.loss.state_dict().items() if "adapters" in k}
    d_t = state_hash(plan.teacher.discriminator.state_dict())
    run_plan(plan, Silent())
    assert plan.teacher.sha256() == before
    assert state_hash(plan.teacher.discriminator.state_dict()) == d_t
    assert adapters
    assert all(not torch.equal(v, plan.loss.state_dict()[k]) for k, v in adapters.items() if k.endswith("weight"))
    assert {"adv", "g_inter", "d_adv", "d_inter", "d_out"} <= lines(tmp_path / "run", "adv")[0].keys()
    cut_at(monkeypatch, 2)
    with pytest.raises(Cut):
        run_plan(imitating(teacher_of(name), tmp_path / "again", *more), Silent())
    run_plan(imitating(teacher_of(name), tmp_path / "again", *more), Silent())
    assert_same_run(tmp_path / "again", tmp_path / "run")


def test_adapters_of_g_are_the_students_to_train_and_those_of_d_the_critics(teacher_of, tmp_path):  # noqa: F811
    plan = imitating(teacher_of("stylegan2"), tmp_path / "run", *ALL, ("weights.resolutions", [8]))
    trainer, _ = trainer_of(plan)
    g, d = ({id(p) for group in o.param_groups for p in group["params"]} for o in (trainer.g_opt, trainer.d_opt))
    assert {id(p) for p in plan.loss.adapters.parameters()} <= g - d
    assert {id(p) for p in plan.loss.critics["adapters"].parameters()} <= d - g


def test_mixing_is_off_where_latents_are_shared_and_on_elsewhere(teacher_of, tmp_path):  # noqa: F811
    shared = imitating(teacher_of("stylegan2"), tmp_path / "a", ("weights.resolutions", [8]))
    assert shared.loss.mixing == 0
    assert any("style mixing is off" in note for note in shared.notes)
    assert imitating(teacher_of("stylegan2"), tmp_path / "b", *OFF, ("weights.d_out", 0.2)).loss.mixing == 0.9


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("stylegan2", [("weights.resolutions", [8, 128])], "generators have no activations of 128x128"),
        ("stylegan2", [*OFF, ("weights.d_inter", 1), ("weights.resolutions", [16])], "discriminators have no activations of 16x16"),
        ("sngan", [("weights.resolutions", [4])], "family sngan .teacher. shows no activations"),
        ("stylegan2", [("student.family", "pggan"), ("student.arch.nz", 5), ("weights.resolutions", [4])], "family pggan .student. shows no activations"),
    ],
)
def test_what_has_no_such_activations_is_refused(name, more, says, teacher_of, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match=says) as caught:
        imitating(teacher_of(name), tmp_path / "run", *more)
    assert "4" in caught.value.hint or "g_inter=0" in caught.value.hint  # what there is, or what to do
    assert not (tmp_path / "run").exists()


def test_without_a_teachers_discriminator_only_g_inter_works(teacher_of, tmp_path):  # noqa: F811
    paths = teacher_of("stylegan2", ("generator",))
    imitating(paths, tmp_path / "run", ("weights.resolutions", [8]))
    with pytest.raises(MissingError, match=r"d_inter and weights\.d_out") as caught:
        imitating(paths, tmp_path / "run", *OFF, ("weights.d_out", 0.2))
    assert "--fit-discriminator" in caught.value.hint
    run_plan(imitating(paths, tmp_path / "run", *OFF, ("weights.d_out", 0.2), fit_discriminator=0.004, steps=1), Silent())
    assert (tmp_path / "run" / "teacher-discriminator" / "discriminator.safetensors").is_file()


def test_a_discriminator_without_maps_cannot_be_imitated_by_height(teacher_of, tmp_path):  # noqa: F811
    gan = small_gan("mlp", SMALL["mlp"][0])
    save_networks(tmp_path / "mlp.safetensors", gan.family, gan.arch, gan.networks, {})
    with pytest.raises(UsageError, match="discriminators have no activations of 4x4"):
        imitating((str(tmp_path / "mlp.safetensors"), teacher_of("dcgan")[1]), tmp_path / "run", *OFF, ("weights.d_inter", 1), ("weights.resolutions", [4]))


def test_a_recorded_teacher_has_no_activations_to_imitate():
    teacher, student = small_gan("stylegan2", SMALL["stylegan2"][0]), small_gan("stylegan2", SMALL["stylegan2"][0], seed=1)
    teacher.generator.to("meta")  # as a recording has it: shapes without weights
    with pytest.raises(UsageError, match="recording has no activations"):
        Imitate(teacher, student, ImitateWeights(g_inter=1, resolutions=(8,)))
