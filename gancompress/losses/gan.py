"""Adversarial games, the regularisers of their players, and the critic that plays against the student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from gancompress import distributed as ranks
from gancompress.augment import Operation, augment
from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss, Weights
from gancompress.speed import differentiable_twice

GameName = Literal["nonsaturating", "hinge", "lsgan", "wasserstein"]


@dataclass(frozen=True)
class Game:
    """Scalars of logits (N, ...): ``real`` and ``fake`` to minimise over D, ``g`` (of the fake logits) over G."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]

    def d(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.real(real) + self.fake(fake)


GAMES: dict[str, Game] = {
    # Goodfellow et al. 2014, arXiv:1406.2661, Eq. 1 and §3: -log D(x) - log(1 - D(G(z))); for G -log D(G(z)); all on logits
    "nonsaturating": Game(real=lambda d: softplus(-d).mean(), fake=lambda d: softplus(d).mean(), g=lambda d: softplus(-d).mean()),
    # Miyato et al. 2018, arXiv:1802.05957, Eqs. 16 and 17
    "hinge": Game(real=lambda d: relu(1 - d).mean(), fake=lambda d: relu(1 + d).mean(), g=lambda d: -d.mean()),
    # Mao et al. 2017, arXiv:1611.04076, Eq. 9, without its factor of a half
    "lsgan": Game(real=lambda d: (d - 1).square().mean(), fake=lambda d: d.square().mean(), g=lambda d: (d - 1).square().mean()),
    # Arjovsky et al. 2017, arXiv:1701.07875, Eq. 2
    "wasserstein": Game(real=lambda d: -d.mean(), fake=lambda d: d.mean(), g=lambda d: -d.mean()),
}


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
    """E (||grad_x D(x)||_2 - 1)^2 at x = e real + (1 - e) fake, e uniform per image (Gulrajani et al. 2017, arXiv:1704.00028, Eq. 3)."""
    e = ranks.rows(len(real), lambda n: torch.rand(n, 1, 1, 1, device=real.device))
    x = (e * real + (1 - e) * fake).detach().requires_grad_(True)
    with differentiable_twice():
        (gradient,) = torch.autograd.grad(critic(x, condition).sum(), x, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def r1_penalty(critic: nn.Module, real: Tensor, condition: Tensor | None) -> Tensor:
    """1/2 E ||grad_x D(x)||^2 at real x (Mescheder et al. 2018, arXiv:1801.04406, Eq. 9, without its gamma)."""
    x = real.detach().requires_grad_(True)
    with differentiable_twice():
        (gradient,) = torch.autograd.grad(critic(x, condition).sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


class PathLength(nn.Module):
    """E (||J_w^T y||_2 - a)^2, y normal images, a the running mean of the lengths (Karras et al. 2020, arXiv:1912.04958, Eq. 4 and App. B).

    For generators with ``styles``: latents -> w+ (N, layers, w_dim). As in the authors' code y is divided by the square root of the number
    of pixels, and the length is the root of the mean over layers. ``a`` is a constant of the equation: no gradient goes through it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.mean: Tensor

    def forward(self, generator: nn.Module, inputs: Tensor, condition: Tensor | None) -> Tensor:
        with differentiable_twice():
            styles = generator.styles(inputs, condition)  # type: ignore[operator]
            images = generator(styles)
        y = ranks.normal(images) / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad((images * y).sum(), styles, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        with torch.no_grad():
            self.mean.lerp_(ranks.gathered(lengths).mean(), 0.01)
        return (lengths - self.mean.clone()).square().mean()


class AdversarialWeights(Weights):
    """``game`` null: the one the family's discriminators are trained with. ``gradient_penalty``, ``clip`` and ``r1`` (gamma) constrain
    the critic; 0 switches each off. ``r1_every`` above 1: R1 in a step of its own every so many steps (lazily, Karras et al. 2020)."""

    game: GameName | None = None
    gradient_penalty: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)
    r1: float = Field(0.0, ge=0)
    r1_every: int = Field(1, ge=1)
    augment: tuple[Operation, ...] = ()

    @model_validator(mode="after")
    def _lipschitz(self) -> AdversarialWeights:
        if self.game == "wasserstein" and not (self.gradient_penalty or self.clip):
            raise ValueError("a Wasserstein critic needs a constraint: gradient_penalty=10 or clip=0.01")
        return self


class Adversary(nn.Module):
    """A critic and the game it plays against the student.

    It starts as a copy of ``copy_of``'s discriminator, else fresh with ``owner``'s shapes. Under a gradient penalty or R1 a fresh critic
    has no BatchNorm, a copied one keeps its BatchNorms on their stored statistics.
    """

    def __init__(self, owner: GAN, weights: AdversarialWeights, copy_of: GAN | None = None) -> None:
        super().__init__()
        self.weights = weights
        self.game = GAMES[weights.game or owner.family.game]
        self.single = bool(weights.gradient_penalty or weights.r1)
        if copy_of is not None and copy_of.discriminator is not None:
            self.critic = copy.deepcopy(copy_of.discriminator).requires_grad_(True)
        else:
            self.critic = owner.family.discriminator(owner.family.batch_free(owner.arch) if self.single else owner.arch)
        self.train()

    def train(self, mode: bool = True) -> Adversary:
        super().train(mode)
        if self.single:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def judge(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """Logits of images, augmented as the recipe says."""
        logits: Tensor = self.critic(augment(images, self.weights.augment), condition)
        return logits

    def generator_term(self, batch: Batch, fake: Tensor) -> Tensor:
        return self.game.g(self.judge(fake, batch.condition))

    def discriminator_terms(self, fake: tuple[Tensor, Tensor | None], real: tuple[Tensor, Tensor | None], name: str = "d") -> dict[str, Tensor]:
        """``fake``, ``real``: images and their labels."""
        terms = {f"{name}_adv": self.game.d(self.judge(*real), self.judge(*fake))}
        if self.weights.gradient_penalty:
            # labels of the real half: with unpaired labels an interpolate has no label of its own
            seen, shown = augment(real[0], self.weights.augment), augment(fake[0], self.weights.augment)
            terms[f"{name}_gp"] = self.weights.gradient_penalty * gradient_penalty(self.critic, seen, shown, real[1])
        if self.weights.r1_every == 1:
            terms |= self.r1(real, name)
        return terms

    def r1(self, real: tuple[Tensor, Tensor | None], name: str = "d") -> dict[str, Tensor]:
        if not self.weights.r1:
            return {}
        images, labels = real
        return {f"{name}_r1": self.weights.r1 * r1_penalty(self.critic, augment(images, self.weights.augment), labels)}

    @property
    def every(self) -> int:
        """How often ``r1`` is to be asked for apart from the other terms; 0: never."""
        return self.weights.r1_every if self.weights.r1 and self.weights.r1_every > 1 else 0

    @torch.no_grad()
    def clip(self) -> None:
        """Every weight into [-clip, clip] (Arjovsky et al. 2017, Algorithm 1)."""
        if self.weights.clip:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.weights.clip, self.weights.clip)


def student_or_teacher(teacher: GAN | None, student: GAN) -> GAN:
    """Whose shapes a critic of the teacher's images takes: the teacher's, unless its family has no discriminator (a black box, StyleGAN3)."""
    return teacher if teacher is not None and teacher.family.has_discriminator else student


class Fit(DistillationLoss):
    """max_D Adv(G_T, D): a discriminator for a teacher that came without one; its generator is not trained."""

    needs = frozenset({"teacher_images", "real"})
    Weights = AdversarialWeights

    def __init__(self, teacher: GAN, student: GAN, weights: AdversarialWeights) -> None:
        super().__init__()
        self.adversary = Adversary(teacher, weights)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every

    def make_fake(self, generator: nn.Module, batch: Batch) -> Tensor:
        return batch.teacher

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {}

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return self.adversary.discriminator_terms((fake, batch.condition), batch.real_and_condition)

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.adversary.r1(batch.real_and_condition)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()
