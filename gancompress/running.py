"""A plan's run: training, what it leaves in the run folder, and what is said where it fails."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from torch import nn

from gancompress import distributed as ranks
from gancompress import speed
from gancompress.building import make_loss
from gancompress.checkpoint import newest_state, save_networks
from gancompress.config import Schedule
from gancompress.cost import device_name
from gancompress.data import FALLBACK, LATENTS, Batches
from gancompress.errors import DivergedError, GanCompressError, ToldElsewhereError, is_out_of_memory
from gancompress.families import family_of
from gancompress.fitting import largest_part
from gancompress.folding import folded
from gancompress.gan import GAN, BothWays
from gancompress.loading import build, find, load_gan
from gancompress.loop import Reporter, Trainer, train
from gancompress.losses.gan import AdversarialWeights, Fit
from gancompress.pairs import ImagePairs
from gancompress.planning import Plan
from gancompress.recorded import Feed, RecordedTeacher
from gancompress.report import save_rows
from gancompress.runreport import REPORT, write_report
from gancompress.runs import CRITIC_BACK, STUDENT_BACK, claim, locked


def run_plan(plan: Plan, reporter: Reporter) -> Path:
    """Train, or go on training, and leave student.safetensors; returns its path.

    Raises:
        GanCompressError: another process is at it, stopped, diverged (the last good student is kept), out of memory, disk full.
    """
    with ExitStack() as held:

        def begin() -> bool:
            """Whether there is anything left to do."""
            if not plan.finished:
                held.enter_context(locked(plan.run_dir))
                claim(plan.run_dir, plan.identity, plan.sources, device_name(plan.device))
            return not plan.finished  # by another run, since it was looked at

        if ranks.on_first(begin):
            _train(plan, reporter)
    if not ranks.rank() and not (plan.run_dir / REPORT).is_file():
        _report(plan, reporter)
    return plan.run_dir / "student.safetensors"


def _report(plan: Plan, reporter: Reporter) -> None:
    """Write report.html; the run is whole without it, so that whatever goes wrong is only noted."""
    try:
        student = load_gan(str(plan.run_dir / "student.safetensors")).to(plan.device)
        student.inputs = plan.student.inputs
        teacher = plan.teacher.to(plan.device) if plan.teacher else None
        costs, paired = (plan.student_cost, plan.teacher_cost), "teacher_images" in plan.loss.needs
        write_report(plan.run_dir, student, teacher, costs, plan.recipe.model_dump(mode="json"), paired, plan.device)
    except Exception as error:
        reporter.note(f"{plan.run_dir / REPORT} could not be written: {error or type(error).__name__}")


def _train(plan: Plan, reporter: Reporter) -> None:
    schedule, device = plan.recipe.schedule, plan.device
    facts = {"recipe": plan.recipe_name, "loss": plan.recipe.loss, "kimg": schedule.kimg, "seed": plan.recipe.seed}
    recorded = plan.teacher.recorded if isinstance(plan.teacher, RecordedTeacher) else None
    if plan.teacher and (known := recorded.teacher_sha256 if recorded else plan.identity["teacher"]["sha256"]):
        facts["teacher_sha256"] = known
    done: GAN | None = None
    try:
        for part in (plan.teacher, plan.student, plan.loss, *((plan.back.teacher, plan.back.student) if plan.back else ())):
            if part is not None:
                part.to(device)
        if isinstance(plan.images, ImagePairs) and plan.images.doubt and not plan.resumes:
            picture = plan.run_dir / "samples" / "direction.png"
            save_rows(picture, plan.images.doubt, gaps_after=(2,))
            reporter.note(f"what the teacher makes of inputs, and of targets: {picture}")
        _fit_discriminator(plan, reporter)
        batches = _batches(plan, schedule)
        done = train(plan.trained, plan.loss, plan.recipe, batches, plan.run_dir, reporter, device, _frozen(plan, batches), plan.compiler)
    except DivergedError as error:
        if ranks.rank():
            raise ToldElsewhereError(str(error), exit_code=error.exit_code) from None
        trainer = Trainer(plan.trained, plan.loss, plan.recipe)
        trainer.load_state(newest_state(plan.run_dir / "state.pt")[0])
        kept = plan.run_dir / "student-last-good.safetensors"
        _save_students(plan, trainer.ema.net, kept, {**facts, "step": trainer.step})
        reporter.note(f"the last good student is kept: {kept}")
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
    if done is None:  # no longer within the handler, whose error would hold it too
        raise _out_of_memory(plan, reporter)
    finished = done
    ranks.on_first(lambda: _finish(plan, finished, facts))
    if plan.images and plan.images.unreadable:
        first = ", ".join(plan.images.unreadable[:5])
        reporter.note(f"{len(plan.images.unreadable)} unreadable images were passed over: {first}")


def _batches(plan: Plan, schedule: Schedule) -> Batches:
    """The plan's data in batches of ``schedule``; a live teacher whose images the loss asks for draws them folded."""
    recorded = plan.teacher.recorded if isinstance(plan.teacher, RecordedTeacher) else None
    draws = bool(plan.loss.needs & {"teacher_images", "teacher_samples"})
    teacher = folded(plan.teacher) if plan.teacher and draws and not recorded else plan.teacher
    draws_from_teacher = teacher if teacher and "teacher_images" in plan.loss.needs else None

    def feed(stream: int) -> Feed:
        assert recorded is not None
        return Feed(recorded, plan.recipe.seed, stream, plan.device, schedule.accumulate)

    return Batches(
        draws_from_teacher or plan.student, teacher, plan.images, schedule, mirror=plan.recipe.data.mirror, seed=plan.recipe.seed,
        pool=schedule.teacher_pool if draws_from_teacher else 0, device=plan.device,
        pairs=feed(LATENTS) if recorded and draws_from_teacher else None, others=feed(FALLBACK) if recorded else None,
    )  # fmt: skip


def _frozen(plan: Plan, batches: Batches) -> list[nn.Module]:
    """The networks of the teachers, each once."""
    teachers = (plan.teacher, batches.teacher, plan.back and plan.back.teacher)
    return list(dict.fromkeys(net for gan in teachers if gan for net in gan.networks.values()))


def _out_of_memory(plan: Plan, reporter: Reporter) -> GanCompressError:
    """What to tell: the batch that fits, which is tried out. The plan's networks are of no use afterwards; the run folder is not touched."""
    schedule = plan.recipe.schedule
    size, parts = schedule.batch_size, schedule.accumulate
    said = f"out of memory with --batch-size {size} on {plan.device}"
    if ranks.world() > 1:  # the others are not there to try with
        return GanCompressError(said, f"try --batch-size {max(1, size // 2)} in a new --out")

    def attempt(part: int) -> None:
        smaller = part * parts
        numbers = schedule.model_copy(update={"batch_size": smaller, "teacher_pool": schedule.teacher_pool // smaller * smaller})
        trainer = Trainer(plan.trained, plan.loss, plan.recipe.model_copy(update={"schedule": numbers}))
        batches = _batches(plan, numbers)
        with speed.applied([*trainer.trained, *_frozen(plan, batches)], plan.recipe.precision, plan.compiler):
            for step in (0, numbers.steps - 1):  # with every regulariser, and with what begins late
                trainer.step = step
                trainer.train_step(batches)

    reporter.note(f"{said}: trying smaller ones")
    if part := largest_part(attempt, size // parts, [plan.trained.generator, plan.loss]):
        whole = "" if size % part else f"; schedule.accumulate={size // part} keeps a batch of {size}"
        return GanCompressError(said, f"the largest that fits is --batch-size {part * parts}, in a new --out{whole}")
    remedies = ["--precision bf16"] if plan.recipe.precision in ("fp32", "tf32") else []
    remedies += [f"schedule.accumulate={size}"] if parts < size else []
    return GanCompressError(f"{said}, and no smaller one fits", f"{', '.join([*remedies, 'a smaller --ch-mul'])}, in a new --out")


def _fit_discriminator(plan: Plan, reporter: Reporter) -> None:
    """Give the teacher the discriminator that was promised: train it, or go on, or take the trained one of this run folder."""
    if not plan.fit_kimg:
        return
    teacher, folder = plan.teacher, plan.run_dir / "teacher-discriminator"
    assert teacher is not None
    path = folder / "discriminator.safetensors"
    if not ranks.on_first(path.is_file):
        recipe = plan.recipe.model_copy(update={"schedule": plan.recipe.schedule.model_copy(update={"kimg": plan.fit_kimg, "ema_kimg": 0.0})})
        weights = {k: v for k, v in plan.recipe.weights.items() if k in AdversarialWeights.model_fields}
        loss = Fit(teacher, teacher, AdversarialWeights.model_validate(weights)).to(plan.device)
        batches = Batches(
            teacher, teacher, plan.images, recipe.schedule, mirror=recipe.data.mirror, seed=recipe.seed, pool=0, device=plan.device
        )  # fmt: skip
        ranks.on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
        reporter.note(f"training a discriminator for the teacher: {plan.fit_kimg:g} kimg")
        train(GAN(teacher.family, teacher.arch, teacher.generator), loss, recipe, batches, folder, reporter, plan.device, compiler=plan.compiler)
        critic: Any = loss.critics["student"]
        facts = {"kimg": plan.fit_kimg, "trained": "afterwards, for a finished teacher"}
        ranks.on_first(lambda: save_networks(path, teacher.family, critic.arch, {"discriminator": critic}, facts))
    teacher.discriminator = build(find(str(path)), "discriminator").to(plan.device)
    teacher.freeze()
    # anew, since it may have begun as a copy of what was not yet trained
    plan.loss = make_loss(plan.recipe, type(plan.loss), teacher, plan.student, plan.start)[0].to(plan.device)


def _finish(plan: Plan, done: GAN, facts: dict[str, Any]) -> None:
    from gancompress.report import save_curves

    save_curves(plan.run_dir / "log.jsonl", plan.run_dir / "curves.png")
    critic = done.discriminator
    if isinstance(critic, nn.Module) and (owner := family_of(getattr(critic, "arch", None))):  # the critic may be of the teacher's family, not the student's
        save_networks(plan.run_dir / "discriminator.safetensors", owner, critic.arch, {"discriminator": critic}, facts)
    if plan.back and "back" in plan.loss.critics:
        critic_back: Any = plan.loss.critics["back"].eval()
        owner = plan.back.student.family
        save_networks(plan.run_dir / CRITIC_BACK, owner, critic_back.arch, {"discriminator": critic_back}, facts | _facts_back(plan))
    # last: its presence says that the run is whole
    _save_students(plan, done.generator, plan.run_dir / "student.safetensors", facts)


def _save_students(plan: Plan, net: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """The student, after that of the other direction, whose file has _back in its name."""
    if plan.back:
        both = cast(BothWays, net)
        net, other = both.there, plan.back.student
        beside = path.with_name(path.name.replace("student", Path(STUDENT_BACK).stem))
        save_networks(beside, other.family, other.arch, {"generator": both.back}, facts | _facts_back(plan))
    save_networks(path, plan.student.family, plan.student.arch, {"generator": net}, facts)


def _facts_back(plan: Plan) -> dict[str, Any]:
    return {"teacher_sha256": plan.identity["back"]["teacher"]["sha256"]}
