"""A student with its first weights, and the loss that trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gancompress import distributed as ranks
from gancompress.config import Recipe
from gancompress.cost import gan_cost
from gancompress.data import INIT, rng, seed_for
from gancompress.errors import MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family
from gancompress.losses.base import DistillationLoss
from gancompress.losses.cycle import Cycle, CycleWeights
from gancompress.recorded import RecordedTeacher
from gancompress.students import EMBEDDING, given_embedding, initialise, starting_point, student_arch
from gancompress.way_back import numbers_back

#: what teacher and student must have in common for a need, and why
COMMON = {
    "teacher_images": (("nz", "classes", "resolution", "nc"), "teacher and student see the same latents and make comparable images"),
    "teacher_samples": (("classes", "resolution", "nc"), "one critic judges the images of both"),
    "teacher_discriminator": (("classes", "resolution", "nc"), "the teacher's discriminator is to judge the student's images"),
}


@dataclass
class Built:
    """A student with its first weights; ``start``: the finished one that it begins from, ``notes``: what is worth telling."""

    student: GAN
    loss: DistillationLoss
    start: GAN | None
    notes: list[str]
    embedding: Tensor | None = None


def build(
    numbers: Recipe, loss_type: type[DistillationLoss], teacher: GAN | None, family: Family, arch: Any,
    inputs: Callable[[int, torch.Generator], Tensor] | None, stream: int = 0,
) -> Built:  # fmt: skip
    """Student and loss from two random streams, ``stream`` and the next; ``inputs``: what a translator is given.

    Raises:
        UsageError: teacher and student do not fit each other, or a way to begin that cannot be.
    """
    torch.manual_seed(seed_for(numbers.seed, INIT, stream))
    student = GAN(family, arch, family.generator(arch), inputs=inputs)
    if teacher:
        _check_pair(teacher, student, loss_type)
    start = starting_point(numbers, student)
    notes = initialise(numbers, teacher, student, start)
    live = None if isinstance(teacher, RecordedTeacher) else teacher
    if live and "teacher_images" in loss_type.needs and not torch.equal(live.sample(8, rng(0))[0], student.sample(8, rng(0))[0]):
        notes.append("the teacher's latents are truncated or scaled, and the student is trained on them; a student of this family draws its own from N(0, I)")
    loss, more = make_loss(numbers, loss_type, teacher, student, start, stream + 1)
    return Built(student, loss, start, notes + more + loss.notes)


def build_back(numbers: Recipe, loss_type: type[DistillationLoss], teachers: tuple[GAN, GAN], there: Built) -> Built:
    """The student of the other direction, and the loss of both. ``teachers``: there and back.

    Raises:
        UsageError: as ``build``, or a pool of images where several processes train.
    """
    teacher = teachers[1]
    mine = numbers_back(numbers, teacher)
    family, _, arch = student_arch(mine, teacher, None)
    other = build(mine, loss_type, teacher, family, arch, teacher.inputs, stream=2)
    check_critic(other.loss, arch, teacher.source, False)
    weights = loss_type.Weights.model_validate(numbers.weights)
    assert isinstance(weights, CycleWeights)
    if weights.pool and ranks.world() > 1:
        raise UsageError(f"weights.pool={weights.pool}: every process would have a pool of its own images", "weights.pool=0, or one process")
    both = Cycle((there.loss, other.loss), teachers, (there.student, other.student), weights)
    costs = gan_cost(teacher).parameters, gan_cost(other.student).parameters
    said = f"the way back: teacher {teacher.source}, {costs[0]:,} parameters; student {family.name}, {costs[1]:,}"
    return Built(other.student, both, other.start, [said, *(f"the way back: {note}" for note in other.notes)])


def give_embedding(numbers: Recipe, built: Built) -> list[str]:
    """Start the student's class embedding from ``student.class_embedding``, where that names one; a sentence for the plan.

    Raises:
        GanCompressError: as ``given_embedding``.
    """
    built.embedding = given_embedding(numbers, built.student)
    if built.embedding is None:
        return []
    built.student.generator.load_state_dict({EMBEDDING: built.embedding}, strict=False)
    source = numbers.student.class_embedding
    return [f"the class embedding starts from {source}: where those vectors are a teacher's, this is no longer black-box"]


@ranks.alone()  # a loss may look at images, whose noise is not to shift the numbers that its weights are drawn from
def make_loss(
    numbers: Recipe, loss_type: type[DistillationLoss], teacher: GAN | None, student: GAN, start: GAN | None, stream: int = 1
) -> tuple[DistillationLoss, list[str]]:  # fmt: skip
    """The loss with its first weights, and what is worth telling of those it takes over."""
    torch.manual_seed(seed_for(numbers.seed, INIT, stream))
    given = {"critic": _critic(loss_type.critic_family, student)} if loss_type.critic_family else {}
    loss = loss_type(teacher, student, loss_type.Weights.model_validate(numbers.weights), **given)  # type: ignore[call-arg]
    if start and start.discriminator is not None and "student" in loss.critics:
        try:
            loss.critics["student"].load_state_dict(start.discriminator.state_dict())
            return loss, ["its discriminator goes on too"]
        except RuntimeError:
            return loss, ["its discriminator is of another shape than the critic, which starts fresh"]
    return loss, []


def _check_pair(teacher: GAN, student: GAN, loss: type[DistillationLoss]) -> None:
    for keys, why in (COMMON[need] for need in sorted(loss.needs & COMMON.keys(), reverse=True)):
        for key in keys:
            a, b = getattr(teacher.arch, key), getattr(student.arch, key)
            if a != b:
                raise UsageError(f"{why}, but {key} is {a} in the teacher and {b} in the student")


def _critic(family: str, student: GAN) -> nn.Module:
    """A fresh discriminator of that family for the student's images: of the student's own shapes where it is of that family."""
    record, arch = FAMILIES[family], student.arch
    if student.family.name != family:
        arch = record.build_arch(None, {key: getattr(arch, key) for key in ("resolution", "nc", "classes")})
    return record.discriminator(arch)


def check_critic(loss: DistillationLoss, arch: Any, data: str, beside: bool) -> None:
    """Whether the critic judges images alone, or with a translator's input images (``beside``), where there is nothing else to give it.

    Raises:
        MissingError: it wants labels, or a translator's input images beside its output.
    """
    if "student" not in loss.critics:
        return
    loss.eval()
    try:
        with torch.no_grad():
            image = torch.zeros(1, arch.nc, arch.resolution, arch.resolution)
            loss.critics["student"](image, image.new_zeros(1, arch.nc_in, *image.shape[2:]) if beside else None)
    except ValueError as error:
        if not arch.nz:
            hint = "--data A --target B gives it pairs, where the recipe takes them; or --recipe mse"
            raise UsageError(f"this discriminator does not fit what it would be shown ({error})", hint) from None
        raise MissingError(
            f"{data}: a conditional discriminator needs labels, and this data has none", "an .npz with y_train, or idx files with labels"
        ) from None
    except RuntimeError:  # more halvings than the image has
        hint = "student.arch.d_widths=64,128 makes one of fewer layers, or a larger resolution"
        raise UsageError(
            f"images of {arch.resolution} x {arch.resolution} are too small for the discriminator of {len(arch.d_widths)} hidden layers", hint
        ) from None
    loss.train()
