"""From a user's words to a plan: teacher, student, loss, data and folder, all checked before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gancompress import distributed as ranks
from gancompress import speed
from gancompress.building import Built, build, build_back, check_critic, give_embedding
from gancompress.checkpoint import has_state
from gancompress.config import Recipe, recipe_path
from gancompress.cost import Cost, gan_cost
from gancompress.data import Images
from gancompress.devices import choose_device
from gancompress.errors import UsageError
from gancompress.gan import GAN, BothWays, Family, state_hash
from gancompress.hub import SCHEME
from gancompress.losses.base import DistillationLoss
from gancompress.opening import Opened, add_discriminator, grey_or_rgb, open_images, open_inputs, open_teachers, shows_pairs
from gancompress.pairs import ImagePairs
from gancompress.recorded import Unknown
from gancompress.request import Request, Settings, check_without_teacher
from gancompress.runs import default_dir, refuse_foreign
from gancompress.students import student_arch, target_width
from gancompress.way_back import WayBack


@dataclass
class Plan:
    """Everything a run is made of. ``identity`` is what must not change when it is resumed; ``sources`` tell where things were."""

    recipe_name: str
    recipe: Recipe
    teacher: GAN | None
    student: GAN
    loss: DistillationLoss
    images: Images | ImagePairs | None
    run_dir: Path
    device: torch.device
    identity: dict[str, Any]
    sources: dict[str, str | None]
    #: kimg for which a discriminator is first trained for a teacher without one; 0: it has one, or needs none
    fit_kimg: float = 0.0
    #: the finished student that this one starts from
    start: GAN | None = None
    #: the other direction of a CycleGAN
    back: WayBack | None = None
    #: a backend of torch.compile; None: nothing is compiled
    compiler: str | None = None
    notes: list[str] = field(default_factory=list)
    student_cost: Cost = dataclasses.field(init=False)
    teacher_cost: Cost | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.student_cost = gan_cost(self.student)
        self.teacher_cost = gan_cost(self.teacher) if self.teacher and not isinstance(self.teacher.generator, Unknown) else None

    @property
    def trained(self) -> GAN:
        """What the generators' optimiser sees: the student, or those of both directions as one."""
        student = self.student
        return student if self.back is None else dataclasses.replace(student, generator=BothWays(student.generator, self.back.student.generator))

    @property
    def finished(self) -> bool:
        return (self.run_dir / "student.safetensors").is_file()

    @property
    def resumes(self) -> bool:
        return has_state(self.run_dir / "state.pt")


def make_plan(request: Request) -> Plan:
    """Check everything and build teacher, student and loss; nothing is written.

    Raises:
        GanCompressError: of the kind that fits; the message says what is wrong and what to do.
    """
    device = ranks.device_of_process(choose_device(request.device))
    settings = Settings(request)
    notes, loss_type = settings.notes, settings.loss
    ranks.check_batch(settings.numbers.schedule.batch_size, settings.numbers.schedule.accumulate)
    speed.check(settings.numbers.precision, request.compiled, device)
    check_without_teacher(request, loss_type)

    opened = open_teachers(request, settings)
    teacher = opened.there
    with_pairs = shows_pairs(request, settings, teacher)
    fit_kimg = add_discriminator(teacher, request, loss_type) if teacher else 0.0
    family, arch = _student_shape(request, settings, teacher, with_pairs)
    numbers = settings.numbers  # nothing changes them from here on
    inputs = open_inputs(request, settings, opened, arch, with_pairs)
    if opened.names.there:
        _check_pool(numbers)
    images = open_images(request, settings, inputs, arch)

    there = build(numbers, loss_type, teacher, family, arch, inputs.inputs if inputs else teacher.inputs if teacher else None)
    notes += there.notes
    if images and not there.loss.asks_real:
        images = None
        notes.append(f"no term of these weights asks for real images: --data {request.data} is not used")
    back = build_back(numbers, loss_type, (teacher, opened.back), there) if teacher and opened.back else None
    notes += back.notes if back else []
    loss = back.loss if back else there.loss
    notes += give_embedding(numbers, there)
    notes += _schedule_notes(numbers, loss, there.student, teacher)
    notes += _data_notes(request, numbers, images, fit_kimg)
    if not arch.nz or (arch.classes and isinstance(images, Images) and images.labels is None):
        check_critic(loss, arch, str(request.data), isinstance(inputs, ImagePairs) and inputs.beside)

    identity = _identity(request, numbers, opened, images or inputs, there, back, fit_kimg)
    name = recipe_path(request.recipe).stem
    run_dir = Path(request.out) if request.out else default_dir(f"{name}-{family.name}-x{numbers.student.ch_mul:g}", identity)
    refuse_foreign(run_dir, identity)
    way_back = WayBack(opened.back, back.student) if opened.back and back else None
    sources = _sources(request, opened)
    compiler = "inductor" if request.compiled else None
    return Plan(name, numbers, teacher, there.student, loss, images, run_dir, device, identity, sources, fit_kimg, there.start, way_back, compiler, notes)


def _student_shape(request: Request, settings: Settings, teacher: GAN | None, with_pairs: bool) -> tuple[Family, Any]:
    """Family and arch; a target size chooses the width."""
    nc = grey_or_rgb(request.data) if request.data and teacher is None and not with_pairs else None
    family, full, arch = student_arch(settings.numbers, teacher, nc)
    if chosen := target_width(teacher, family, full, *request.targets):
        settings.follow("student.ch_mul", *chosen)
        arch = student_arch(settings.numbers, teacher, nc)[2]
    return family, arch


def _check_pool(numbers: Recipe) -> None:
    pool, size = numbers.schedule.teacher_pool, numbers.schedule.batch_size
    if pool % size:
        raise UsageError(f"schedule.teacher_pool={pool}: it must be a multiple of the batch size {size}")


# ------------------------------------------------------------------------------------------------------------- what is worth telling


def _schedule_notes(numbers: Recipe, loss: DistillationLoss, student: GAN, teacher: GAN | None) -> list[str]:
    """Of batches, of their parts, and of the processes that share them."""
    schedule = numbers.schedule
    notes = loss.check((schedule.steps - 1) * schedule.batch_size / 1000, schedule.batch_size)
    part = schedule.batch_size // schedule.accumulate
    if loss.critics:
        notes += _deviation_notes([student, *([teacher] if teacher else [])], part // ranks.world())
    return notes + _process_notes(student, loss, part)


def _deviation_notes(gans: Iterable[GAN], part: int) -> list[str]:
    """A sentence where what the networks see at once is no multiple of a discriminator's group for its minibatch deviation."""
    archs = [vars(gan.arch) for gan in gans]
    groups = {a["d_std_group"] for a in archs if a.get("d_std")} | {a["d_group"] for a in archs if a.get("d_stddev", "none") != "none"}
    return [
        f"{part} images at once are no multiple of the minibatch deviation's group of {group}: it is taken over other groups"
        for group in sorted(groups - {0})
        if part % group
    ]


def _process_notes(student: GAN, loss: DistillationLoss, part: int) -> list[str]:
    """What several processes share, and what is each one's own."""
    count, norms = ranks.world(), nn.modules.batchnorm._BatchNorm
    if count == 1:
        return []
    own = any(isinstance(module, norms) for net in (student.generator, loss.critics) for module in net.modules())
    each = f"{count} processes, each with {part // count} of {part} images at once"
    return [each + ("; BatchNorm normalises over a process's own, and its stored statistics are means over the processes" if own else "")]


def _data_notes(request: Request, numbers: Recipe, images: Images | ImagePairs | None, fit_kimg: float) -> list[str]:
    notes, size = [], numbers.schedule.batch_size
    if images and len(images) < size:
        notes.append(f"{request.data} has {len(images):,} images, fewer than a batch of {size}: a batch holds some of them twice")
    if fit_kimg:
        notes.append(f"the teacher has no discriminator: one is first trained for {fit_kimg:g} kimg against its frozen generator and {request.data}")
    return notes


# ------------------------------------------------------------------------------------------------------------------ what a run is of


def _identity(
    request: Request, numbers: Recipe, opened: Opened, data: Images | ImagePairs | None, there: Built, back: Built | None, fit_kimg: float
) -> dict[str, Any]:  # fmt: skip
    """What must not change when the run is resumed: numbers, shapes and the content of what it is made from, not where that lay."""
    identity: dict[str, Any] = {
        "recipe": numbers.model_dump(mode="json"),
        "teacher": {"options": request.reader_options or {}, "sha256": opened.sha256} if opened.there else None,
        "data": {"sha256": data.fingerprint} if data else None,
        "student": _shape(there.student),
    }
    if there.start:
        identity["recipe"]["student"]["init"] = there.start.sha256()  # its path does not count
    if there.embedding is not None:
        identity["recipe"]["student"]["class_embedding"] = state_hash({"": there.embedding})
    if fit_kimg:
        identity["fit_discriminator"] = fit_kimg
    if back:
        identity["back"] = {"teacher": {"sha256": opened.back_sha256}, "student": _shape(back.student)}
        identity["back"] |= {"init": back.start.sha256()} if back.start else {}
    content: dict[str, Any] = json.loads(json.dumps(identity))
    return content


def _shape(student: GAN) -> dict[str, Any]:
    return {"family": student.family.name, "arch": dataclasses.asdict(student.arch)}


def _sources(request: Request, opened: Opened) -> dict[str, str | None]:
    """Where everything lay, for whoever reads the run folder later."""
    names = opened.names
    pinned = opened.there.source if opened.there and opened.there.source.startswith(SCHEME) else None  # a branch on the Hub may move
    sources = {"teacher": pinned or _absolute(names.there), "discriminator": _absolute(names.discriminator), "data": _absolute(request.data)}
    optional = {"target": request.target, "recorded": request.recorded, "back": names.back}
    return sources | {name: _absolute(str(source)) for name, source in optional.items() if source}


def _absolute(source: str | None) -> str | None:
    """A path as it is called from anywhere; other sources (sample:, module:) as they are."""
    return str(Path(source).expanduser().resolve()) if source and Path(source).expanduser().exists() else source
