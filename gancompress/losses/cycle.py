"""Zhu et al. 2017, CycleGAN, arXiv:1703.10593, Eqs. 2 and 3 around a loss L of one direction; S translates x to y, R translates back:

    min_S,R max_D,D'  L(S, D) + L(R, D') + cycle (|R(S(x)) - x| + |S(R(y)) - y|) + identity (|S(y) - y| + |R(x) - x|)

The identity is its §5.2's. Discriminators are shown a pool of what the students made (§4, after Shrivastava et al. 2017, arXiv:1612.07828, §2.3).
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from gancompress.errors import UsageError
from gancompress.gan import GAN, Batch, BothWays
from gancompress.losses.base import DistillationLoss, Weights


class CycleWeights(Weights):
    """Of two directions; with one they say nothing. ``pool``: images of each student that its discriminator may be shown again; 0: none."""

    cycle: float = Field(10.0, ge=0)
    identity: float = Field(0.0, ge=0)
    pool: int = Field(50, ge=0)


class Pool(nn.Module):
    """(N, C, H, W) -> as many: once ``size`` are held, each image is by one half exchanged for an earlier one, whose place it takes."""

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.images: Tensor
        self.held = 0  # no buffer: a GPU would be waited for

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.held)

    def set_extra_state(self, state: Tensor) -> None:
        self.held = int(state)

    def forward(self, images: Tensor) -> Tensor:
        shown = []
        for image in images:
            if self.held < len(self.images):
                self.images[self.held] = image
                self.held += 1
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(len(self.images), ()))
                earlier = self.images[place].clone()
                self.images[place] = image
                image = earlier
            shown.append(image)
        return torch.stack(shown)


class Cycle(DistillationLoss):
    """Two losses of one direction each and what ties them. ``teachers``, ``students``: x to y first, then back.

    A batch's fakes are S(x) and R(y), one behind the other in channels. Terms of the way back end in _back.
    """

    needs = frozenset({"translator", "teacher_images", "real"})
    uses = frozenset({"teacher_discriminator"})
    Weights = CycleWeights

    def __init__(self, losses: tuple[DistillationLoss, DistillationLoss], teachers: tuple[GAN, GAN], students: tuple[GAN, GAN], weights: CycleWeights) -> None:
        super().__init__()
        # in tuples, since a module would hold their weights a second time
        self.losses, self.teachers, self.students, self.weights = losses, teachers, students, weights
        self.channels = [gan.arch.nc for gan in students]
        if weights.identity and self.channels[0] != self.channels[1]:
            a, b = reversed(self.channels)
            raise UsageError(f"weights.identity={weights.identity:g}: images of {a} channels and of {b} are not each other's inputs", "weights.identity=0")
        self.pools = nn.ModuleDict()
        for name, loss, gan in zip(("student", "back"), losses, students, strict=True):
            if "student" in loss.critics:
                self.critics[name] = loss.critics["student"]
                if weights.pool:
                    self.pools[name] = Pool(weights.pool, (gan.arch.nc, gan.arch.resolution, gan.arch.resolution))
        self.notes = [*losses[0].notes, *(f"the way back: {note}" for note in losses[1].notes)]
        self._turned: tuple[Batch, Batch] | None = None

    def turned(self, batch: Batch) -> Batch:
        """The same images in the other direction."""
        if self._turned is None or self._turned[0] is not batch:
            x, y = batch.inputs, batch.real

            def taught() -> Tensor:
                images: Tensor = self.teachers[1].generator(y)
                return images

            other = dataclasses.replace(batch, inputs=y, draw_real=lambda: (x, None), draw_teacher=taught, draw_unpaired=lambda: (taught(), None))
            self._turned = (batch, other)
        return self._turned[1]

    def make_fake(self, generator: nn.Module, batch: Batch) -> Tensor:
        both = cast(BothWays, generator)
        return torch.cat([self.losses[0].make_fake(both.there, batch), self.losses[1].make_fake(both.back, self.turned(batch))], 1)

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        w, back = self.weights, self.turned(batch)
        (there_loss, back_loss), (s, r) = self.losses, (gan.generator for gan in self.students)
        y, x = fake.split(self.channels, 1)
        terms = there_loss.generator_loss(batch, y) | _back(back_loss.generator_loss(back, x))
        if w.cycle:
            terms["cycle"] = w.cycle * l1_loss(r(y), batch.inputs)
            terms["cycle_back"] = w.cycle * l1_loss(s(x), back.inputs)
        if w.identity:
            terms["identity"] = w.identity * l1_loss(s(back.inputs), back.inputs)
            terms["identity_back"] = w.identity * l1_loss(r(batch.inputs), batch.inputs)
        return terms

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        y, x = fake.split(self.channels, 1)
        if self.pools:
            y, x = self.pools["student"](y), self.pools["back"](x)
        return self.losses[0].discriminator_loss(batch, y) | _back(self.losses[1].discriminator_loss(self.turned(batch), x))

    def check(self, last_kimg: float, batch_size: int) -> list[str]:
        return self.losses[0].check(last_kimg, batch_size)  # of the weights, which both share

    @torch.no_grad()
    def pictures(self, generator: nn.Module, inputs: Tensor) -> list[tuple[str, Tensor]]:
        both, x = cast(BothWays, generator), inputs[:8]
        y = self.teachers[1].sample(len(x), torch.Generator().manual_seed(0))[0].to(x)
        rows = []
        for images, teacher, student, back in ((x, self.teachers[0], both.there, both.back), (y, self.teachers[1], both.back, both.there)):
            made = student(images)
            rows += [("input", images), ("teacher", teacher.generator(images)), ("student", made), ("cycle", back(made))]
        return rows


def _back(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}_back": value for name, value in terms.items()}
