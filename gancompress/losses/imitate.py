"""Tian et al. 2021, DGL-GAN, arXiv:2112.06502, Eqs. 7 to 12: the imitations that its §4.3 compares with the guide.

    G-inter:  min_S max_D  Adv(S, D) + g_inter sum_l || r_l(S^(l)) - G_T^(l) ||_1
    D-inter:  min_S max_D  Adv(S, D),  D also minimising  d_inter sum_l || r_l(D^(l)) - D_T^(l) ||_1
    D-out:    the same with  d_out CE(sigmoid D, sigmoid D_T)

S^(l): activations of height l, for the same latents as the teacher's; r_l: a 1x1 convolution where the channels differ, trained with what
it adapts. Norms are averaged over elements. What D imitates is asked of it on real and on fake images, and both means are added.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

from gancompress.augment import augment
from gancompress.errors import MissingError, UsageError
from gancompress.gan import GAN, Batch
from gancompress.losses.gan import Adversary
from gancompress.losses.styled import StyledLoss, StyledWeights


class ImitateWeights(StyledWeights):
    """``resolutions``: heights l of the activations to imitate; ``out``: the generator's image is imitated too."""

    g_inter: float = Field(0.0, ge=0)
    d_inter: float = Field(0.0, ge=0)
    d_out: float = Field(0.0, ge=0)
    resolutions: tuple[int, ...] = ()
    out: bool = False

    @model_validator(mode="after")
    def _something_to_imitate(self) -> ImitateWeights:
        if not (self.g_inter or self.d_inter or self.d_out):
            raise ValueError("nothing is imitated: give g_inter, d_inter or d_out a weight")
        if (self.d_inter and not self.resolutions) or (self.g_inter and not self.resolutions and not self.out):
            raise ValueError("no layer is imitated: resolutions=[8, 16], say")
        return self


class Imitate(StyledLoss):
    needs = frozenset({"teacher_images", "real"})
    uses = frozenset({"teacher_discriminator"})
    Weights = ImitateWeights

    def __init__(self, teacher: GAN, student: GAN, weights: ImitateWeights) -> None:
        super().__init__(student, weights)
        self.teacher, self.weights = teacher, weights
        self.adversary = Adversary(student, weights)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every
        self.features: list[Tensor] = []
        if (weights.d_inter or weights.d_out) and teacher.discriminator is None:
            hint = "--discriminator FILE; or --fit-discriminator KIMG trains one first; weights.g_inter works without"
            raise MissingError(f"weights.d_inter and weights.d_out imitate the teacher's discriminator, and {teacher.source} has none", hint)
        if weights.g_inter:
            self._adapt_generator(teacher, student)
        if weights.d_inter:
            self._adapt_discriminator(teacher, student)

    def _adapt_generator(self, teacher: GAN, student: GAN) -> None:
        for who, gan in (("teacher", teacher), ("student", student)):
            if not hasattr(gan.generator, "features"):
                raise UsageError(f"weights.g_inter: a generator of family {gan.family.name} ({who}) shows no activations", "weights.g_inter=0")
        if any(p.is_meta for p in teacher.generator.parameters()):
            raise UsageError("weights.g_inter: a recording has no activations of the teacher", "the teacher's checkpoint in its place; or --recipe mse")
        if self.mixing:
            self.mixing = 0.0
            self.notes.append("style mixing is off: teacher and student are compared on the same latents")
        inputs, condition = teacher.sample(1, torch.Generator().manual_seed(0))
        found = [_looked_at(gan.generator, inputs, condition) for gan in (student, teacher)]
        self.adapters["generator"] = _adapters("generator", self.weights.resolutions, *found)

    def _adapt_discriminator(self, teacher: GAN, student: GAN) -> None:
        arch = student.arch
        image, label = torch.zeros(1, arch.nc, arch.resolution, arch.resolution), torch.zeros(1, dtype=torch.long) if arch.classes else None
        assert teacher.discriminator is not None
        found = [_looked_at(critic, image, label) for critic in (self.adversary.critic, teacher.discriminator)]
        self.critics["adapters"] = _adapters("discriminator", self.weights.resolutions, *found)

    def make_fake(self, generator: nn.Module, batch: Batch) -> Tensor:
        if not self.weights.g_inter:
            return super().make_fake(generator, batch)
        self.features = generator.features(batch.inputs, batch.condition)  # type: ignore[operator]
        return self.features[-1]

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        terms = {"adv": self.adversary.generator_term(batch, fake)}
        if self.weights.g_inter:
            with torch.no_grad():
                wanted = self.teacher.generator.features(batch.inputs, batch.condition)  # type: ignore[operator]
            distance = _distance(self.adapters["generator"], self.features, wanted)
            terms["g_inter"] = self.weights.g_inter * (distance + l1_loss(fake, wanted[-1]) if self.weights.out else distance)
            self.features = []
        return terms

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        pairs = ((fake, batch.condition), batch.real_and_condition)
        terms = self.adversary.discriminator_terms(*pairs)
        if not (self.weights.d_inter or self.weights.d_out):
            return terms
        for images, labels in pairs:
            seen = augment(images, self.weights.augment)
            mine = self.adversary.critic.features(seen, labels)  # type: ignore[operator]
            with torch.no_grad():
                wanted = self.teacher.discriminator.features(seen, labels)  # type: ignore[union-attr, operator]
            if self.weights.d_inter:
                terms["d_inter"] = terms.get("d_inter", 0) + self.weights.d_inter * _distance(self.critics["adapters"], mine, wanted)
            if self.weights.d_out:
                entropy = binary_cross_entropy_with_logits(mine[-1], wanted[-1].sigmoid())
                terms["d_out"] = terms.get("d_out", 0) + self.weights.d_out * entropy
        return terms

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.adversary.r1(batch.real_and_condition)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()


def _at(features: list[Tensor], height: int) -> Tensor | None:
    """The last activation (N, C, H, W) of that height; images and logits, which come last, are none."""
    return next((x for x in reversed(features[:-1]) if x.ndim == 4 and x.shape[2] == height), None)


@torch.no_grad()
def _looked_at(net: nn.Module, inputs: Tensor, condition: Tensor | None) -> list[Tensor]:
    """Its activations for one input; in evaluation mode, so that no statistic moves."""
    mode = net.training
    found: list[Tensor] = net.eval().features(inputs, condition)  # type: ignore[operator]
    net.train(mode)
    return found


def _adapters(part: str, resolutions: tuple[int, ...], student: list[Tensor], teacher: list[Tensor]) -> nn.ModuleDict:
    """By height: what brings the student's channels to the teacher's."""
    adapters = nn.ModuleDict()
    for height in resolutions:
        mine, wanted = _at(student, height), _at(teacher, height)
        if mine is None or wanted is None:
            both = sorted({x.shape[2] for x in student[:-1] if x.ndim == 4} & {x.shape[2] for x in teacher[:-1] if x.ndim == 4})
            known = f"there are {', '.join(map(str, both))}" if both else "these networks have none in common"
            raise UsageError(f"weights.resolutions: the {part}s have no activations of {height}x{height}", known)
        a, b = mine.shape[1], wanted.shape[1]
        adapters[str(height)] = nn.Conv2d(a, b, 1) if a != b else nn.Identity()
    return adapters


def _distance(adapters: nn.Module, mine: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Sum over the heights of the mean absolute difference after adaption."""
    total = torch.zeros((), device=mine[-1].device)
    for height, adapter in adapters.named_children():
        x, y = _at(mine, int(height)), _at(wanted, int(height))
        assert x is not None
        assert y is not None
        total = total + l1_loss(adapter(x), y)
    return total
