"""The student's architecture: how wide, of which family, and what it starts from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancompress.config import Recipe
from gancompress.cost import Cost, gan_cost, generator_cost
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family
from gancompress.loading import load_gan
from gancompress.runs import CRITIC_BACK, STUDENT_BACK, differences
from gancompress.scaling import initialise_from
from gancompress.unpickle import open_checkpoint

#: the class embedding of a tinygan generator
EMBEDDING = "embedding.weight"
#: how a student begins; anything else is a finished one to start from
INITS = ("random", "slice", "top-magnitude")


def parse_target(text: str, unit: str) -> float:
    """``500k``, ``2.5M``, ``1MB``, ``1MiB``, ``800000``; the unit (such as B) may follow the multiplier."""
    match = re.fullmatch(rf"([\d.]+)\s*(?:([kKmMgG])(i(?=B))?)?(?:{unit})?", text.strip())
    try:
        if match:
            return float(match.group(1)) * (1024 if match.group(3) else 1000) ** " kmg".index((match.group(2) or " ").lower())
    except ValueError:
        pass
    raise UsageError(f"target {text!r}: expected a number such as 500k or 2M")


def ch_mul_for(family: Family, arch: Any, cost: Callable[[Cost], float], limit: float, what: str) -> float:
    """The largest ch_mul in (0, 1] whose generator stays within ``limit``, to a thousandth.

    Raises:
        UsageError: even the narrowest student is above it.
    """
    low, high = 0, 1000
    if cost(generator_cost(family, arch)) <= limit:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(generator_cost(family, family.scale(arch, middle / 1000))) <= limit else (low, middle)
    if low == 0:
        least = cost(generator_cost(family, family.scale(arch, 0.001)))
        raise UsageError(f"{what}: not even one channel a layer comes down to {limit:,.0f}; the least is {least:,.0f}")
    return low / 1000


def target_width(teacher: GAN | None, family: Family, arch: Any, params: str | None, macs: str | None, size: str | None) -> tuple[float, str] | None:
    """(ch_mul, sentence for the plan) of the one target given, or None."""
    given = [(n, v) for n, v in (("--target-params", params), ("--target-macs", macs), ("--target-size", size)) if v is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"{given[0][0]} and {given[1][0]}: give one target")
    name, text = given[0]
    costs: dict[str, Callable[[Cost], float]] = {
        "--target-params": lambda c: c.parameters,
        "--target-macs": lambda c: c.macs_in,
        "--target-size": lambda c: c.bytes,
    }
    if name == "--target-macs" and text.strip()[-1:] in ("x", "×"):
        times = parse_target(text.strip()[:-1], "")
        if times < 1:
            raise UsageError(f"{name} {text}: a student has fewer multiply-adds than its teacher; 4x means a quarter")
        limit = (gan_cost(teacher) if teacher else generator_cost(family, arch)).macs_in / times
    else:
        limit = parse_target(text, "B" if name == "--target-size" else "(?:MACs)?")
    ch_mul = ch_mul_for(family, arch, costs[name], limit, f"{name} {text}")
    return ch_mul, f"{name} {text}: ch_mul {ch_mul:g} chosen"


def translators() -> list[str]:
    """Families whose generators take images."""
    return sorted(name for name, family in FAMILIES.items() if "nc_in" in {f.name for f in dataclasses.fields(family.Arch)})


def student_arch(recipe: Recipe, teacher: GAN | None, images_nc: int | None) -> tuple[Family, Any, Any]:
    """(family, arch at full width, arch at ch_mul) of the student, each with the fields set by hand."""
    name = recipe.student.family or (teacher.family.name if teacher else None)
    if name is None:
        raise UsageError("no teacher and no architecture", "name the student's: --arch dcgan student.arch.width=64")
    if name == "module":
        name = "dcgan"
    if name not in FAMILIES:
        raise UsageError(f"no family {name!r}", f"families: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if teacher and bool(teacher.arch.nz) == (name in (translate := translators())):
        takes = ("latents", "translates images") if teacher.arch.nz else ("images to translate", "takes latents")
        hint = f"families that translate: {', '.join(translate)} (--student), by the recipes portable-i2i and mse; for others, a teacher that takes latents"
        raise UsageError(f"{teacher.source} takes {takes[0]}, and family {name}, the student's, {takes[1]}", hint)
    if teacher and teacher.family.name == name:
        full = teacher.arch
    elif teacher:
        shared = {"resolution", "nc", "nc_in", "nz", "classes"} & {f.name for f in dataclasses.fields(family.Arch)}
        full = family.build_arch(None, {k: getattr(teacher.arch, k) for k in shared if hasattr(teacher.arch, k)})
    else:
        full = family.build_arch(None, ({"nc": images_nc} if images_nc else {}) | recipe.student.arch)
    own = family.build_arch(full, recipe.student.arch) if recipe.student.arch else full
    wanted = recipe.student
    scaled = own if exact_widths(recipe) else family.scale(own, wanted.ch_mul)
    if wanted.d_ch_mul is not None:
        critic = vars(family.scale(own, wanted.d_ch_mul))
        scaled = dataclasses.replace(scaled, **{key: value for key, value in critic.items() if key.startswith("d_")})
    return family, own, scaled


def exact_widths(recipe: Recipe) -> bool:
    """Widths given by hand are meant as they stand; ch_mul then says nothing."""
    return any(key.endswith(("width", "widths")) for key in recipe.student.arch)


def starting_point(recipe: Recipe, student: GAN) -> GAN | None:
    """The finished student to start from, of the same shapes; None where ``student.init`` names a way to begin anew.

    Raises:
        UsageError: neither a way nor a file, or a student of other shapes.
    """
    init = recipe.student.init
    if init in INITS:
        return None
    if not Path(init).expanduser().exists():
        raise UsageError(f"student.init={init!r}: expected {', '.join(INITS)}, or a run folder or file of a student to start from")
    critic = Path(init).expanduser().with_name(CRITIC_BACK) if Path(init).name == STUDENT_BACK else None
    start = load_gan(init, discriminator=str(critic) if critic and critic.is_file() else None)
    ours, theirs = ({"family": gan.family.name, **_generator_shapes(gan)} for gan in (student, start))
    if found := differences(theirs, ours):
        raise UsageError(f"student.init={init}: that student has other shapes:\n  " + "\n  ".join(found), "the same --ch-mul and --student as it had")
    return start


def _generator_shapes(gan: GAN) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(gan.arch).items() if not key.startswith("d_")}


def initialise(recipe: Recipe, teacher: GAN | None, student: GAN, start: GAN | None) -> list[str]:
    """Give the student its first weights; sentences for the plan."""
    init: Any = recipe.student.init
    if start is not None:
        student.generator.load_state_dict(start.generator.state_dict())
        return [f"the student starts from {init}"]
    if init == "random" or teacher is None:
        return []
    if any(p.is_meta for p in teacher.generator.parameters()):
        return [f"student.init={init} needs the teacher's weights, and a recording has none; it starts from random weights"]
    if teacher.family.name != student.family.name:
        return [f"student.init={init} needs a teacher of the student's family; it starts from random weights"]
    try:
        initialise_from(teacher.generator, student.generator, student.family.axes(student.arch, "generator"), init)
    except (KeyError, RuntimeError):
        raise UsageError(f"student.init={init}: the student's layers are not the teacher's with fewer channels", "student.init=random") from None
    return []


def given_embedding(recipe: Recipe, student: GAN) -> Tensor | None:
    """``student.class_embedding`` (classes, size), float32; None where none is given.

    Raises:
        UsageError: the student has no such embedding, or one of another shape, or not every value is finite.
        MissingError: no such file. CheckpointError: it is damaged, or no single array of numbers.
    """
    source = recipe.student.class_embedding
    if source is None:
        return None
    what = f"student.class_embedding={source}"
    if student.family.name != "tinygan" or not student.arch.classes:
        kind = "conditional" if student.arch.classes else "unconditional"
        raise UsageError(f"{what}: this student is of family {student.family.name}, {kind}; only a conditional tinygan has a class embedding")
    found = _matrix(Path(source).expanduser())
    if found.shape != (wanted := (student.arch.classes, student.arch.embedding)):
        fits = found.ndim == 2 and len(found) == student.arch.classes
        hint = f"student.arch.embedding={found.shape[1]} makes one of that size" if fits else ""
        raise UsageError(f"{what}: its shape is {tuple(found.shape)}, expected {wanted} (classes, size of the embedding)", hint)
    if not bool(torch.isfinite(found).all()):
        raise UsageError(f"{what}: not every value is a finite number")
    return found


def _matrix(path: Path) -> Tensor:
    """The one array of a .npy or .safetensors file, as float32."""
    if path.suffix != ".npy":
        content = open_checkpoint(path).content
        tensors = content if isinstance(content, dict) else {}
        if len(tensors) != 1 or not isinstance(found := next(iter(tensors.values())), Tensor) or not found.is_floating_point():
            raise CheckpointError(f"{path}: expected one tensor of real numbers, found {', '.join(map(str, list(tensors)[:5])) or 'none'}")
        return found.float()
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim more than there is
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged, or no array of numbers ({error})") from None
    if array.dtype.kind != "f":
        raise CheckpointError(f"{path}: expected real numbers, found {array.dtype}")
    return torch.from_numpy(array.astype(np.float32))
