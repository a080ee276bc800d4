"""What benchmarks/training.py measures: the families' sizes, the recipes that go with them, and the run of one recipe on one family."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
import torch
from plain_loops import Draw, Drawn

from gancompress.checkpoint import save_networks
from gancompress.data import Batches, Images
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.loop import Trainer
from gancompress.planning import Plan, make_plan
from gancompress.request import Request
from gancompress.running import _batches

#: images of the data set that stands for real ones: noise, which takes as long
DATA = 256
#: batches that are drawn once and reused in the row of a teacher's pool
POOL = 8
#: by size: (fields of the teacher, batch size) of each family; full: the papers' shapes
SIZES: dict[str, dict[str, tuple[dict[str, Any], int]]] = {
    "small": {
        "dcgan": ({"resolution": 64, "nc": 3, "width": 16}, 16),
        "mlp": ({"resolution": 32, "width": 256}, 16),
        "unet": ({"resolution": 64, "width": 16}, 1),
        "resnet": ({"resolution": 64, "width": 16}, 1),
        "pggan": ({"resolution": 32, "width": 32, "nz": 64}, 8),
        "sngan": ({"resolution": 32, "g_widths": (32,) * 4, "d_widths": (32,) * 4}, 16),
        "sngan24": ({"width": 16, "nc": 3}, 16),
        "tinygan": ({"resolution": 64, "classes": 10, "width": 16, "d_width": 16}, 8),
        "biggan": ({"resolution": 32, "classes": 10, "width": 16, "d_width": 16}, 8),
        "biggan_deep": ({"resolution": 32, "classes": 10, "width": 16, "d_width": 16}, 8),
        "stylegan2": ({"resolution": 64, "width": 32, "nz": 64, "w_dim": 64}, 4),
        "stylegan3": ({"resolution": 32, "width": 16, "nz": 64, "w_dim": 64, "margin": 4}, 4),
    },
    "full": {
        "dcgan": ({"resolution": 64, "nc": 1, "width": 256}, 32),
        "mlp": ({"resolution": 32, "width": 512}, 128),
        "unet": ({"resolution": 256}, 1),
        "resnet": ({"resolution": 256}, 1),
        "pggan": ({"resolution": 256}, 16),
        "sngan": ({"resolution": 32}, 128),
        "sngan24": ({}, 64),
        "tinygan": ({"resolution": 128, "classes": 1000}, 32),
        "biggan": ({"resolution": 128, "classes": 1000}, 64),
        "biggan_deep": ({"resolution": 128, "classes": 1000}, 32),
        "stylegan2": ({"resolution": 256}, 32),
        "stylegan3": ({"resolution": 256}, 16),
    },
}
TRANSLATORS = ("unet", "resnet")
RECIPES = ("mse", "joint", "scratch", "akdg", "dgl", "imitate", "tinygan-blackbox", "portable-i2i")
#: what a recipe of long runs and large batches needs to show its whole step at once; the batch is the size's
AT_ONCE: dict[str, list[tuple[str, Any]]] = {
    "dgl": [("weights.guide_from_kimg", 0)],
    "imitate": [("weights.resolutions", [8, 16])],
}


class Switch(NamedTuple):
    """A row beside the recipe as it is: what it changes, given the batch size, for which recipes, and whether the networks are compiled."""

    changes: Callable[[int], list[tuple[str, Any]]]
    recipes: Container[str] = RECIPES
    compiled: bool = False


#: a speed switch is one line here
SWITCHES: dict[str, Switch] = {
    "reused": Switch(lambda batch: [("schedule.teacher_pool", POOL * batch)], ("mse",)),
    "tf32": Switch(lambda _: [("precision", "tf32")]),
    "bf16": Switch(lambda _: [("precision", "bf16")]),
    "fp16": Switch(lambda _: [("precision", "fp16")]),
    "compile": Switch(lambda _: [], compiled=True),
    "bf16-compile": Switch(lambda _: [("precision", "bf16")], compiled=True),
}


def pairs_of(families: list[str], recipes: list[str]) -> list[tuple[str, str]]:
    """(family, recipe) that belong together; others are told of by the plan that refuses them."""
    conditional = {family for family, (fields, _) in SIZES["small"].items() if fields.get("classes")}

    def belong(family: str, recipe: str) -> bool:
        if family in TRANSLATORS:
            return recipe in ("mse", "portable-i2i")
        return recipe != "portable-i2i" and (recipe != "tinygan-blackbox" or family in conditional)

    return [(family, recipe) for family in families for recipe in recipes if belong(family, recipe)]


def random_gan(family: str, fields: dict[str, Any]) -> GAN:
    """A GAN of random weights, frozen."""
    record = FAMILIES[family]
    arch = record.build_arch(None, fields)
    torch.manual_seed(0)
    return GAN(record, arch, record.generator(arch), record.discriminator(arch) if record.has_discriminator else None).freeze()


def write_case(family: str, fields: dict[str, Any], folder: Path) -> tuple[str, str]:
    """(checkpoint of a teacher, data set of noise at its resolution)."""
    gan = random_gan(family, fields)
    teacher, data = folder / f"{family}.safetensors", folder / f"{family}.npz"
    save_networks(teacher, gan.family, gan.arch, gan.networks, {})
    return str(teacher), write_data(gan.arch, data, family in TRANSLATORS)


def write_data(arch: Any, path: Path, paired: bool = False) -> str:
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (2, DATA, arch.resolution, arch.resolution, arch.nc), dtype=np.uint8)
    arrays = {"source": images[0], "target": images[1]} if paired else {"x_train": images[0]}
    if arch.classes:
        arrays["y_train"] = drawn.integers(0, arch.classes, DATA)
    np.savez(path, **arrays)
    return str(path)


def plan_of(teacher: str, data: str, recipe: str, batch: int, device: torch.device, changes: Iterable[tuple[str, Any]] = (), compiled: bool = False) -> Plan:
    """The run of a recipe, its networks on the device."""
    overrides = [("schedule.batch_size", batch), ("schedule.accumulate", 1), *AT_ONCE.get(recipe, []), *changes]
    given = {} if recipe == "mse" and Path(teacher).stem not in TRANSLATORS else {"data": data}
    name = "dgl-biggan" if recipe == "dgl" and "biggan" in Path(teacher).name else recipe
    out = Path(mkdtemp(dir=Path(teacher).parent)) / "run"
    plan = make_plan(Request(teacher, name, overrides=overrides, out=out, device=str(device), compiled=compiled, **given))
    for part in (plan.teacher, plan.student, plan.loss):
        if part is not None:
            part.to(device)
    return plan


def trainer_of(plan: Plan) -> tuple[Trainer, Batches]:
    """As a run begins."""
    return Trainer(plan.trained, plan.loss, plan.recipe), _batches(plan, plan.recipe.schedule)


def drawing(plan: Plan) -> Draw:
    """A plain loop's batches: latents drawn on the device, real images in memory there as floats; a translator's inputs and targets likewise."""
    arch, n, device = plan.student.arch, plan.recipe.schedule.batch_size, plan.device
    source = plan.images
    if isinstance(source, Images):
        found, labels = source[torch.arange(len(source))]
        images = found.float().div(127.5).sub(1).to(device)
        labels = labels.to(device) if labels is not None and arch.classes else None
    elif source is not None:
        inputs, targets = (side.to(device) for side in source.take(0, DATA, 0))

    def draw() -> Drawn:
        if not arch.nz:
            at = torch.randint(DATA, (n,), device=device)
            if source is None:
                return noise[at], None, noise[at], None, noise[at], None
            beside = inputs[at] if source.beside else None
            return inputs[at], beside, targets[at], beside, inputs[at], beside
        z, z2 = torch.randn(2, n, arch.nz, device=device).unbind()
        y, y2 = torch.randint(arch.classes, (2, n), device=device).unbind() if arch.classes else (None, None)
        if source is None:
            return z, y, z, y, z2, y2
        at = torch.randint(DATA, (n,), device=device)
        return z, y, images[at], labels[at] if labels is not None else None, z2, y2

    noise = torch.randn(DATA, arch.nc_in, arch.resolution, arch.resolution, device=device) if not arch.nz and source is None else torch.empty(0)
    return draw
