"""Each term of each loss against arithmetic written out here, and who is trained by it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import BRIEFLY
from torch import nn

from gancompress.console import Silent
from gancompress.data import Batches
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Batch
from gancompress.loop import Trainer
from gancompress.losses import LOSSES
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import GAMES, AdversarialWeights, Adversary, gradient_penalty
from gancompress.losses.joint import Joint, JointWeights
from gancompress.losses.mse import Mse
from gancompress.losses.scratch import Scratch
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

CPU = torch.device("cpu")


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


class LinearCritic(nn.Module):
    """D(x) = w . x"""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))

    def forward(self, images: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return images.flatten(1) @ self.w


class Scale(nn.Module):
    """G(z) = p z, as images of one row of pixels"""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, inputs: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return (self.p * inputs)[:, None, None, :]


def images(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[:, None, None, :]  # (N, 1, 1, W)


def batch_of(
    z: torch.Tensor, real: torch.Tensor | None = None, teacher: torch.Tensor | None = None, unpaired: torch.Tensor | None = None, step: int = 0
) -> Batch:
    return Batch(z, None, step, step * 0.004, lambda: (real, None), lambda: teacher, lambda: (unpaired, None))


def gan_of(generator: nn.Module, critic: nn.Module | None = None) -> GAN:
    family = SimpleNamespace(
        name="linear", game="nonsaturating", has_discriminator=True, batch_free=lambda arch: arch, discriminator=lambda arch: LinearCritic(2.0, 1.0)
    )
    return GAN(family, SimpleNamespace(), generator, critic)


REAL = images([1.0, 0.0], [0.0, 1.0])
FAKE = images([0.0, 0.0], [1.0, 1.0])
# of D(x) = 2 x1 + x2: real logits 2 and 1, fake logits 0 and 3
LOGITS = {"real": (2.0, 1.0), "fake": (0.0, 3.0)}


def test_mse_is_the_mean_squared_difference_of_pixels():
    loss = Mse(None, gan_of(Scale(1.0)), Mse.Weights())
    fake, teacher = images([1.0, -1.0], [0.5, 0.0]), images([0.0, -1.0], [0.0, 0.5])
    terms = loss.generator_loss(batch_of(torch.zeros(2, 2), teacher=teacher), fake)
    assert terms.keys() == {"mse"}
    # differences 1, 0, 0.5, -0.5: squares 1, 0, 0.25, 0.25; mean 0.375
    assert float(terms["mse"]) == pytest.approx(0.375)
    assert loss.discriminator_loss(batch_of(torch.zeros(2, 2)), fake) == {}


def test_nonsaturating_game_is_minus_log_of_the_sigmoids():
    real, fake = torch.tensor(LOGITS["real"]), torch.tensor(LOGITS["fake"])
    game = GAMES["nonsaturating"]
    # -log sigmoid(r) = softplus(-r);  -log(1 - sigmoid(f)) = softplus(f)
    assert float(game.d(real, fake)) == pytest.approx((softplus(-2) + softplus(-1)) / 2 + (softplus(0) + softplus(3)) / 2)
    assert float(game.g(fake)) == pytest.approx((softplus(0) + softplus(-3)) / 2)


def test_wasserstein_game_is_the_difference_of_the_means():
    real, fake = torch.tensor(LOGITS["real"]), torch.tensor(LOGITS["fake"])
    assert float(GAMES["wasserstein"].d(real, fake)) == pytest.approx(1.5 - 1.5)
    assert float(GAMES["wasserstein"].d(real, fake + 1)) == pytest.approx(2.5 - 1.5)
    assert float(GAMES["wasserstein"].g(fake)) == pytest.approx(-1.5)


@pytest.mark.parametrize(("w", "by_hand"), [((3.0, 4.0), 16.0), ((0.6, 0.8), 0.0), ((0.0, 0.5), 0.25)])
def test_gradient_penalty_of_a_linear_critic_is_the_norm_minus_one_squared(w, by_hand):
    # the gradient of w . x is w everywhere: (||w|| - 1)^2 = (5 - 1)^2, (1 - 1)^2, (0.5 - 1)^2
    assert float(gradient_penalty(LinearCritic(*w), REAL, FAKE, None).detach()) == pytest.approx(by_hand, abs=1e-6)


def test_gradient_penalty_looks_between_the_real_and_the_fake_image():
    class Square(nn.Module):
        def forward(self, x, condition=None):
            return x.flatten(1).square().sum(1) / 2  # its gradient at x is x

    # between x = 3 and x = 3 there is only x = 3: (3 - 1)^2
    assert float(gradient_penalty(Square(), images([3.0]), images([3.0]), None).detach()) == pytest.approx(4.0)
    # between 1 and 2: at most (2 - 1)^2, at least 0
    assert 0 < float(gradient_penalty(Square(), images([1.0]), images([2.0]), None).detach()) < 1


def test_gradient_penalty_trains_the_critic():
    critic = LinearCritic(3.0, 4.0)
    gradient_penalty(critic, REAL, FAKE, None).backward()
    # d/dw (||w|| - 1)^2 = 2 (||w|| - 1) w / ||w|| = 2 * 4 * (0.6, 0.8)
    assert critic.w.grad.tolist() == pytest.approx([4.8, 6.4])


@pytest.mark.parametrize("game", ["nonsaturating", "wasserstein"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_joint_weighs_the_game_by_alpha_and_the_error_by_the_rest(game, alpha):
    teacher = gan_of(Scale(1.0), LinearCritic(2.0, 1.0))
    loss = Joint(teacher, gan_of(Scale(1.0)), JointWeights(alpha=alpha, game=game, clip=1))
    terms = loss.generator_loss(batch_of(torch.zeros(2, 2), teacher=images([0.0, 0.0], [0.0, 0.0])), FAKE)
    adv = (softplus(0) + softplus(-3)) / 2 if game == "nonsaturating" else -1.5
    assert terms.keys() == {"adv", "mse"}
    assert float(terms["adv"].detach()) == pytest.approx(alpha * adv)
    assert float(terms["mse"]) == pytest.approx((1 - alpha) * 0.5)  # squares 0, 0, 1, 1


@pytest.mark.parametrize("make", [Joint, Scratch])
def test_the_critic_minimises_the_game_and_the_weighted_penalty(make):
    weights = make.Weights(game="wasserstein", gradient_penalty=10)
    loss = make(gan_of(Scale(1.0), LinearCritic(2.0, 1.0)), gan_of(Scale(1.0)), weights)
    terms = loss.discriminator_loss(batch_of(torch.zeros(2, 2), real=REAL), FAKE)
    assert terms.keys() == {"d_adv", "d_gp"}
    assert float(terms["d_adv"].detach()) == pytest.approx(0.0)
    assert float(terms["d_gp"].detach()) == pytest.approx(10 * (math.sqrt(5) - 1) ** 2)


@pytest.mark.parametrize("make", [Joint, Scratch])
def test_without_a_penalty_the_critic_has_the_game_alone(make):
    loss = make(gan_of(Scale(1.0), LinearCritic(2.0, 1.0)), gan_of(Scale(1.0)), make.Weights())
    terms = loss.discriminator_loss(batch_of(torch.zeros(2, 2), real=REAL), FAKE)
    assert terms.keys() == {"d_adv"}
    assert float(terms["d_adv"].detach()) == pytest.approx((softplus(-2) + softplus(-1) + softplus(0) + softplus(3)) / 2)


def test_scratch_is_the_game_alone_and_takes_nothing_of_the_teacher():
    teacher = gan_of(Scale(1.0), LinearCritic(-7.0, -7.0))
    loss = Scratch(teacher, gan_of(Scale(1.0)), Scratch.Weights())
    assert loss.critics["student"].w.tolist() == [2.0, 1.0]
    terms = loss.generator_loss(batch_of(torch.zeros(2, 2)), FAKE)
    assert terms.keys() == {"adv"}
    assert float(terms["adv"].detach()) == pytest.approx((softplus(0) + softplus(-3)) / 2)


def test_the_joint_critic_starts_as_a_copy_of_the_teachers_discriminator():
    teacher = gan_of(Scale(1.0), LinearCritic(-7.0, 3.0))
    loss = Joint(teacher, gan_of(Scale(1.0)), JointWeights())
    critic = loss.critics["student"]
    assert critic.w.tolist() == [-7.0, 3.0]
    assert critic.w is not teacher.discriminator.w
    assert critic.w.requires_grad
    assert "teacher's discriminator" in loss.notes[0]
    fresh = Joint(gan_of(Scale(1.0)), gan_of(Scale(1.0)), JointWeights())
    assert fresh.critics["student"].w.tolist() == [2.0, 1.0]
    assert "fresh" in fresh.notes[0]


@pytest.mark.parametrize(("clip", "expected"), [(0.5, [0.5, -0.5, 0.25]), (0.0, [3.0, -4.0, 0.25])])
@pytest.mark.parametrize("make", [Joint, Scratch])
def test_clipping_puts_every_weight_of_the_critic_into_its_interval(make, clip, expected):
    loss = make(None, gan_of(Scale(1.0)), make.Weights(game="wasserstein", clip=clip, gradient_penalty=10))
    loss.critics["student"].w.data = torch.tensor([3.0, -4.0, 0.25])
    loss.after_discriminator_step()
    assert loss.critics["student"].w.tolist() == expected


@pytest.mark.parametrize("make", [Joint, Scratch])
def test_a_wasserstein_critic_without_a_constraint_is_refused(make):
    with pytest.raises(ValueError, match="needs a constraint"):
        make.Weights(game="wasserstein")


def test_the_loop_clips_after_each_critic_step(tiny_data):
    plan = make_plan(
        Request(recipe="scratch", data=str(tiny_data), device="cpu", overrides=[*TINY, *TINY_DCGAN, ("weights.game", "wasserstein"), ("weights.clip", 0.01)])
    )
    trainer, batches = trainer_of(plan)
    trainer.train_step(batches)
    assert all(float(p.detach().abs().max()) <= 0.01 for p in plan.loss.critics.parameters())


def test_a_fresh_critic_under_a_gradient_penalty_has_no_batchnorm():
    family = FAMILIES["dcgan"]
    arch = family.build_arch(None, {"resolution": 16, "nc": 1, "nz": 4, "width": 2})
    student = GAN(family, arch, family.generator(arch))
    norms = [m for m in Adversary(student, AdversarialWeights()).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms  # without the penalty there are some
    critic = Adversary(student, AdversarialWeights(gradient_penalty=10))
    assert not [m for m in critic.modules() if isinstance(m, nn.BatchNorm2d)]


def test_the_teachers_critic_keeps_its_batchnorms_on_stored_statistics_under_a_gradient_penalty():
    family = FAMILIES["dcgan"]
    arch = family.build_arch(None, {"resolution": 16, "nc": 1, "nz": 4, "width": 2})
    teacher = GAN(family, arch, family.generator(arch), family.discriminator(arch)).freeze()
    critic = Adversary(teacher, AdversarialWeights(gradient_penalty=10), copy_of=teacher)
    norms = [m for m in critic.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    before = {k: v.clone() for k, v in critic.critic.state_dict().items() if "running" in k}
    x = torch.randn(4, 1, 16, 16)
    alone, together = critic.critic(x[:1]), critic.critic(x)
    assert torch.allclose(alone, together[:1], atol=1e-6)  # a function of one image
    assert all(torch.equal(v, critic.critic.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in Adversary(teacher, AdversarialWeights(), copy_of=teacher).modules())  # without the penalty they train


# ------------------------------------------------------------------------------------------------------------- who is trained


TINY = [("schedule.batch_size", 4), ("schedule.accumulate", 1), ("output.log_kimg", 0.008), ("output.save_kimg", 0.012), ("output.pictures_kimg", 1)]
TINY_DCGAN = [("student.family", "dcgan"), ("student.arch.resolution", 8), ("student.arch.nz", 4), ("student.arch.width", 4)]


def trainer_of(plan):
    batches = Batches(
        plan.teacher if plan.teacher and "teacher_images" in plan.loss.needs else plan.student,
        plan.teacher,
        plan.images,
        plan.recipe.schedule,
        mirror=plan.recipe.data.mirror,
        seed=0,
        pool=0,
        device=CPU,
    )
    return Trainer(plan.student, plan.loss, plan.recipe), batches


def test_the_sum_of_the_terms_is_what_is_minimised(tiny_teacher):
    class Two(DistillationLoss):
        needs = frozenset()

        def generator_loss(self, batch, fake):
            return {"a": 2 * fake.sum(), "b": 3 * fake.sum()}

    plan = make_plan(Request(str(tiny_teacher), "mse", device="cpu", overrides=TINY))
    student = gan_of(Scale(0.5))
    trainer = Trainer(student, Two(), plan.recipe)
    z = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    trainer.train_step(lambda step, substep, part: batch_of(z))
    # fake = p z, so d(2 sum + 3 sum)/dp = 5 * (1 + 2 + 3 - 1)
    assert float(student.generator.p.grad) == pytest.approx(25.0)
    means = trainer.take_means()
    assert means == pytest.approx({"a": 2 * 0.5 * 5, "b": 3 * 0.5 * 5})


@pytest.mark.parametrize("name", ["joint", "scratch"])
@pytest.mark.parametrize("d_steps", [1, 2])
def test_gradients_reach_only_the_critic_in_its_step_and_only_the_student_in_its_own(name, d_steps, tiny_teacher, tiny_data):
    plan = make_plan(
        Request(
            str(tiny_teacher),
            name,
            data=str(tiny_data),
            device="cpu",
            overrides=[*TINY, ("schedule.d_steps", d_steps), ("weights.game", "wasserstein"), ("weights.gradient_penalty", 10)],
        )
    )
    trainer, batches = trainer_of(plan)
    critics = list(plan.loss.critics.parameters())
    seen = []

    def d_step(step=trainer.d_opt.step):
        assert all(p.grad is None for p in plan.student.generator.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in critics)
        seen.append([None if p.grad is None else p.grad.clone() for p in critics])
        return step()

    def g_step(step=trainer.g_opt.step):
        assert all(p.grad is not None for p in plan.student.generator.parameters())
        assert any(p.grad.abs().sum() > 0 for p in plan.student.generator.parameters())
        for p, grad in zip(critics, seen[-1], strict=True):
            assert (p.grad is None) == (grad is None)
            assert grad is None or torch.equal(p.grad, grad)
        return step()

    trainer.d_opt.step, trainer.g_opt.step = d_step, g_step
    trainer.train_step(batches)
    assert len(seen) == d_steps
    for net in plan.teacher.networks.values():
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"portable-i2i"}))  # that one is for translators: test_portable_i2i.py
def test_the_teacher_is_the_same_after_training(name, tiny_teacher, tiny_data, tmp_path):
    plan = make_plan(Request(str(tiny_teacher), name, data=str(tiny_data), out=tmp_path / "run", device="cpu", steps=3, overrides=TINY + BRIEFLY.get(name, [])))
    before, student = plan.teacher.sha256(), plan.student.sha256()
    run_plan(plan, Silent())
    assert plan.teacher.sha256() == before
    assert plan.student.sha256() != student
    for net in plan.teacher.networks.values():
        assert not net.training
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_says_what_it_needs_in_known_words(name):
    from gancompress.losses.base import NEEDS

    loss = LOSSES[name]
    assert (loss.needs | loss.uses) <= NEEDS.keys()
    assert not loss.needs & loss.uses
