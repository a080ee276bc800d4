"""Tian et al. 2021, DGL-GAN, arXiv:2112.06502, Eq. 4:   min_S max_D  Adv(S, D) + guide * Adv(S, D_T),   D_T the teacher's discriminator.

D_T is frozen, and judges the same fake images as D. Until ``guide_from_kimg`` the second term is 0 (Algorithm 1: stage I, then stage II).
The paper's ablations are settings: ``own`` 0 drops D in stage II and ``update_teacher`` trains a copy of D_T instead (Eqs. 5 and 6);
``teacher_fakes`` shows D the teacher's images as further fakes (Eq. 13; with the guide Eq. 14).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from gancompress import distributed as ranks
from gancompress.augment import augment
from gancompress.errors import UsageError
from gancompress.gan import GAN, Batch
from gancompress.losses.gan import GAMES, Adversary
from gancompress.losses.styled import StyledLoss, StyledWeights


class DglWeights(StyledWeights):
    """``guide``: lambda; ``own``: weight of D's game in stage II; ``teacher_fakes``: of the teacher's images among D's fakes there."""

    guide: float = Field(0.1, ge=0)
    guide_from_kimg: float | Literal["auto"] = 0.0
    own: float = Field(1.0, ge=0)
    update_teacher: bool = False
    teacher_fakes: float = Field(0.0, ge=0)

    @field_validator("guide_from_kimg", mode="before")
    @classmethod
    def _length_or_auto(cls, value: Any) -> Any:
        try:
            if value == "auto" or float(value) >= 0:
                return value
        except (TypeError, ValueError):
            pass
        raise ValueError("expected kimg from 0 on, or auto")

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DglWeights:
        if not self.guide and (not self.own or self.update_teacher or self.guide_from_kimg == "auto"):
            raise ValueError("guide=0 leaves no use for own=0, update_teacher or guide_from_kimg=auto")
        return self


class AutoGuide(nn.Module):
    """When to guide, from D_T's scores; the paper's Conclusions wish for it, the rule is ours.

    With h the running mean of D_T(S(z)) (half-life 1 kimg), m and s the mean and deviation of D_T(G_T(z)) over the first batch, and r the
    running mean of D_T(x): on once h >= m - s, which is when the student comes into the teacher's range; off while h > r, when D_T takes
    the student for more real than real images and so has nothing left to tell.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("on", "ever_on", "student", "real", "teacher_mean", "teacher_std"):
            self.register_buffer(name, torch.zeros(()))
        self.on: Tensor
        self.ever_on: Tensor
        self.student: Tensor
        self.real: Tensor
        self.teacher_mean: Tensor
        self.teacher_std: Tensor

    @torch.no_grad()
    def observe(self, student: Tensor, real: Tensor, teacher: Tensor | None) -> None:
        """Scores (N,) of the student's and of real images; ``teacher``: of the teacher's, given at the first step alone."""
        student, real = ranks.gathered(student), ranks.gathered(real)
        teacher = None if teacher is None else ranks.gathered(teacher)
        new = 1.0 if teacher is not None else 1 - 0.5 ** (len(student) / 1000)
        self.student.lerp_(student.mean(), new)
        self.real.lerp_(real.mean(), new)
        if teacher is not None:
            self.teacher_mean.copy_(teacher.mean())
            self.teacher_std.copy_(teacher.std(unbiased=False))
        near, fooled = self.student >= self.teacher_mean - self.teacher_std, self.student > self.real
        self.on.copy_(torch.where(fooled, 0.0, torch.where(near, 1.0, self.on)))
        self.ever_on.copy_(torch.maximum(self.ever_on, self.on))

    def shown(self) -> dict[str, Tensor]:
        return {"guide_on": self.on, "score_t_real": self.real, "score_t_teacher": self.teacher_mean}


class Dgl(StyledLoss):
    needs = frozenset({"real", "teacher_discriminator"})
    Weights = DglWeights

    def __init__(self, teacher: GAN, student: GAN, weights: DglWeights) -> None:
        super().__init__(student, weights)
        self.teacher, self.weights = teacher, weights
        self.guide_game = GAMES[weights.game or teacher.family.game]  # as the teacher was trained
        self.adversary = Adversary(student, weights)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every
        self.updated = Adversary(teacher, weights, copy_of=teacher) if weights.update_teacher else None
        if self.updated:
            self.critics["teacher"] = self.updated.critic
        self.auto = AutoGuide() if weights.guide_from_kimg == "auto" else None

    def stage_two(self, batch: Batch) -> Tensor | float:
        """1 from ``guide_from_kimg`` on, 0 before."""
        if self.auto is not None:
            return self.auto.on.clone()
        return float(batch.kimg >= float(self.weights.guide_from_kimg))

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        d = self.adversary.judge(fake, batch.condition)
        self.shown = {"score_d": d.mean()}
        stage_two = self.stage_two(batch)
        terms = {"adv": (1 - stage_two * (1 - self.weights.own)) * self.adversary.game.g(d)}
        if self.auto is None and (not stage_two or not self.weights.guide):
            return terms | {"guide": torch.zeros_like(terms["adv"])}
        d_t = self.teacher_scores(fake, batch.condition)
        self.shown["score_t"] = d_t.mean()
        if self.auto is not None:
            with torch.no_grad():
                first = self.teacher_scores(*batch.unpaired) if batch.step == 0 else None
                self.auto.observe(d_t, self.teacher_scores(*batch.real_and_condition), first)
            self.shown |= self.auto.shown()
        return terms | {"guide": self.weights.guide * stage_two * self.guide_game.g(d_t)}

    def teacher_scores(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """Logits of D_T, or of its copy that is trained."""
        if self.updated:
            return self.updated.judge(images, condition)
        assert self.teacher.discriminator is not None
        logits: Tensor = self.teacher.discriminator(augment(images, self.weights.augment), condition)
        return logits

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        images, real, stage_two = (fake, batch.condition), batch.real_and_condition, self.stage_two(batch)
        terms: dict[str, Tensor] = {}
        if self.weights.own or self.auto is not None or not stage_two:
            terms |= self.adversary.discriminator_terms(images, real)
            if self.weights.teacher_fakes:
                terms["d_teacher_fakes"] = self.weights.teacher_fakes * stage_two * self.adversary.game.fake(self.adversary.judge(*batch.unpaired))
        if self.updated and (self.auto is not None or stage_two):
            # while auto is off the copy's gradients are 0, and so are Adam's steps
            terms |= {name: stage_two * value for name, value in self.updated.discriminator_terms(images, real, "d_t").items()}
        return terms

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        """R1 of each critic that ``discriminator_loss`` trains at this step."""
        stage_two = self.stage_two(batch)
        terms: dict[str, Tensor] = {}
        if self.weights.own or self.auto is not None or not stage_two:
            terms |= self.adversary.r1(batch.real_and_condition)
        if self.updated and (self.auto is not None or stage_two):
            terms |= {name: stage_two * value for name, value in self.updated.r1(batch.real_and_condition, "d_t").items()}
        return terms

    def after_discriminator_step(self) -> None:
        for adversary in (self.adversary, self.updated):
            if adversary:
                adversary.clip()

    def check(self, last_kimg: float, batch_size: int) -> list[str]:
        begins = self.weights.guide_from_kimg
        if begins != "auto" and begins > last_kimg and (self.weights.guide or self.weights.teacher_fakes):
            raise UsageError(
                f"weights.guide_from_kimg={begins:g}: the guide would never turn on in this run, whose last step begins at {last_kimg:g} kimg",
                "weights.guide_from_kimg=0 guides from the start; weights.guide=0 is the baseline without it",
            )
        return []

    def closing_notes(self) -> list[str]:
        if self.auto is None or self.auto.ever_on:
            return []
        low, score = float(self.auto.teacher_mean - self.auto.teacher_std), float(self.auto.student)
        return [f"the guide never turned on: the teacher's discriminator scores the student {score:.3g}, and its own generator's images from {low:.3g} on"]
