"""The recipe: every number of a run, from one YAML file, checked before anything is built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gancompress.errors import UsageError

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Student(_Model):
    """What is trained. ``family`` null: the teacher's; ``arch``: fields of that family's Arch set by hand.

    ``d_ch_mul``: width of its own discriminator, where it has one; null: as the generator's. ``init``: random, or from the teacher by slice
    or top-magnitude, or a finished run (its folder, or a file) to start from. ``class_embedding``: a .npy or .safetensors file of
    (classes, size) vectors that a tinygan's class embedding starts from.
    """

    family: str | None = None
    ch_mul: Annotated[float, Field(gt=0, le=1)] = 1.0
    arch: dict[str, Any] = {}
    d_ch_mul: Annotated[float, Field(gt=0, le=1)] | None = None
    init: str = "random"
    class_embedding: str | None = None


class Optim(_Model):
    """Adam for the student and for the critics; ``decay`` of both rates to zero, from the share ``decay_from`` of the run on."""

    g_lr: Annotated[float, Field(gt=0, le=1)]
    g_betas: tuple[Beta, Beta]
    d_lr: Annotated[float, Field(gt=0, le=1)] = 2e-4
    d_betas: tuple[Beta, Beta] = (0.5, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def share(self, progress: float) -> float:
        """Of the rates, where ``progress`` in [0, 1] of the run is done."""
        done = max(0.0, progress - self.decay_from) / (1 - self.decay_from)
        return {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[self.decay]


class Schedule(_Model):
    """Lengths in kimg: thousands of images shown to the student's optimiser (batch_size each step).

    ``accumulate``: parts of a batch that pass through the networks one after the other. ``ema_start_kimg``: until then the average is
    the student. ``standing_stats``: batches over which BatchNorm statistics of the average are taken at the end (0: as they are).
    """

    kimg: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)] = 1
    d_steps: Annotated[int, Field(ge=1)] = 1
    teacher_pool: Annotated[int, Field(ge=0)] = 0
    ema_kimg: Annotated[float, Field(ge=0)]
    ema_rampup: Annotated[float, Field(ge=0)]
    ema_start_kimg: Annotated[float, Field(ge=0)] = 0.0
    standing_stats: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _whole_parts(self) -> Schedule:
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} does not divide into accumulate={self.accumulate} equal parts")
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of the student: kimg rounded up to whole batches."""
        return max(1, -(-round(self.kimg * 1000) // self.batch_size))


class Data(_Model):
    """``mirror``: real images are flipped left to right at random. Of a translator's images: ``paired``: each input has a target of its
    own; ``jitter``: images are loaded so many times larger, and cropped at random."""

    mirror: bool = False
    paired: bool = True
    jitter: Annotated[float, Field(ge=1, le=2)] = 1.0


class Output(_Model):
    """How often the run writes: log lines, pictures and saved states, in kimg."""

    log_kimg: Annotated[float, Field(gt=0)]
    pictures_kimg: Annotated[float, Field(gt=0)]
    save_kimg: Annotated[float, Field(gt=0)]


class Recipe(_Model):
    """One run's numbers. ``weights`` is checked by the loss it belongs to; ``precision``: of the networks' arithmetic (docs/speed.md)."""

    paper: str
    loss: str
    weights: dict[str, Any] = {}
    student: Student
    optim: Optim
    schedule: Schedule
    data: Data = Data()
    output: Output
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    seed: Annotated[int, Field(ge=0)] = 0


def recipe_dir() -> Path:
    """Where the recipes are: in the installed package, or beside it in a clone or an editable install."""
    packaged = Path(str(resources.files("gancompress"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "recipes"


def recipe_names() -> list[str]:
    return sorted(p.stem for p in recipe_dir().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        UsageError: no such recipe; the nearest name is offered.
    """
    if (packaged := recipe_dir() / f"{name}.yaml").is_file() and "/" not in name:
        return packaged
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, recipe_names(), 1, 0.4)
    raise UsageError(
        f"no recipe {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), f"recipes: {', '.join(recipe_names())}, or the path of a .yaml file"
    )


def set_key(values: dict[str, Any], dotted: str, value: Any) -> None:
    """``values["a"]["b"] = value`` for ``dotted`` = "a.b"."""
    *path, last = dotted.split(".")
    for part in path:
        if values.get(part) is None:  # absent, or an empty section of the file
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise UsageError(f"{dotted}: {part!r} is a value, not a section of the recipe")
    values[last] = value


def parse_override(text: str) -> tuple[str, Any]:
    """``key=value`` of the command line; the value is read as YAML (numbers such as 1e-3 are taken by the schema)."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r}: expected key=value, for example schedule.kimg=50")
    try:
        return key.strip(), _yaml(value) if value.strip() else ""
    except ValueError:
        return key.strip(), value


def _yaml(text: str) -> Any:
    """What a YAML text holds, plain values only.

    Raises:
        ValueError: it is none, or anchors make it unfold to more than 10,000 values.
    """
    try:
        values = yaml.safe_load(text)
        left, pending = 10_000, [values]
        while pending:
            value = pending.pop()
            held = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value) if isinstance(value, list | tuple | set) else []
            pending += held
            left -= len(held)
            if left < 0:
                raise ValueError("it unfolds to more than 10,000 values")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return values


def load_recipe(name: str, overrides: Iterable[tuple[str, Any]] = ()) -> Recipe:
    """A recipe by name or path, with overrides ``("schedule.kimg", 50)`` in order, later ones first.

    Raises:
        UsageError: the file is not YAML, or any key or value is wrong (all of them are named at once).
    """
    from gancompress.losses import LOSSES

    path = recipe_path(name)
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("more than 1 MB")
        values = _yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not a recipe: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not a recipe: expected sections such as loss, student, schedule")
    for key, value in overrides:
        set_key(values, key, value)
    errors: list[str] = []
    loss = LOSSES.get(str(values.get("loss")))
    if loss is None:
        near = difflib.get_close_matches(str(values.get("loss")), LOSSES, 1)
        errors.append(f"loss: {values.get('loss')!r} is none of {', '.join(LOSSES)}" + (f"; did you mean {near[0]!r}?" if near else ""))
    else:
        try:
            values["weights"] = loss.Weights.model_validate(values.get("weights") or {}).model_dump()
        except ValidationError as error:
            errors += _explain(error, "weights.", loss.Weights)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        errors += _explain(error, "", Recipe)
    if errors:
        raise UsageError(f"{path.name}: " + "; ".join(errors), f"gancompress recipes show {path.stem} prints its keys")
    return recipe


def _explain(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
    """One sentence for each thing pydantic found, with the nearest key for a misspelt one."""
    found = []
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        owner: Any = model
        for part in loc[:-1]:
            field = getattr(owner, "model_fields", {}).get(part)
            owner = field.annotation if field else None
        known = list(getattr(owner, "model_fields", {}))
        where = prefix + ".".join(loc)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(loc[-1], known, 1)
            found.append(f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"))
        elif item["type"] == "missing":
            found.append(f"{where}: missing")
        elif item["type"] == "value_error":  # our own words; of keys that do not go together where there are several
            value = "" if isinstance(item["input"], dict) else f"={item['input']!r}"
            found.append(f"{where.rstrip('.')}{value}: {item['ctx']['error']}")
        else:
            found.append(f"{where}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return found
