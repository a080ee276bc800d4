"""The command line. It parses, calls the library and prints; torch is imported inside the commands only."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from gancompress.errors import GanCompressError, UsageError, is_out_of_memory, printable


class _Group(TyperGroup):
    """Turns our errors into a line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GanCompressError as error:
            typer.echo(f"error: {error}", err=True)
            if error.hint:
                typer.echo(f"hint: {error.hint}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(1) from None
        except OSError as error:
            typer.echo(f"error: {printable(str(error.filename or 'a file'))}: {error.strerror or error}", err=True)
            raise typer.Exit(1) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            typer.echo("error: out of memory\nhint: --device cpu, or fewer images at a time", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Compress a pretrained GAN: distil a narrower student from the checkpoint you have.",
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 unsafe or unsupported checkpoint, 4 missing data, weights or network, "
    "5 diverged, 6 threshold or parity failed, 75 stopped by a signal and saved, 130 Ctrl-C and saved.",
)
recipes_app = typer.Typer(cls=_Group, help="List, show or copy the recipes.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")

Discriminator = Annotated[Optional[str], typer.Option("--discriminator", help="File of the discriminator, where it lies apart.")]  # noqa: UP045
Classes = Annotated[Optional[int], typer.Option("--classes", min=1, help="Classes of a one-hot conditional teacher, which no file tells.")]  # noqa: UP045
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[Optional[str], typer.Option("--data", help="Real images, or what a translator translates: a folder, a zip, an .npz or MNIST idx files.")]  # noqa: UP045
Direction = Annotated[Optional[str], typer.Option("--direction", metavar="AtoB|BtoA", help="Of --data that holds both sides of pairs.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
ReaderOption = Annotated[Optional[list[str]], typer.Option("--reader", metavar="KEY=VALUE", help="What no file tells: nc=1, output=linear, truncation=0.7.")]  # noqa: UP045
FamilyOption = Annotated[Optional[str], typer.Option("--family", help="Read it as this family, and say what does not fit.")]  # noqa: UP045
Key = Annotated[Optional[str], typer.Option("--key", help="Place in the file of the network to take, as inspect prints it.")]  # noqa: UP045


def _reader_options(classes: int | None, reader: list[str] | None, family: str | None = None, key: str | None = None) -> dict[str, Any]:
    from gancompress.config import parse_override

    flags = {"classes": classes, "family": family, "key": key}
    return dict(parse_override(text) for text in reader or []) | {name: value for name, value in flags.items() if value}


def _device(name: str) -> Any:
    """The device, with one line of notice where ``auto`` found no CUDA."""
    from gancompress.planning import choose_device

    device = choose_device(name)
    if name == "auto" and device.type == "cpu":
        typer.echo("no CUDA device: running on the CPU", err=True)
    return device


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A checkpoint file, a directory with G and D, a run folder, owner/name of the Hub, or sample:NAME.")],
    discriminator: Discriminator = None,
    classes: Classes = None,
    reader: ReaderOption = None,
    family: FamilyOption = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Tell what a checkpoint is, what it holds, and which recipes it can feed."""
    from gancompress import api, screens

    found = api.inspect(source, discriminator=discriminator, **_reader_options(classes, reader, family, key))
    typer.echo(json.dumps(found, indent=2)) if as_json else screens.show_inspection(found)


@app.command()
def distill(
    teacher: Annotated[Optional[str], typer.Argument(help="The teacher: a path, owner/name of the Hub, sample:NAME; none for --recipe scratch.")] = None,  # noqa: UP045
    overrides: Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys, such as schedule.kimg=50.")] = None,  # noqa: UP045
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A name of `gancompress recipes`, or a YAML file.")] = "mse",
    ch_mul: Annotated[Optional[float], typer.Option("--ch-mul", help="Width of the student's hidden layers, in (0, 1].")] = None,  # noqa: UP045
    student: Annotated[Optional[str], typer.Option("--student", "--arch", help="Family of the student, if not the teacher's.")] = None,  # noqa: UP045
    target_params: Annotated[Optional[str], typer.Option(help="Choose ch_mul for at most so many parameters: 500k.")] = None,  # noqa: UP045
    target_macs: Annotated[Optional[str], typer.Option(help="Choose ch_mul for so few multiply-adds: 4x fewer, or 10M.")] = None,  # noqa: UP045
    target_size: Annotated[Optional[str], typer.Option(help="Choose ch_mul for a float32 file of at most: 1MB.")] = None,  # noqa: UP045
    data: Data = None,
    target: Annotated[Optional[str], typer.Option("--target", help="What a translator is to make of --data, where it lies apart.")] = None,  # noqa: UP045
    direction: Direction = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run folder; a run in it goes on. Default: a new one under ./runs.")] = None,  # noqa: UP045
    kimg: Annotated[Optional[float], typer.Option("--kimg", help="Thousands of images to train on.")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option("--steps", help="The same as a number of optimiser steps.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option("--batch-size")] = None,  # noqa: UP045
    device: Device = "auto",
    seed: Annotated[Optional[int], typer.Option("--seed")] = None,  # noqa: UP045
    discriminator: Discriminator = None,
    teacher_module: Annotated[Optional[str], typer.Option(help="A teacher of your own: file.py:factory.")] = None,  # noqa: UP045
    classes: Classes = None,
    reader: ReaderOption = None,
    family: FamilyOption = None,
    key: Key = None,
    recorded: Annotated[Optional[Path], typer.Option("--recorded", help="In place of a teacher: what `collect` wrote, or images with noises.npy.")] = None,  # noqa: UP045
    d_ch_mul: Annotated[Optional[float], typer.Option("--d-ch-mul", help="Width of the student's own discriminator; default: --ch-mul.")] = None,  # noqa: UP045
    fit_discriminator: Annotated[
        float | None, typer.Option("--fit-discriminator", metavar="KIMG", min=0.001, help="First train a discriminator for a teacher that has none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train a smaller student from a teacher. The same command again resumes."""
    from gancompress import console, screens
    from gancompress.config import parse_override
    from gancompress.planning import make_plan, run_plan

    words = list(overrides or [])
    if teacher and "=" in teacher and not Path(teacher).exists():  # no teacher was named: this is the first key=value
        words.insert(0, teacher)
        teacher = None
    if teacher_module:
        if teacher:
            raise UsageError(f"two teachers: {teacher} and --teacher-module {teacher_module}")
        teacher = f"module:{teacher_module}"
    if kimg is not None and steps is not None:
        raise UsageError("--kimg and --steps: give one of them")
    flags = {
        "student.ch_mul": ch_mul,
        "student.d_ch_mul": d_ch_mul,
        "student.family": student,
        "schedule.kimg": kimg,
        "schedule.batch_size": batch_size,
        "seed": seed,
    }
    changes = [parse_override(w) for w in words] + [(k, v) for k, v in flags.items() if v is not None]
    _device(device)
    plan = make_plan(
        teacher, recipe, overrides=changes, data=data, out=out, device=device, discriminator=discriminator,
        reader_options=_reader_options(classes, reader, family, key),
        target_params=target_params, target_macs=target_macs, target_size=target_size, steps=steps,
        fit_discriminator=fit_discriminator, recorded=recorded, target=target, direction=direction,
    )  # fmt: skip
    screens.show_plan(plan)
    if dry_run:
        return
    schedule = plan.recipe.schedule
    if plan.finished:
        typer.echo("this run is finished already", err=True)
    with console.reporter(schedule.steps, schedule.batch_size) as reporter:
        try:
            path = run_plan(plan, reporter)
        except GanCompressError as error:
            if error.exit_code in (75, 130):
                error.hint = "the same command goes on" + ("" if out else f" (or --out {plan.run_dir})")
            raise
    typer.echo(f"student: {path}   next: gancompress eval {plan.run_dir}")


@app.command()
def collect(
    teacher: Annotated[str, typer.Argument(help="The teacher: a path, owner/name of the Hub, sample:NAME, module:file.py:factory.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the recording; one of the same settings goes on.")],
    num: Annotated[Optional[int], typer.Option("--num", help="Pairs to record.")] = None,  # noqa: UP045
    per_class: Annotated[Optional[int], typer.Option("--per-class", help="Pairs of each class exactly, in place of --num with uniform labels.")] = None,  # noqa: UP045
    truncation: Annotated[Optional[float], typer.Option(help="The family's own; of one without, z = T * (a normal within [-2, 2]) as TinyGAN.")] = None,  # noqa: UP045
    classes: Annotated[Optional[str], typer.Option("--classes", help="Of a conditional teacher, those to record: 3,7-9. Default: all.")] = None,  # noqa: UP045
    image_format: Annotated[str, typer.Option("--format", help="png or webp-lossless (8 bits), or float16.")] = "png",
    batch_size: Annotated[int, typer.Option("--batch-size")] = 64,
    seed: Seed = 0,
    device: Device = "auto",
    reader: ReaderOption = None,
) -> None:
    """Record a teacher's latents, labels and images, for distill --recorded. The same command resumes; torchrun ranks share the work."""
    from gancompress import console, screens
    from gancompress.collecting import prepare, record

    _device(device)
    recording = prepare(
        teacher, out, num=num, per_class=per_class, truncation=truncation, classes=classes, image_format=image_format, batch_size=batch_size, seed=seed,
        device=device, reader_options=_reader_options(None, reader),
    )  # fmt: skip
    first = recording.rank == 0  # the others work in silence
    if first:
        screens.show_recording(recording)
    with console.reporter(recording.left, 1, "pair") if first else console.Silent() as reporter:
        path = record(recording, reporter)
    typer.echo(f"recorded: {path}")


@app.command("eval")
def evaluate(
    student: Annotated[Optional[str], typer.Argument(help="A student or a run folder; default: the newest finished run under ./runs.")] = None,  # noqa: UP045
    against: Annotated[Optional[str], typer.Option("--against", help="The teacher; default: the one the run was made from.")] = None,  # noqa: UP045
    data: Data = None,
    direction: Direction = None,
    num_images: Annotated[int, typer.Option("--num-images", min=2)] = 5000,
    feature_extractor: Annotated[Optional[str], typer.Option(help="inception (the default), digits, or a torchvision MobileNetV2 file.")] = None,  # noqa: UP045
    weights: Annotated[Optional[str], typer.Option(help="Inception weights, where they cannot be downloaded.")] = None,  # noqa: UP045
    per_class: Annotated[Optional[str], typer.Option("--per-class", metavar="LIST", help="Distances within classes instead: all, or 3,7-9.")] = None,  # noqa: UP045
    pictures: Annotated[Optional[Path], typer.Option("--pictures", help="With --per-class: folder for the worst classes and interpolations.")] = None,  # noqa: UP045
    classes: Classes = None,
    reader: ReaderOption = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a student beside its teacher: fidelity, distance, score, blur, size and latency."""
    from gancompress import api, screens
    from gancompress.data import Images
    from gancompress.errors import MissingError
    from gancompress.extractors import Extractor, make_extractor
    from gancompress.loading import load_gan
    from gancompress.metrics import evaluate as measure
    from gancompress.planning import feed_translator

    where = _device(device)
    source, options = student or str(api.newest_run()), _reader_options(classes, reader)
    gan = load_gan(source, options=options)
    said: list[str] = []
    if against is None:
        against, recorded, why_not = api.teacher_of(source)
        options, said = recorded | options, [why_not] if why_not else []
    teacher = load_gan(against, options=options) if against else None
    translators = [g for g in (gan, teacher) if g and not g.arch.nz]
    for translator in translators:
        feed_translator(translator, data, direction)
    images = Images(data, gan.arch.resolution, gan.arch.nc) if data and not translators else None
    extractor: Extractor | None = None
    if per_class is not None:
        extractor = make_extractor(feature_extractor or "inception", weights, where)
        found = api.eval_classes(gan, teacher, images, extractor, per_class, pictures, num_images=num_images, seed=seed, device=where)
        typer.echo(json.dumps(found, indent=2)) if as_json else screens.show_classes(found)
        return
    if pictures is not None:
        raise UsageError(f"--pictures {pictures}: they are of classes", "--per-class all")
    if feature_extractor or weights or images or teacher:
        try:
            extractor = make_extractor(feature_extractor or "inception", weights, where)
        except MissingError as error:
            if feature_extractor or weights:
                raise
            said.append(f"left out: {error}\nhint: {error.hint}")
    result = measure(gan, teacher, images, num_images=num_images, extractor=extractor, seed=seed, device=where)
    result["source"], result["against"] = source, against
    typer.echo(json.dumps(result, indent=2, allow_nan=False)) if as_json else screens.show_evaluation(result)
    for line in said:
        typer.echo(printable(line, lines=True), err=True)


@app.command()
def sample(
    source: Annotated[Optional[str], typer.Argument(help="Teacher or student; default: the newest finished run under ./runs.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option("--out", help="NAME.png for one grid, else a directory of numbered files.")] = Path("samples.png"),
    num: Annotated[int, typer.Option("--num", min=1)] = 64,
    label: Annotated[Optional[int], typer.Option("--label", min=0, help="Class to draw, of a conditional network.")] = None,  # noqa: UP045
    seed: Seed = 0,
    data: Data = None,
    direction: Direction = None,
    classes: Classes = None,
    reader: ReaderOption = None,
    device: Device = "auto",
) -> None:
    """Draw images from a teacher or a student; a translator's inputs come from --data."""
    from gancompress import api

    options = _reader_options(classes, reader)
    path = api.sample(source or str(api.newest_run()), out, num=num, seed=seed, label=label, data=data, direction=direction, device=_device(device), **options)
    typer.echo(f"samples: {path}")


@app.command()
def export(
    student: Annotated[Optional[str], typer.Argument(help="A student, run folder or teacher; default: the newest finished run.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Directory; default: export/ in the run folder.")] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16.")] = "float32",
    classes: Classes = None,
    reader: ReaderOption = None,
) -> None:
    """Write model.safetensors and config.json, checked against the source network."""
    from gancompress import api
    from gancompress.exporter import export as write

    source = student or str(api.newest_run())
    if out is None and not Path(source).is_dir():
        raise UsageError("--out DIR is needed where the source is no run folder")
    target = write(source, out or Path(source) / "export", dtype, _reader_options(classes, reader))
    typer.echo(f'exported: {target}   load: gancompress.load("{target}")')


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint file, a directory with G and D, a run folder, or sample:dcgan-mnist.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write; it must not be there yet.")],
    discriminator: Discriminator = None,
    classes: Classes = None,
    reader: ReaderOption = None,
    family: FamilyOption = None,
    key: Key = None,
) -> None:
    """Write a teacher as one self-describing safetensors file: generator (EMA preferred) and discriminator, nothing lost."""
    from gancompress import api
    from gancompress.console import size
    from gancompress.exporter import convert as write

    target = write(source, out, discriminator=discriminator, reader_options=_reader_options(classes, reader, family, key))
    found = api.inspect(str(target))
    parts = " and ".join(c["part"] for c in found["contents"])
    typer.echo(f'converted: {target} ({found["family"]} {parts}, {size(found["bytes"])})   load: gancompress.load("{target}")')


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into; a number is added where it is taken.")] = Path("gancompress-quickstart"),
) -> None:
    """Compress the bundled MNIST teacher, measure and export it: no network, no data, no GPU, about two minutes."""
    from gancompress.quickstart import run

    run(out)


@app.command()
def toy(
    name: Annotated[Optional[str], typer.Argument(metavar="[ring|grid]", help="The 2D Ring of 8 modes or the 2D Grid of 25; default: both.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option("--out", help="Folder to write into; a number is added where it is taken.")] = Path("gancompress-toy"),
    kimg: Annotated[Optional[float], typer.Option("--kimg", min=0.001, help="Thousands of points each student sees; its teacher sees twice as many.")] = None,  # noqa: UP045
    seed: Seed = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, auto, cuda or cuda:N; networks so small are fastest on a CPU.")] = "cpu",
) -> None:
    """AKDG's proof in the plane: a teacher, and vanilla, mse and akdg students of it, with a picture and the modes each covers."""
    from gancompress import toys
    from gancompress.checkpoint import unused

    where, names = _device(device), [name] if name else list(toys.TOYS)
    if unknown := set(names) - set(toys.TOYS):
        raise UsageError(f"no toy {unknown.pop()!r}", f"toys: {', '.join(toys.TOYS)}")
    folder = unused(out)
    for each in names:
        toys.show(toys.run(each, folder, seed=seed, kimg=toys.KIMG if kimg is None else kimg, device=where))
        typer.echo(f"picture: {folder / each}.png   numbers: {folder / each}.json")


@app.command()
def env() -> None:
    """Print what a bug report needs."""
    from gancompress import screens

    screens.show_environment()


@recipes_app.callback()
def recipes(ctx: typer.Context, as_json: Json = False) -> None:
    """List the recipes with their papers and what they need."""
    if ctx.invoked_subcommand is None:
        from gancompress import api, screens

        rows = api.recipe_table()
        typer.echo(json.dumps(rows, indent=2)) if as_json else screens.show_recipes(rows)


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a recipe's file."""
    from gancompress.config import recipe_path

    sys.stdout.write(recipe_path(name).read_text(encoding="utf-8"))


@recipes_app.command("copy")
def recipes_copy(name: str, path: Path) -> None:
    """Copy a recipe to edit; use it with --recipe PATH."""
    from gancompress.checkpoint import atomic_write
    from gancompress.config import recipe_path

    source = recipe_path(name)
    content = source.read_bytes()
    target = path / source.name if path.is_dir() else path
    if target.exists():
        raise UsageError(f"{target} exists already", "choose another path")
    atomic_write(target, content)
    typer.echo(f"recipe: {target}   use: gancompress distill TEACHER --recipe {target}")


def _terminated(number: int, frame: Any) -> None:
    """Outside of what saves its state; whatever is being written is taken away on the way out."""
    typer.echo("stopped by SIGTERM; nothing is half-written, and the same command begins anew", err=True)
    raise SystemExit(75)


def main() -> None:
    """Entry point of ``gancompress``."""
    signal.signal(signal.SIGTERM, _terminated)
    app()
