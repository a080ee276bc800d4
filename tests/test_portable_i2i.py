"""Each term of Chen et al. 2020, Eq. 9, against arithmetic written out here; whom it trains; runs of it from end to end."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_gan
from test_loop import Cut, assert_same_run, cut_at, log_of
from torch import nn

from gancompress.api import inspect
from gancompress.checkpoint import save_networks
from gancompress.console import Silent
from gancompress.errors import UsageError
from gancompress.gan import GAN, Batch
from gancompress.loading import load_gan
from gancompress.losses.portable_i2i import PortableI2i, PortableWeights
from gancompress.losses.scratch import Scratch
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan


class Critic(nn.Module):
    """Features p x and p x^2, logit p (sum of x); of two channels, which are x and its input, both are judged."""

    def __init__(self, p: float, d_nc: int = 1) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.arch = SimpleNamespace(d_nc=d_nc, nc=1, d_widths=(1, 1))

    def features(self, images, condition=None):
        x = images if condition is None else torch.cat([condition, images], 1)
        assert x.shape[1] == self.arch.d_nc
        return [self.p * x, self.p * x.square(), self.p * x.flatten(1).sum(1, keepdim=True)]

    def forward(self, images, condition=None):
        return self.features(images, condition)[-1]


def loss_of(teacher_critic=None, d_nc=1, **weights):
    family = SimpleNamespace(game="nonsaturating", discriminator=lambda arch: Critic(1.0, d_nc))
    teacher = GAN(family, SimpleNamespace(), nn.Identity(), teacher_critic)
    return PortableI2i(teacher, GAN(family, SimpleNamespace(), nn.Identity()), PortableWeights(**weights))


def image(*pixels):
    return torch.tensor([[list(pixels)]])[:, :, None, :]  # (1, 1, 1, W)


X, Y, TAUGHT, FAKE = image(1.0, 1.0), image(1.0, 0.0), image(0.5, 0.0), image(0.0, 1.0)


def batch(paired=True, condition=None):
    return Batch(X, condition, 0, 0.0, lambda: (Y, condition), lambda: TAUGHT, lambda: (TAUGHT, None), paired)


def softplus(x):
    return math.log(1 + math.exp(x))


def values(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


def test_the_student_s_terms_are_those_of_the_equation():
    loss = loss_of(Critic(2.0), adv=3, truth=5, beta1=7, gamma1=11, layers=2)
    assert values(loss.generator_loss(batch(), FAKE)) == pytest.approx(
        {
            "adv": 3 * softplus(-1),  # D_S(fake) = 0 + 1
            "truth": 5 * (1 + 1) / 2,
            "l1": 7 * (0.5 + 1) / 2,
            # D_T's features: 2 (0.5, 0) and 2 (0.25, 0) against 2 (0, 1) and 2 (0, 1)
            "perc": 11 * ((1 + 2) / 2 + (0.5 + 2) / 2) / 2,
        }
    )


def test_distances_are_squared_of_each_image_where_it_is_asked_for():
    loss = loss_of(Critic(2.0), beta1=7, gamma1=11, layers=1, squared=True)
    terms = values(loss.generator_loss(batch(), FAKE))
    assert terms["l1"] == pytest.approx(7 * 0.75**2)
    assert terms["perc"] == pytest.approx(11 * 1.5**2)
    assert terms["truth"] == pytest.approx(1)  # pix2pix's own
    two = Batch(X, None, 0, 0.0, lambda: (Y, None), lambda: torch.cat([TAUGHT, FAKE]), lambda: (TAUGHT, None))
    assert values(loss.generator_loss(two, torch.cat([FAKE, FAKE])))["l1"] == pytest.approx(7 * 0.75**2 / 2)  # not the square of the mean


def test_the_discriminator_s_terms_are_those_of_the_equation_halved():
    loss = loss_of(Critic(2.0), beta2=3, gamma2=5, margin=0.75)
    assert values(loss.discriminator_loss(batch(), FAKE)) == pytest.approx(
        {
            "d_adv": (softplus(-1) + softplus(1)) / 2,  # logits of y and of the fake: 1 and 1
            "d_teacher": 3 * softplus(-0.5) / 2,
            # its last features but one: x^2. |y - teacher| = 0.75 / 2, |y - student| = 2 / 2
            "d_tri": 5 * (0.375 - 1 + 0.75) / 2,
        }
    )


def test_the_triplet_is_nothing_where_the_student_is_farther_than_the_margin():
    loss = loss_of(Critic(2.0), margin=0.5)
    assert values(loss.discriminator_loss(batch(), FAKE))["d_tri"] == 0  # 0.375 - 1 + 0.5 < 0


def test_without_pairs_there_is_no_distance_to_the_truth():
    assert loss_of(Critic(2.0)).generator_loss(batch(paired=False), FAKE).keys() == {"adv", "l1", "perc"}


def test_without_a_teacher_s_discriminator_the_perceptual_term_is_the_student_s_own_and_says_so():
    loss = loss_of(None, gamma1=11, layers=1)
    assert values(loss.generator_loss(batch(), FAKE))["perc"] == pytest.approx(11 * 0.75)
    assert "the student's discriminator, since the teacher has none" in loss.notes[0]
    assert "the teacher's discriminator" in loss_of(Critic(2.0)).notes[0]
    assert not loss_of(None, gamma1=0).notes


def test_each_discriminator_is_shown_as_many_channels_as_it_takes():
    """D_S sees inputs beside outputs, D_T outputs alone, and the other way round."""
    conditional = loss_of(Critic(2.0), d_nc=2)
    assert values(conditional.generator_loss(batch(condition=X), FAKE))["adv"] == pytest.approx(softplus(-3))  # 0 + 1 and the input's 1 + 1
    assert values(conditional.discriminator_loss(batch(condition=X), FAKE))["d_teacher"] == pytest.approx(softplus(-2.5) / 2)
    plain = loss_of(Critic(2.0, d_nc=2), gamma1=1, layers=1)
    assert values(plain.generator_loss(batch(), FAKE))["perc"] == pytest.approx((1 + 2) / 4)  # the inputs' features are equal


@pytest.mark.parametrize("term", ["adv", "truth", "l1", "perc"])
def test_each_of_the_student_s_terms_trains_it(term):
    loss = loss_of(Critic(2.0))
    loss.critics.requires_grad_(False)
    fake = FAKE.clone().requires_grad_(True)
    loss.generator_loss(batch(), fake)[term].backward()
    assert fake.grad.abs().sum() > 0


@pytest.mark.parametrize("term", ["d_adv", "d_teacher", "d_tri"])
def test_each_of_the_discriminator_s_terms_trains_it_and_not_the_teacher_s(term):
    theirs = Critic(2.0)
    loss = loss_of(theirs, margin=1)
    loss.discriminator_loss(batch(), FAKE)[term].backward()
    assert loss.critics["student"].p.grad.abs() > 0
    assert theirs.p.grad is None
    assert all(p is not theirs.p for p in loss.parameters())


ROWS = {
    "baseline": ({"beta1": 0, "gamma1": 0, "beta2": 0, "gamma2": 0}, {"adv", "truth"}, {"d_adv"}),
    "perc": ({"beta1": 0, "beta2": 0, "gamma2": 0}, {"adv", "truth", "perc"}, {"d_adv"}),
    "l1 + perc": ({"beta2": 0, "gamma2": 0}, {"adv", "truth", "l1", "perc"}, {"d_adv"}),
    "GT": ({"beta1": 0, "gamma1": 0, "gamma2": 0}, {"adv", "truth"}, {"d_adv", "d_teacher"}),
    "GT + tri": ({"beta1": 0, "gamma1": 0}, {"adv", "truth"}, {"d_adv", "d_teacher", "d_tri"}),
    "all": ({}, {"adv", "truth", "l1", "perc"}, {"d_adv", "d_teacher", "d_tri"}),
    "vanilla": ({"adv": 0, "truth": 0, "gamma1": 0, "beta2": 0, "gamma2": 0}, {"l1"}, None),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_rows_of_the_paper_s_tables_are_weights(row):
    weights, student, critic = ROWS[row]
    loss = loss_of(Critic(2.0), **weights)
    assert loss.generator_loss(batch(), FAKE).keys() == student
    if critic is None:
        assert not loss.critics
        assert "no discriminator is trained" in loss.check(1, 1)[0]
    else:
        assert loss.discriminator_loss(batch(), FAKE).keys() == critic
        assert not loss.check(1, 1)


def test_weights_that_train_nothing_or_layers_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="nothing would train the student"):
        loss_of(Critic(2.0), adv=0, truth=0, beta1=0, gamma1=0).check(1, 1)
    with pytest.raises(UsageError, match=r"weights\.layers=3: that discriminator has 2 hidden layers"):
        loss_of(Critic(2.0), layers=3)


def test_scratch_of_a_translator_adds_the_distance_to_the_truth_where_there_are_pairs():
    family = SimpleNamespace(game="nonsaturating", discriminator=lambda arch: Critic(1.0))
    loss = Scratch(None, GAN(family, SimpleNamespace(), nn.Identity()), Scratch.Weights(truth=100))
    assert values(loss.generator_loss(batch(), FAKE)) == pytest.approx({"adv": softplus(-1), "truth": 100})
    assert loss.generator_loss(batch(paired=False), FAKE).keys() == {"adv"}


# ------------------------------------------------------------------------------------------------------------------------ runs

SMALL = {"resolution": 16, "nc": 3, "g_widths": (4, 8, 8), "d_widths": (4, 8)}
RUN = [("output.log_kimg", 0.002), ("output.save_kimg", 0.003), ("output.pictures_kimg", 1), ("data.mirror", True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of teachers (with a discriminator of pairs, of images, without one) and an .npz of pairs."""
    path = tmp_path_factory.mktemp("i2i")
    for family in ("unet", "resnet"):
        for d_nc in (3, 6):
            gan = small_gan(family, SMALL | {"d_nc": d_nc} | ({"blocks": 1} if family == "resnet" else {}))
            save_networks(path / f"{family}-{d_nc}.safetensors", gan.family, gan.arch, gan.networks, {})
        save_networks(path / f"{family}-g.safetensors", gan.family, dataclasses.replace(gan.arch, d_nc=3), {"generator": gan.generator}, {})
    drawn = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3), dtype=np.uint8)
    np.savez(path / "pairs.npz", source=drawn[0], target=drawn[1])
    return path


def planned(place, teacher, out, recipe="portable-i2i", overrides=(), **options):
    options = {"steps": 7, "data": str(place / "pairs.npz")} | options
    source = str(place / f"{teacher}.safetensors") if teacher else None
    return make_plan(Request(source, recipe, overrides=[*RUN, *overrides], out=out, device="cpu", **options))


@pytest.mark.parametrize("teacher", ["unet-6", "unet-g", "resnet-3"])
def test_a_run_leaves_a_student_and_the_teacher_as_it_was(teacher, place, tmp_path):
    plan = planned(place, teacher, tmp_path / "run")
    before, first = plan.teacher.sha256(), plan.student.sha256()
    critic = plan.loss.critics["student"]
    assert critic.arch.d_nc == (3 if teacher.endswith("3") else 6)  # where nothing says otherwise, pix2pix's
    assert critic.arch.d_widths == plan.teacher.arch.d_widths  # as large as the teacher's
    student = load_gan(str(run_plan(plan, Silent())))
    assert plan.teacher.sha256() == before
    assert not any(net.training for net in plan.teacher.networks.values())
    assert student.sha256() != first
    assert student.arch.statistics == "image"
    assert {"adv", "truth", "l1", "perc", "d_adv", "d_teacher", "d_tri"} <= log_of(tmp_path / "run")[0].keys()


@pytest.mark.parametrize("paired", [True, False])
def test_an_interrupted_run_repeats_the_unbroken_one_bitwise(paired, place, tmp_path, monkeypatch):
    overrides = [("data.paired", paired), ("data.jitter", 1.25)]
    run_plan(planned(place, "unet-g", tmp_path / "whole", overrides=overrides), Silent())
    cut_at(monkeypatch, 4)
    with pytest.raises(Cut):
        run_plan(planned(place, "unet-g", tmp_path / "cut", overrides=overrides), Silent())
    plan = planned(place, "unet-g", tmp_path / "cut", overrides=overrides)
    assert plan.resumes
    run_plan(plan, Silent())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_another_direction_in_the_folder_is_refused(place, tmp_path):
    run_plan(planned(place, "unet-g", tmp_path / "run", steps=1), Silent())
    with pytest.raises(UsageError, match=r"data.sha256"):
        planned(place, "unet-g", tmp_path / "run", steps=1, direction="BtoA")


def test_unpaired_data_train_one_direction_with_the_game_of_cyclegan(place, tmp_path):
    plan = planned(place, "resnet-g", tmp_path / "run", overrides=[("data.paired", False)])
    assert any("this one direction is trained, without the cycle" in note for note in plan.notes)
    assert plan.loss.game.real(torch.tensor([3.0])) == 4  # least squares
    assert plan.loss.critics["student"].arch.d_nc == 3
    run_plan(plan, Silent())
    assert "truth" not in log_of(tmp_path / "run")[0]
    with pytest.raises(UsageError, match="judges pairs") as caught:
        planned(place, "unet-6", tmp_path / "other", overrides=[("data.paired", False)])
    assert "student.arch.d_nc=3" in caught.value.hint
    plan = planned(place, "unet-6", tmp_path / "other", overrides=[("data.paired", False), ("student.arch.d_nc", 3)])
    assert plan.loss.critics["student"].arch.d_nc == 3
    assert plan.loss.judge.arch.d_nc == 6


def test_a_fitted_discriminator_of_pairs_takes_the_teacher_s_place(place, tmp_path):
    plan = planned(place, "unet-g", tmp_path / "run", fit_discriminator=0.003)
    run_plan(plan, Silent())
    assert plan.loss.judge is plan.teacher.discriminator
    assert plan.teacher.discriminator.arch.d_nc == 6


@pytest.mark.parametrize(("recipe", "teacher"), [("scratch", "unet-6"), ("scratch", None), ("joint", "unet-6")])
def test_other_recipes_train_translators_on_pairs_too(recipe, teacher, place, tmp_path):
    by_hand = [] if teacher else [("student.family", "unet"), *((f"student.arch.{k}", v) for k, v in SMALL.items())]
    truth = [("weights.truth", 10)] if recipe == "scratch" else []
    options = {} if recipe == "scratch" else {"direction": "AtoB"}
    plan = planned(place, teacher, tmp_path / "run", recipe, [*by_hand, *truth, ("schedule.batch_size", 2)], **options)
    assert plan.loss.critics["student"].arch.d_nc == 6
    student = load_gan(str(run_plan(plan, Silent())))
    assert student.arch.resolution == 16
    assert {"scratch": "truth", "joint": "mse"}[recipe] in log_of(tmp_path / "run")[0]


def test_data_of_pairs_feed_what_takes_inputs_alone(place, tmp_path):
    from gancompress.api import sample
    from gancompress.data import Images

    plan = planned(place, "unet-6", tmp_path / "run", "mse", [("schedule.batch_size", 2)])
    sources, targets = (Images(str(place / "pairs.npz"), 16, 3, array_name=name) for name in ("source", "target"))
    drawn = plan.teacher.sample(5, torch.Generator().manual_seed(0))[0]
    assert torch.equal(drawn, sources.inputs(5, torch.Generator().manual_seed(0)))
    back = planned(place, "unet-6", tmp_path / "back", "mse", [("schedule.batch_size", 2)], direction="BtoA")
    assert torch.equal(back.teacher.sample(5, torch.Generator().manual_seed(0))[0], targets.inputs(5, torch.Generator().manual_seed(0)))
    assert sample(str(place / "unet-6.safetensors"), tmp_path / "s.png", num=2, data=str(place / "pairs.npz")).is_file()


@pytest.mark.parametrize(
    ("teacher", "recipe", "overrides", "said"),
    [
        ("unet-6", "portable-i2i", [("schedule.teacher_pool", 4)], "schedule.teacher_pool"),
        ("unet-6", "scratch", [("weights.augment", ["color"])], "weights.augment"),
        ("unet-6", "mse", [("data.jitter", 1.5), ("schedule.batch_size", 2)], "data.jitter=1.5"),
        ("unet-g", "portable-i2i", [("student.arch.d_widths", "64,128,256,512")], "images of 16 x 16 are too small for the discriminator"),
    ],
)
def test_what_cannot_be_meant_is_refused(teacher, recipe, overrides, said, place, tmp_path):
    with pytest.raises(UsageError, match=said):
        planned(place, teacher, tmp_path / "run", recipe, overrides)
    assert not (tmp_path / "run").exists()


def test_it_is_for_translators(tiny_teacher, tiny_data, place):
    with pytest.raises(UsageError, match="'portable-i2i' is for image translators"):
        make_plan(Request(str(tiny_teacher), "portable-i2i", data=str(tiny_data), device="cpu"))
    assert inspect(str(tiny_teacher))["recipes"]["portable-i2i"]["missing"] == ["an image translator"]
    assert inspect(str(place / "unet-g.safetensors"))["recipes"]["portable-i2i"]["feeds"]
