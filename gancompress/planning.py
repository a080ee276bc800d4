"""From a user's words to a run: teacher, student, loss, data and folder, all checked before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gancompress.checkpoint import has_state, newest_state, save_networks
from gancompress.config import Recipe, load_recipe, recipe_names, recipe_path
from gancompress.cost import Cost, device_name, gan_cost
from gancompress.data import FALLBACK, INIT, LATENTS, Batches, Images, rng, seed_for
from gancompress.errors import DivergedError, GanCompressError, MissingError, UsageError, is_out_of_memory
from gancompress.families import FAMILIES, family_of
from gancompress.gan import GAN, Family, state_hash
from gancompress.hub import SCHEME
from gancompress.loading import build, find, load_gan
from gancompress.loop import Reporter, Trainer, train
from gancompress.losses import LOSSES
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, Fit
from gancompress.pairs import ImagePairs, channels_seen, holds_both, open_pairs, sides, takes_pairs
from gancompress.recorded import Feed, Recorded, RecordedTeacher, Unknown
from gancompress.runs import claim, default_dir, locked, refuse_foreign
from gancompress.students import EMBEDDING, exact_widths, given_embedding, initialise, starting_point, student_arch, target_width

#: what only a teacher can give
OF_TEACHER = {"teacher_images", "teacher_samples", "teacher_discriminator"}


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
    notes: list[str] = field(default_factory=list)
    student_cost: Cost = dataclasses.field(init=False)
    teacher_cost: Cost | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.student_cost = gan_cost(self.student)
        self.teacher_cost = gan_cost(self.teacher) if self.teacher and not isinstance(self.teacher.generator, Unknown) else None

    @property
    def finished(self) -> bool:
        return (self.run_dir / "student.safetensors").is_file()

    @property
    def resumes(self) -> bool:
        return has_state(self.run_dir / "state.pt")


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device", "--device cpu, or a torch built for CUDA")
    if match.group(1) and int(match.group(1)) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


#: what teacher and student must have in common for a need, and why
COMMON = {
    "teacher_images": (("nz", "classes", "resolution", "nc"), "teacher and student see the same latents and make comparable images"),
    "teacher_samples": (("classes", "resolution", "nc"), "one critic judges the images of both"),
    "teacher_discriminator": (("classes", "resolution", "nc"), "the teacher's discriminator is to judge the student's images"),
}


def _check_pair(teacher: GAN, student: GAN, loss: type[DistillationLoss]) -> None:
    for keys, why in (COMMON[need] for need in sorted(loss.needs & COMMON.keys(), reverse=True)):
        for key in keys:
            a, b = getattr(teacher.arch, key), getattr(student.arch, key)
            if a != b:
                raise UsageError(f"{why}, but {key} is {a} in the teacher and {b} in the student")


def _deviation_notes(gans: Iterable[GAN], part: int) -> list[str]:
    """A sentence where what the networks see at once is no multiple of a discriminator's group for its minibatch deviation."""
    archs = [vars(gan.arch) for gan in gans]
    groups = {a["d_std_group"] for a in archs if a.get("d_std")} | {a["d_group"] for a in archs if a.get("d_stddev", "none") != "none"}
    return [
        f"{part} images at once are no multiple of the minibatch deviation's group of {group}: it is taken over other groups"
        for group in sorted(groups - {0})
        if part % group
    ]


# --------------------------------------------------------------------------------------------------------------------- the plan


def make_plan(
    teacher: str | None = None,
    recipe: str = "mse",
    *,
    overrides: Iterable[tuple[str, Any]] = (),
    data: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    discriminator: str | None = None,
    reader_options: dict[str, Any] | None = None,
    target_params: str | None = None,
    target_macs: str | None = None,
    target_size: str | None = None,
    steps: int | None = None,
    fit_discriminator: float | None = None,
    target: str | None = None,
    direction: str | None = None,
    recorded: str | Path | None = None,
) -> Plan:
    """Check everything and build teacher, student and loss; nothing is written.

    Args are those of ``gancompress distill``; ``overrides``: ("schedule.kimg", 50) and so on.

    Raises:
        GanCompressError: of the kind that fits; the message says what is wrong and what to do.
    """
    overrides = list(overrides)
    where = choose_device(device)
    targets = (target_params, target_macs, target_size)
    numbers = _numbers(recipe, overrides, steps, any(targets))
    loss_type = LOSSES[numbers.loss]
    if teacher is None and recorded is None and loss_type.needs & OF_TEACHER:
        raise UsageError(f"recipe {recipe!r} needs a teacher", "gancompress distill TEACHER ..., or --recipe scratch to train without one")
    if teacher is None and recorded is None and fit_discriminator is not None:
        raise UsageError(f"--fit-discriminator {fit_discriminator:g}: there is no teacher to train one for", "leave it out")
    source = load_gan(teacher, discriminator=discriminator, options=reader_options) if teacher else None
    if recorded is not None:
        source = _recorded_teacher(str(recorded), teacher, discriminator, reader_options)
    if source and source.arch.nz and "translator" in loss_type.needs:
        raise UsageError(f"recipe {recipe!r} is for image translators, and {source.source} takes latents", "gancompress recipes lists the others")
    if "real" in loss_type.needs and data is None:
        raise MissingError(f"recipe {recipe!r} needs real images", "--data FOLDER (or a zip of images, an .npz, MNIST idx files)")
    notes = [source.told] if isinstance(source, RecordedTeacher) else []
    with_pairs = takes_pairs(loss_type, numbers, source, data, target, direction)
    if with_pairs and (seen := channels_seen(numbers, source)):
        overrides.append(("student.arch.d_nc", seen))
        notes.append(f"discriminators see {'inputs beside outputs, as in pix2pix' if numbers.data.paired else 'outputs alone'} (student.arch.d_nc={seen})")
        numbers = load_recipe(recipe, overrides)
    teacher_hash = source.sha256() if source else None  # before it is given a discriminator that is yet to be trained
    fits = source is not None and _add_discriminator(source, recipe, loss_type, fit_discriminator, data)
    nc = _grey_or_rgb(data) if data and source is None and not with_pairs else None
    family, full, arch = student_arch(numbers, source, nc)
    if chosen := target_width(source, family, full, *targets):
        overrides.append(("student.ch_mul", chosen[0]))
        notes.append(chosen[1])
        numbers = load_recipe(recipe, overrides)
        arch = student_arch(numbers, source, nc)[2]
    pairs, more = open_pairs(str(data), target, arch, numbers, direction, source) if with_pairs else (None, [])
    notes += more
    inputs = pairs or (feed_translator(source, data, direction) if source and not source.arch.nz else None)
    if teacher and numbers.schedule.teacher_pool % numbers.schedule.batch_size:
        pool, size = numbers.schedule.teacher_pool, numbers.schedule.batch_size
        raise UsageError(f"schedule.teacher_pool={pool}: it must be a multiple of the batch size {size}")
    images: Images | ImagePairs | None = pairs
    if data and not inputs and "real" in loss_type.needs | loss_type.uses:
        images = _real_images(data, arch)
    if data and not images and not inputs:
        notes.append(f"recipe {recipe} takes no real images: --data {data} is not used")
    if inputs and not pairs:
        notes.append(f"{len(inputs):,} images of {data} are what teacher and student translate")
        if target:
            notes.append(f"recipe {recipe} takes no targets: --target {target} is not used")
    if "real" in loss_type.uses and images is None:
        notes.append(loss_type.without_real)
    student, loss, start, more = _build(numbers, loss_type, source, family, arch, inputs)
    embedding = given_embedding(numbers, student)
    if embedding is not None:
        student.generator.load_state_dict({EMBEDDING: embedding}, strict=False)
        more.append(f"the class embedding starts from {numbers.student.class_embedding}: where those vectors are a teacher's, this is no longer black-box")
    schedule = numbers.schedule
    more += loss.check((schedule.steps - 1) * schedule.batch_size / 1000, schedule.batch_size)
    if loss.critics:
        more += _deviation_notes([student, *([source] if source else [])], schedule.batch_size // schedule.accumulate)
    if images and len(images) < numbers.schedule.batch_size:
        more.append(f"{data} has {len(images):,} images, fewer than a batch of {numbers.schedule.batch_size}: a batch holds some of them twice")
    if fits:
        more.append(f"the teacher has no discriminator: one is first trained for {fit_discriminator:g} kimg against its frozen generator and {data}")
    if inputs or (arch.classes and isinstance(images, Images) and images.labels is None):
        _check_critic(loss, arch, str(data), pairs is not None and pairs.beside)
    identity: dict[str, Any] = {
        "recipe": numbers.model_dump(mode="json"),
        "teacher": {"options": reader_options or {}, "sha256": teacher_hash} if source else None,
        "data": {"sha256": used.fingerprint} if (used := images or inputs) else None,
        "student": {"family": family.name, "arch": dataclasses.asdict(arch)},
    }
    if start:
        identity["recipe"]["student"]["init"] = start.sha256()  # its path does not count
    if embedding is not None:
        identity["recipe"]["student"]["class_embedding"] = state_hash({"": embedding})
    if fits:
        identity["fit_discriminator"] = fit_discriminator
    identity = json.loads(json.dumps(identity))
    name = recipe_path(recipe).stem
    run_dir = Path(out) if out else default_dir(f"{name}-{family.name}-x{numbers.student.ch_mul:g}", identity)
    refuse_foreign(run_dir, identity)
    pinned = source.source if source and source.source.startswith(SCHEME) else None  # a branch on the Hub may move
    sources = {"teacher": pinned or _absolute(teacher), "discriminator": _absolute(discriminator), "data": _absolute(data)}
    if target:
        sources["target"] = _absolute(target)
    if recorded is not None:
        sources["recorded"] = _absolute(str(recorded))
    fit_kimg = (fit_discriminator or 0.0) if fits else 0.0
    return Plan(name, numbers, source, student, loss, images, run_dir, where, identity, sources, fit_kimg, start, notes + more)


def _recorded_teacher(folder: str, teacher: str | None, discriminator: str | None, reader_options: dict[str, Any] | None) -> RecordedTeacher:
    """The recording that stands in for a teacher.

    Raises:
        MissingError: as ``Recorded``. UsageError: something is asked for that only the network itself could give.
    """
    if teacher is not None:
        raise UsageError(f"two teachers: {teacher} and --recorded {folder}")
    if discriminator is not None or reader_options:
        raise UsageError("--recorded: a recording is no checkpoint; --discriminator and reader options are for one")
    return RecordedTeacher(Recorded(folder))


def _build(
    numbers: Recipe, loss_type: type[DistillationLoss], teacher: GAN | None, family: Family, arch: Any, inputs: Images | ImagePairs | None
) -> tuple[GAN, DistillationLoss, GAN | None, list[str]]:
    """(student with its first weights, loss, what it starts from, what is worth telling), each drawn from a random stream of its own."""
    torch.manual_seed(seed_for(numbers.seed, INIT, 0))
    student = GAN(family, arch, family.generator(arch), inputs=inputs.inputs if inputs else None)
    if teacher:
        _check_pair(teacher, student, loss_type)
    start = starting_point(numbers, student)
    notes = initialise(numbers, teacher, student, start)
    live = None if isinstance(teacher, RecordedTeacher) else teacher
    if live and "teacher_images" in loss_type.needs and not torch.equal(live.sample(8, rng(0))[0], student.sample(8, rng(0))[0]):
        notes.append("the teacher's latents are truncated or scaled, and the student is trained on them; a student of this family draws its own from N(0, I)")
    loss, more = _make_loss(numbers, loss_type, teacher, student, start)
    return student, loss, start, notes + more + loss.notes


def _make_loss(numbers: Recipe, loss_type: type[DistillationLoss], teacher: GAN | None, student: GAN, start: GAN | None) -> tuple[DistillationLoss, list[str]]:
    """The loss with its first weights, and what is worth telling of those it takes over."""
    torch.manual_seed(seed_for(numbers.seed, INIT, 1))
    given = {"critic": _critic(loss_type.critic_family, student)} if loss_type.critic_family else {}
    loss = loss_type(teacher, student, loss_type.Weights.model_validate(numbers.weights), **given)  # type: ignore[call-arg]
    if start and start.discriminator is not None and "student" in loss.critics:
        try:
            loss.critics["student"].load_state_dict(start.discriminator.state_dict())
            return loss, ["its discriminator goes on too"]
        except RuntimeError:
            return loss, ["its discriminator is of another shape than the critic, which starts fresh"]
    return loss, []


def _critic(family: str, student: GAN) -> nn.Module:
    """A fresh discriminator of that family for the student's images: of the student's own shapes where it is of that family."""
    record, arch = FAMILIES[family], student.arch
    if student.family.name != family:
        arch = record.build_arch(None, {key: getattr(arch, key) for key in ("resolution", "nc", "classes")})
    return record.discriminator(arch)


def _add_discriminator(source: GAN, recipe: str, loss: type[DistillationLoss], kimg: float | None, data: str | None) -> bool:
    """Whether a discriminator is to be trained for a teacher that has none; it is given one of its family's, still untrained.

    Raises:
        MissingError: the recipe needs one, and there is none. UsageError: none can be made.
    """
    wanted = "teacher_discriminator" in loss.needs | loss.uses
    if kimg is not None and (source.discriminator is not None or not wanted):
        why = f"{source.source} has a discriminator already" if wanted else f"recipe {recipe!r} takes no discriminator of the teacher"
        raise UsageError(f"--fit-discriminator {kimg:g}: {why}", "leave it out")
    if source.discriminator is not None or not wanted or (kimg is None and "teacher_discriminator" in loss.uses):
        return False
    others = [name for name in recipe_names() if "teacher_discriminator" not in LOSSES[load_recipe(name).loss].needs]
    if isinstance(source, RecordedTeacher):
        raise MissingError(f"recipe {recipe!r} needs the teacher's discriminator, and a recording has none", f"recipes without: {', '.join(others)}")
    if kimg is None:
        raise MissingError(
            f"recipe {recipe!r} needs the teacher's discriminator, and {source.source} has none",
            f"--discriminator FILE; or --fit-discriminator KIMG trains one first; or one of the recipes that work without: {', '.join(others)}",
        )
    if not source.family.has_discriminator:
        raise UsageError(f"--fit-discriminator: no discriminator of family {source.family.name} can be made", f"recipes without: {', '.join(others)}")
    if data is None:
        raise MissingError("--fit-discriminator needs real images", "--data FOLDER (or a zip of images, an .npz, MNIST idx files)")
    source.discriminator = source.family.discriminator(source.arch)
    source.freeze()
    return True


def _numbers(recipe: str, overrides: list[tuple[str, Any]], steps: int | None, targets: bool) -> Recipe:
    """The recipe with what was said on the command line; what follows from it is added to ``overrides``."""
    numbers = load_recipe(recipe, overrides)
    if steps is not None:
        if steps < 1:
            raise UsageError(f"--steps {steps}: at least 1")
        overrides.append(("schedule.kimg", steps * numbers.schedule.batch_size / 1000))
    if exact_widths(numbers):
        if targets or any(key == "student.ch_mul" and value != 1 for key, value in overrides):
            raise UsageError("widths by hand (student.arch) and a share of the teacher's (--ch-mul, --target-...): give one of them")
        overrides.append(("student.ch_mul", 1.0))
    return load_recipe(recipe, overrides)


def _check_critic(loss: DistillationLoss, arch: Any, data: str, beside: bool) -> None:
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


def _real_images(data: str, arch: Any) -> Images:
    """The data set at the student's resolution and channels; labels that are there are of its classes."""
    images = Images(data, arch.resolution, arch.nc)
    if arch.classes and images.labels is not None and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < arch.classes:
        low, high = int(images.labels.min()), int(images.labels.max())
        raise UsageError(f"{data}: labels {low} ... {high}, while this network has classes 0 ... {arch.classes - 1}")
    return images


def feed_translator(gan: GAN, data: str | None, direction: str | None = None) -> Images:
    """The images that an image translator is to be fed with, which it is given. ``direction``: of data that holds inputs and targets.

    Raises:
        MissingError: none are named.
    """
    if data is None:
        raise MissingError(f"{gan.source} translates images, so it needs some", "--data FOLDER (or a zip of images, an .npz)")
    arch = gan.arch
    if direction or holds_both(data):
        images = sides(data, None, arch.resolution, (arch.nc_in, arch.nc), direction)[0]
    else:
        images = Images(data, arch.resolution, arch.nc_in)
    gan.inputs = images.inputs
    return images


def _absolute(source: str | None) -> str | None:
    """A path as it is called from anywhere; other sources (sample:, module:) as they are."""
    return str(Path(source).expanduser().resolve()) if source and Path(source).expanduser().exists() else source


def _grey_or_rgb(data: str) -> int:
    """Channels of the first image of a data set: without a teacher the data decides."""
    images = Images(data, 8, 3)
    pixels = images[torch.arange(min(16, len(images)))][0]
    return 1 if bool((pixels == pixels[:, :1]).all()) else 3


# --------------------------------------------------------------------------------------------------------------------- the run


def run_plan(plan: Plan, reporter: Reporter) -> Path:
    """Train, or go on training, and leave student.safetensors; returns its path.

    Raises:
        GanCompressError: another process is at it, stopped, diverged (the last good student is kept), out of memory, disk full.
    """
    if not plan.finished:
        with locked(plan.run_dir):
            claim(plan.run_dir, plan.identity, plan.sources, device_name(plan.device))
            if not plan.finished:  # by another process, since it was looked at
                _train(plan, reporter)
    return plan.run_dir / "student.safetensors"


def _train(plan: Plan, reporter: Reporter) -> None:
    schedule, device = plan.recipe.schedule, plan.device
    facts = {"recipe": plan.recipe_name, "loss": plan.recipe.loss, "kimg": schedule.kimg, "seed": plan.recipe.seed}
    recorded = plan.teacher.recorded if isinstance(plan.teacher, RecordedTeacher) else None
    if plan.teacher and (known := recorded.teacher_sha256 if recorded else plan.identity["teacher"]["sha256"]):
        facts["teacher_sha256"] = known
    draws_from_teacher = plan.teacher if plan.teacher and "teacher_images" in plan.loss.needs else None

    def feed(stream: int) -> Feed:
        assert recorded is not None
        return Feed(recorded, plan.recipe.seed, stream, device, schedule.accumulate)

    try:
        for part in (plan.teacher, plan.student, plan.loss):
            if part is not None:
                part.to(device)
        _fit_discriminator(plan, reporter)
        batches = Batches(
            draws_from_teacher or plan.student, plan.teacher, plan.images, schedule, mirror=plan.recipe.data.mirror, seed=plan.recipe.seed,
            pool=schedule.teacher_pool if draws_from_teacher else 0, device=device,
            pairs=feed(LATENTS) if recorded and draws_from_teacher else None, others=feed(FALLBACK) if recorded else None,
        )  # fmt: skip
        done = train(plan.student, plan.loss, plan.recipe, batches, plan.run_dir, reporter, device)
    except DivergedError:
        trainer = Trainer(plan.student, plan.loss, plan.recipe)
        trainer.load_state(newest_state(plan.run_dir / "state.pt")[0])
        kept = plan.run_dir / "student-last-good.safetensors"
        save_networks(kept, plan.student.family, plan.student.arch, {"generator": trainer.ema.net}, {**facts, "step": trainer.step})
        reporter.note(f"the last good student is kept: {kept}")
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = schedule.batch_size
        raise GanCompressError(f"out of memory with --batch-size {size} on {device}", f"try --batch-size {max(1, size // 2)} in a new --out") from None
    _finish(plan, done, facts)
    if plan.images and plan.images.unreadable:
        first = ", ".join(plan.images.unreadable[:5])
        reporter.note(f"{len(plan.images.unreadable)} unreadable images were passed over: {first}")


def _fit_discriminator(plan: Plan, reporter: Reporter) -> None:
    """Give the teacher the discriminator that was promised: train it, or go on, or take the trained one of this run folder."""
    if not plan.fit_kimg:
        return
    teacher, folder = plan.teacher, plan.run_dir / "teacher-discriminator"
    assert teacher is not None
    path = folder / "discriminator.safetensors"
    if not path.is_file():
        recipe = plan.recipe.model_copy(update={"schedule": plan.recipe.schedule.model_copy(update={"kimg": plan.fit_kimg, "ema_kimg": 0.0})})
        weights = {k: v for k, v in plan.recipe.weights.items() if k in AdversarialWeights.model_fields}
        loss = Fit(teacher, teacher, AdversarialWeights.model_validate(weights)).to(plan.device)
        batches = Batches(
            teacher, teacher, plan.images, recipe.schedule, mirror=recipe.data.mirror, seed=recipe.seed, pool=0, device=plan.device
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        reporter.note(f"training a discriminator for the teacher: {plan.fit_kimg:g} kimg")
        train(GAN(teacher.family, teacher.arch, teacher.generator), loss, recipe, batches, folder, reporter, plan.device)
        critic: Any = loss.critics["student"]
        save_networks(path, teacher.family, critic.arch, {"discriminator": critic}, {"kimg": plan.fit_kimg, "trained": "afterwards, for a finished teacher"})
    teacher.discriminator = build(find(str(path)), "discriminator").to(plan.device)
    teacher.freeze()
    # anew, since it may have begun as a copy of what was not yet trained
    plan.loss = _make_loss(plan.recipe, type(plan.loss), teacher, plan.student, plan.start)[0].to(plan.device)


def _finish(plan: Plan, done: GAN, facts: dict[str, Any]) -> None:
    from gancompress.report import save_curves

    save_curves(plan.run_dir / "log.jsonl", plan.run_dir / "curves.png")
    critic = done.discriminator
    if isinstance(critic, nn.Module) and (owner := family_of(getattr(critic, "arch", None))):  # the critic may be of the teacher's family, not the student's
        save_networks(plan.run_dir / "discriminator.safetensors", owner, critic.arch, {"discriminator": critic}, facts)
    # last: its presence says that the run is whole
    save_networks(plan.run_dir / "student.safetensors", done.family, done.arch, {"generator": done.generator}, facts)
