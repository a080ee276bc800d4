"""Adversarial games, the Lipschitz constraints of WGAN, and the critic that plays them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import softplus

from gancompress.gan import GAN, Batch
from gancompress.losses.base import Weights

GameName = Literal["nonsaturating", "wasserstein"]


@dataclass(frozen=True)
class Game:
    """``d(real logits, fake logits)`` and ``g(fake logits)``: scalars to minimise over D and over G."""

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor], Tensor]


GAMES: dict[GameName, Game] = {
    # Goodfellow et al. 2014, arXiv:1406.2661, Eq. 1 and §3: -log D(x) - log(1 - D(G(z))); for G -log D(G(z)); all on logits
    "nonsaturating": Game(d=lambda real, fake: softplus(-real).mean() + softplus(fake).mean(), g=lambda fake: softplus(-fake).mean()),
    # Arjovsky et al. 2017, arXiv:1701.07875, Eq. 2
    "wasserstein": Game(d=lambda real, fake: fake.mean() - real.mean(), g=lambda fake: -fake.mean()),
}


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
    """E (||grad_x D(x)||_2 - 1)^2 at x = e real + (1 - e) fake, e uniform per image (Gulrajani et al. 2017, arXiv:1704.00028, Eq. 3)."""
    e = torch.rand(len(real), 1, 1, 1, device=real.device)
    x = (e * real + (1 - e) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x, condition).sum(), x, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


class AdversarialWeights(Weights):
    """``gradient_penalty`` and ``clip`` constrain a Wasserstein critic; 0 switches either off."""

    game: GameName = "nonsaturating"
    gradient_penalty: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _lipschitz(self) -> AdversarialWeights:
        if self.game == "wasserstein" and not (self.gradient_penalty or self.clip):
            raise ValueError("a Wasserstein critic needs a constraint: gradient_penalty=10 or clip=0.01")
        return self


class Adversary(nn.Module):
    """A critic and the game it plays against the student.

    It starts as a copy of the teacher's discriminator where there is one, else fresh with the teacher's (or student's) shapes.
    Under a gradient penalty it must be a function of single images: a fresh critic then has no BatchNorm, the teacher's keeps
    its BatchNorms on their stored statistics.
    """

    def __init__(self, teacher: GAN | None, student: GAN, weights: AdversarialWeights) -> None:
        super().__init__()
        self.weights = weights
        self.game = GAMES[weights.game]
        if teacher is not None and teacher.discriminator is not None:
            self.critic = copy.deepcopy(teacher.discriminator).requires_grad_(True)
            self.origin = "starts from the teacher's discriminator and is updated"
        else:
            # a teacher that is a generator alone (a black box, StyleGAN3) has no shapes to copy
            owner = teacher if teacher is not None and teacher.family.has_discriminator else student
            arch = owner.family.batch_free(owner.arch) if weights.gradient_penalty else owner.arch
            self.critic = owner.family.discriminator(arch)
            self.origin = f"starts fresh, with the {'student' if owner is student else 'teacher'}'s shapes"
        self.train()

    def train(self, mode: bool = True) -> Adversary:
        super().train(mode)
        if self.weights.gradient_penalty:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def generator_term(self, batch: Batch, fake: Tensor) -> Tensor:
        return self.game.g(self.critic(fake, batch.condition))

    def discriminator_terms(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        real, labels = batch.real_and_condition
        terms = {"d_adv": self.game.d(self.critic(real, labels), self.critic(fake, batch.condition))}
        if self.weights.gradient_penalty:
            # labels of the real half: with unpaired labels an interpolate has no label of its own
            terms["d_gp"] = self.weights.gradient_penalty * gradient_penalty(self.critic, real, fake, labels)
        return terms

    @torch.no_grad()
    def clip(self) -> None:
        """Every weight into [-clip, clip] (Arjovsky et al. 2017, Algorithm 1)."""
        if self.weights.clip:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.weights.clip, self.weights.clip)
