"""The command line. It parses, calls the library and prints; torch is imported inside the commands only."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from gancompress.errors import GanCompressError, MissingError, ToldElsewhereError, UsageError, is_out_of_memory, printable


class _Group(TyperGroup):
    """Turns our errors into a line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ToldElsewhereError as error:
            raise typer.Exit(error.exit_code) from None
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
    rich_markup_mode=None,  # to draw boxes around help would take as long as all the rest
    pretty_exceptions_show_locals=False,
    help="Compress a pretrained GAN: distil a narrower student from the checkpoint you have.",
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 unsafe or unsupported checkpoint, 4 missing data, weights or network, "
    "5 diverged, 6 threshold or parity failed, 75 stopped by a signal and saved, 130 Ctrl-C and saved.",
)
recipes_app = typer.Typer(cls=_Group, help="List, show or copy the recipes.", invoke_without_command=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

Discriminator = Annotated[Optional[str], typer.Option("--discriminator", help="File of the discriminator, where it lies apart.")]  # noqa: UP045
Classes = Annotated[Optional[int], typer.Option("--classes", min=1, help="Classes of a one-hot conditional teacher, which no file tells.")]  # noqa: UP045
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[Optional[str], typer.Option("--data", help="Real images, or what a translator translates: a folder, a zip, an .npz or MNIST idx files.")]  # noqa: UP045
Direction = Annotated[Optional[str], typer.Option("--direction", metavar="AtoB|BtoA", help="Of --data that holds both sides of pairs.")]  # noqa: UP045
Gpus = Annotated[Optional[int], typer.Option("--gpus", min=1, help="GPUs of this machine to work on; with --device cpu, processes.")]  # noqa: UP045
Features = Annotated[Optional[str], typer.Option("--feature-extractor", help="inception (default), digits, random, or a torchvision MobileNetV2 file.")]  # noqa: UP045
InceptionFile = Annotated[Optional[str], typer.Option("--weights", help="File of the Inception weights, where they cannot be downloaded.")]  # noqa: UP045
NumImages = Annotated[int, typer.Option("--num-images", min=2, help="Images of each network, and of the reference.")]
NewFolder = Annotated[Path, typer.Option("--out", help="Folder to write into; a number is added where it is taken.")]
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
    from gancompress.devices import choose_device

    device = choose_device(name)
    if name == "auto" and device.type == "cpu":
        typer.echo("no CUDA device: running on the CPU", err=True)
    return device


def _teacher_and_words(teacher: str | None, module: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """(the teacher's source, every key=value); where no teacher is named, the first of those stands in its place."""
    if teacher and "=" in teacher and not Path(teacher).exists():
        overrides = [teacher, *overrides]
        teacher = None
    if module and teacher:
        raise UsageError(f"two teachers: {teacher} and --teacher-module {module}")
    return f"module:{module}" if module else teacher, overrides


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
    back: Annotated[Optional[str], typer.Option("--back", help="Teacher of the other direction: both are distilled, with CycleGAN's cycle.")] = None,  # noqa: UP045
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
    gpus: Gpus = None,
    precision: Annotated[Optional[str], typer.Option(help="Of the networks' arithmetic: fp32, tf32, bf16 or fp16 (docs/speed.md).")] = None,  # noqa: UP045
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the networks (torch.compile): a slow start, then faster steps.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train a smaller student from a teacher. The same command again resumes; torchrun ranks train together."""
    from gancompress import console, screens
    from gancompress import distributed as ranks
    from gancompress.config import parse_override
    from gancompress.devices import choose_device
    from gancompress.planning import make_plan
    from gancompress.request import Request
    from gancompress.running import run_plan

    teacher, words = _teacher_and_words(teacher, teacher_module, overrides or [])
    if kimg is not None and steps is not None:
        raise UsageError("--kimg and --steps: give one of them")
    flags = {
        "student.ch_mul": ch_mul,
        "student.d_ch_mul": d_ch_mul,
        "student.family": student,
        "schedule.kimg": kimg,
        "schedule.batch_size": batch_size,
        "seed": seed,
        "precision": precision,
    }
    changes = [parse_override(w) for w in words] + [(k, v) for k, v in flags.items() if v is not None]
    if ranks.to_launch(gpus):
        raise typer.Exit(ranks.launch(gpus or 1, choose_device(device)))
    with ranks.joined(choose_device(device)):
        first = ranks.rank() == 0  # the others work in silence
        if first:
            _device(device)
        plan = ranks.agreed(lambda: make_plan(Request(
            teacher, recipe, overrides=changes, data=data, out=out, device=device, discriminator=discriminator,
            reader_options=_reader_options(classes, reader, family, key),
            target_params=target_params, target_macs=target_macs, target_size=target_size, steps=steps,
            fit_discriminator=fit_discriminator, recorded=recorded, target=target, direction=direction, back=back, compiled=compiled,
        )), lambda plan: json.dumps(plan.identity))  # fmt: skip
        if first:
            screens.show_plan(plan)
        if dry_run:
            return
        schedule = plan.recipe.schedule
        if first and plan.finished:
            typer.echo("this run is finished already", err=True)
        with console.reporter(schedule.steps, schedule.batch_size) if first else console.Silent() as reporter:
            try:
                path = run_plan(plan, reporter)
            except GanCompressError as error:
                if error.exit_code in (75, 130):
                    error.hint = "the same command goes on" + ("" if out else f" (or --out {plan.run_dir})")
                raise
    if first:
        told = f"   report: {page}" if (page := plan.run_dir / "report.html").is_file() else ""
        typer.echo(f"student: {path}{told}   next: gancompress eval {plan.run_dir}")


@app.command()
def collect(
    teacher: Annotated[str, typer.Argument(help="The teacher: a path, owner/name of the Hub, sample:NAME, module:file.py:factory.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the recording; one of the same settings goes on, and grows where more are asked for.")],
    num: Annotated[Optional[int], typer.Option("--num", help="Pairs to record; of a translator, at most and by default all of --data.")] = None,  # noqa: UP045
    per_class: Annotated[Optional[int], typer.Option("--per-class", help="Pairs of each class exactly, in place of --num with uniform labels.")] = None,  # noqa: UP045
    truncation: Annotated[Optional[float], typer.Option(help="The family's own; of one without, z = T * (a normal within [-2, 2]) as TinyGAN.")] = None,  # noqa: UP045
    classes: Annotated[Optional[str], typer.Option("--classes", help="Of a conditional teacher, those to record: 3,7-9. Default: all.")] = None,  # noqa: UP045
    data: Data = None,
    direction: Direction = None,
    image_format: Annotated[str, typer.Option("--format", help="png or webp-lossless (8 bits), or float16.")] = "png",
    batch_size: Annotated[int, typer.Option("--batch-size")] = 64,
    seed: Seed = 0,
    device: Device = "auto",
    reader: ReaderOption = None,
) -> None:
    """Record a teacher's latents, labels and images, for distill --recorded. The same command resumes, a larger --num adds to it; torchrun ranks share."""
    from gancompress import console, screens
    from gancompress.collecting import prepare, record

    _device(device)
    recording = prepare(
        teacher, out, num=num, per_class=per_class, truncation=truncation, classes=classes, image_format=image_format, batch_size=batch_size, seed=seed,
        device=device, data=data, direction=direction, reader_options=_reader_options(None, reader),
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
    metrics: Annotated[Optional[str], typer.Option(metavar="LIST", help="fid,kid,is,pr,ppl,vol,paired,lpips,diversity,latency,exported,memory")] = None,  # noqa: UP045
    num_images: NumImages = 5000,
    batch_size: Annotated[Optional[int], typer.Option("--batch-size", min=1, help="Images at a time; it changes no number.")] = None,  # noqa: UP045
    truncation: Annotated[Optional[float], typer.Option(help="The family's own, of student and teacher alike.")] = None,  # noqa: UP045
    max_fid: Annotated[Optional[float], typer.Option("--max-fid", help="Exit code 6 where the student's distance, of whatever extractor, is above it.")] = None,  # noqa: UP045
    save_stats: Annotated[Optional[Path], typer.Option("--save-stats", help="Write the reference's mu and sigma to this .npz, which --data takes.")] = None,  # noqa: UP045
    feature_extractor: Features = None,
    weights: InceptionFile = None,
    per_class: Annotated[Optional[str], typer.Option("--per-class", metavar="LIST", help="Distances within classes instead: all, or 3,7-9.")] = None,  # noqa: UP045
    pictures: Annotated[Optional[Path], typer.Option("--pictures", help="With --per-class: folder for the worst classes and interpolations.")] = None,  # noqa: UP045
    segmenter: Annotated[Optional[str], typer.Option(help="FCN score of a translator instead: a torchvision segmentation file, or file.py:factory.")] = None,  # noqa: UP045
    label_maps: Annotated[Optional[str], typer.Option(help="With --segmenter: folder with a label map (.png, .npy) for each image of --data.")] = None,  # noqa: UP045
    segmenter_classes: Annotated[Optional[int], typer.Option(min=1, help="With --segmenter: take its first N classes alone.")] = None,  # noqa: UP045
    ignore_label: Annotated[Optional[list[int]], typer.Option(help="With --segmenter: a value of label maps to leave out, as 255 is.")] = None,  # noqa: UP045
    target: Annotated[Optional[str], typer.Option("--target", help="With --segmenter: the real images of --data, to be scored too.")] = None,  # noqa: UP045
    classes: Classes = None,
    reader: ReaderOption = None,
    device: Device = "auto",
    seed: Seed = 0,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Measure a student beside its teacher: fidelity, distance, score, blur, size, latency and memory. torchrun ranks share the images."""
    from gancompress import api, screens
    from gancompress import distributed as ranks
    from gancompress.devices import choose_device
    from gancompress.runs import keep_evaluation, newest_run

    if ranks.to_launch(gpus):
        raise typer.Exit(ranks.launch(gpus or 1, choose_device(device)))
    source, options = student or str(newest_run()), _reader_options(classes, reader) | ({"truncation": truncation} if truncation is not None else {})
    fcn: dict[str, Any] = {"label_maps": label_maps, "classes": segmenter_classes, "ignored": ignore_label, "target": target}
    if segmenter is not None:
        if per_class or feature_extractor or weights or pictures or metrics or save_stats or max_fid is not None or ranks.place()[1] > 1:
            hint = "leave out --metrics, --per-class, --pictures, --max-fid and what is of features; one process measures it"
            raise UsageError("--segmenter measures the FCN score alone", hint)
        where = _device(device)
        gan, teacher, _, said = api.student_and_teacher(source, against, options)
        scores = api.eval_segmentation(gan, teacher, data, segmenter, direction=direction, num_images=num_images, device=where, **fcn)
        typer.echo(json.dumps(scores, indent=2, allow_nan=False)) if as_json else screens.show_segmentation(scores)
        for line in said:
            typer.echo(printable(line, lines=True), err=True)
        return
    if any(fcn.values()):
        raise UsageError("--label-maps, --segmenter-classes, --ignore-label and --target of eval are for the FCN score", "--segmenter FILE --label-maps DIR")
    with ranks.joined(choose_device(device)):
        first = ranks.rank() == 0  # the others work in silence
        where = ranks.device_of_process(_device(device) if first else choose_device(device))
        try:
            result = api.measure(
                source, against, data=data, direction=direction, metrics=metrics, num_images=num_images, batch_size=batch_size, max_fid=max_fid,
                save_stats=save_stats, feature_extractor=feature_extractor, weights=weights, per_class=per_class, pictures=pictures, options=options,
                device=where, seed=seed,
            )  # fmt: skip
        except (UsageError, MissingError) as error:  # of what was asked for: every process finds it
            raise error if first else ToldElsewhereError(str(error), exit_code=error.exit_code) from None
    if not first:
        return
    show = screens.show_evaluation if per_class is None else screens.show_classes
    typer.echo(json.dumps(result, indent=2, allow_nan=False)) if as_json else show(result)
    for line in result["notes"] + keep_evaluation(source, result):
        typer.echo(printable(line, lines=True), err=True)
    api.check_distance(result, max_fid)


@app.command()
def compare(
    sources: Annotated[list[str], typer.Argument(help="Two or more teachers, students or run folders; the first is what the others are held against.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="A page NAME.html, NAME.md or NAME.json; a number is added where it is taken.")] = None,  # noqa: UP045
    data: Data = None,
    direction: Direction = None,
    num_images: NumImages = 5000,
    feature_extractor: Features = None,
    weights: InceptionFile = None,
    seed: Seed = 0,
    classes: Classes = None,
    reader: ReaderOption = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Hold students against their teacher, and each other: quality, cost, speed-up, pictures on the same latents, curves, Pareto plots."""
    from gancompress import comparing, screens
    from gancompress.checkpoint import unused
    from gancompress.comparison import check_out, write

    if out is not None:
        check_out(out)
    _device(device)
    found = comparing.measure(
        sources, data=data, direction=direction, num_images=num_images, feature_extractor=feature_extractor, weights=weights, seed=seed, device=device,
        reader_options=_reader_options(classes, reader),
    )  # fmt: skip
    typer.echo(json.dumps(found.result, indent=2)) if as_json else screens.show_comparison(found.result)
    if out is not None:
        path = unused(out)
        write(path, found.result, found.pictures, found.panels)
        typer.echo(f"comparison: {path}", err=as_json)


@app.command()
def sweep(
    teacher: Annotated[str, typer.Argument(help="The teacher, as of distill.")],
    overrides: Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys for every run: schedule.kimg=50.")] = None,  # noqa: UP045
    ch_mul: Annotated[str, typer.Option("--ch-mul", metavar="LIST", help="Widths of the students.")] = "0.5,0.25,0.125",
    recipes: Annotated[str, typer.Option("--recipes", metavar="LIST", help="Names of `gancompress recipes`, or YAML files: mse,dgl.")] = "mse",
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Every run with the seeds 0 ... N - 1; means and spreads are told.")] = 1,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run folders and compare.html; what is there goes on.")] = Path("gancompress-sweep"),
    discriminator: Discriminator = None,
    classes: Classes = None,
    reader: ReaderOption = None,
    num_images: NumImages = 5000,
    feature_extractor: Features = None,
    device: Device = "auto",
    print_commands: Annotated[bool, typer.Option("--print-commands", help="Print a distill command for each run, as for a cluster, and stop.")] = False,
) -> None:
    """Distil a grid of widths, recipes and seeds, one after the other, and compare them. The same command again resumes."""
    from gancompress import console, screens, sweeping

    wanted = sweeping.Sweep(teacher, sweeping.grid(ch_mul, recipes, seeds), out, data, discriminator, _reader_options(classes, reader), device, overrides or [])
    if print_commands:
        for cell in wanted.cells:
            wanted.plan(cell)
            typer.echo(wanted.command(cell))
        return
    _device(device)
    found, failed = sweeping.run_sweep(
        wanted, lambda plan: console.reporter(plan.recipe.schedule.steps, plan.recipe.schedule.batch_size), lambda line: typer.echo(line, err=True),
        num_images=num_images, feature_extractor=feature_extractor,
    )  # fmt: skip
    if found is not None:
        screens.show_comparison(found.result)
        typer.echo(f"comparison: {out / 'compare.html'}")
    if failed:
        raise sweeping.failure(failed, len(wanted.cells))


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
    from gancompress.runs import newest_run

    options = _reader_options(classes, reader)
    path = api.sample(source or str(newest_run()), out, num=num, seed=seed, label=label, data=data, direction=direction, device=_device(device), **options)
    typer.echo(f"samples: {path}")


@app.command()
def export(
    student: Annotated[Optional[str], typer.Argument(help="A student, run folder or teacher; default: the newest finished run.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Directory; default: export/ in the run folder.")] = None,  # noqa: UP045
    formats: Annotated[str, typer.Option("--format", help="Of safetensors, onnx, pt2 and openvino, with commas between.")] = "safetensors",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16.")] = "float32",
    int8: Annotated[bool, typer.Option("--int8", help="With onnx: also model.int8.onnx, 8-bit weights and activations.")] = False,
    calibrate: Annotated[int, typer.Option("--calibrate", min=1, metavar="N", help="Inputs that --int8 looks at.")] = 256,
    feature_extractor: Annotated[Optional[str], typer.Option(help="Measure what --int8 costs in Frechet distance: as for eval.")] = None,  # noqa: UP045
    keys: Annotated[str, typer.Option("--keys", help="own, or original: also original.pth, for the code the family comes from.")] = "own",
    noise: Annotated[str, typer.Option("--noise", help="Of a StyleGAN2 as onnx, pt2 or openvino: fixed, or input.")] = "fixed",
    push_to_hub: Annotated[Optional[str], typer.Option(metavar="OWNER/NAME", help="Publish it on the Hugging Face Hub with a model card.")] = None,  # noqa: UP045
    private: Annotated[bool, typer.Option("--private", help="With --push-to-hub: a new repository is private.")] = False,
    licence: Annotated[Optional[str], typer.Option("--license", metavar="ID", help="With --push-to-hub, where the teacher's is unknown: mit, other.")] = None,  # noqa: UP045
    classes: Classes = None,
    reader: ReaderOption = None,
) -> None:
    """Write model.safetensors and other formats with config.json, each run and checked against the source network; --push-to-hub publishes them."""
    from gancompress import publishing
    from gancompress.exporter import export as write
    from gancompress.runs import newest_run

    source = student or str(newest_run())
    if out is None and not Path(source).is_dir():
        raise UsageError("--out DIR is needed where the source is no run folder")
    options = _reader_options(classes, reader)
    names = tuple(name.strip() for name in formats.split(",") if name.strip())
    if push_to_hub and "safetensors" not in names:
        raise UsageError(f"--push-to-hub {push_to_hub}: --format {formats} has no safetensors, which is what loads from the Hub", "--format safetensors,onnx")
    publication = publishing.prepare(source, push_to_hub, private=private, licence=licence, options=options)  # refused before anything is written
    target = write(
        source, out or Path(source) / "export", dtype, options,
        formats=names, noise=noise, int8=int8, calibrate=calibrate, feature_extractor=feature_extractor, keys=keys,
    )  # fmt: skip
    load = f'load: gancompress.load("{target}")' if "safetensors" in names else f"checked: {target / 'parity.json'}"
    typer.echo(f"exported: {target}   {load}")
    if publication:
        typer.echo(f'published: {publishing.publish(publication, target)}   load: gancompress.load("{push_to_hub}")')


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
    out: NewFolder = Path("gancompress-quickstart"),
) -> None:
    """Compress the bundled MNIST teacher, measure and export it: no network, no data, no GPU, about two minutes."""
    from gancompress.quickstart import run

    run(out)


@app.command()
def toy(
    name: Annotated[Optional[str], typer.Argument(metavar="[ring|grid]", help="The 2D Ring of 8 modes or the 2D Grid of 25; default: both.")] = None,  # noqa: UP045
    out: NewFolder = Path("gancompress-toy"),
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
def env(
    fetch_weights: Annotated[bool, typer.Option("--fetch-weights", help="Download and check what eval needs: Inception for FID, LPIPS for PPL.")] = False,
) -> None:
    """Print what a bug report needs; with --fetch-weights get the weights that measuring needs."""
    from gancompress import screens

    if fetch_weights:
        from gancompress.weights import fetch_all

        for path in fetch_all():
            typer.echo(f"weights: {path}")
        return
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
