"""What the rest of the project talks about: a family, a GAN of it, and a batch."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gancompress.errors import UsageError

Part = Literal["generator", "discriminator"]
StateDict = dict[str, Tensor]
#: what an axis of a tensor holds: None: what is never sliced; "g": the channels of group g, one each; else segments in their
#: order, (group, positions per channel) or (None, length), such as (("g", 16),) or (("a", 1), ("b", 1)) or (("g", 1), (None, 3))
Axis = str | tuple[tuple[str | None, int], ...] | None
Axes = dict[str, tuple[Axis, ...]]


class Mismatch(Exception):
    """A state dict is not of a family. ``score`` in [0, 1] tells how near it came, for the error message.

    ``missing``, ``unexpected``: further keys to name, where the reader knows them.
    """

    def __init__(self, reason: str, score: float = 0.0, *, missing: Sequence[str] = (), unexpected: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.score = score
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)


@dataclass(frozen=True)
class Reading:
    """One network found in a foreign state dict.

    ``fields``: what it fixes of the family's Arch; ``state``: its tensors under our names; ``assumptions``: what the file
    cannot tell and the reader took.
    """

    part: Part
    fields: dict[str, Any]
    state: StateDict
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A GAN architecture as a record of functions; one file of ``families/`` defines each.

    ``Arch``: a frozen dataclass that fixes every shape. It has at least ``resolution``, ``nc`` (image channels), ``nz``
    (latent size; 0 where the input is an image) and ``classes`` (0: unconditional).
    """

    name: str
    Arch: type[Any]
    generator: Callable[[Any], nn.Module]
    discriminator: Callable[[Any], nn.Module]
    #: foreign state dict, reader options -> Reading; raises Mismatch. ``options["config"]``, where it is there, holds settings found
    #: beside the weights (config.json, pickled arguments, single tensors): hints that may hold anything
    read: Callable[[StateDict, Mapping[str, Any]], Reading]
    #: (arch, n, rng) -> (inputs, condition), both on the CPU
    sample: Callable[[Any, int, torch.Generator], tuple[Tensor, Tensor | None]]
    #: (arch, ch_mul) -> arch with every hidden width scaled
    scale: Callable[[Any, float], Any]
    #: (arch or None, {field: value}) -> arch; takes shorthands such as ``width`` beside the fields themselves
    build_arch: Callable[[Any, Mapping[str, Any]], Any]
    #: (arch, part) -> for each tensor of that network, the channel group of each axis (None: never sliced)
    axes: Callable[[Any, Part], Axes]
    #: arch -> arch whose discriminator has no BatchNorm, for gradient penalties; a minibatch deviation stays, for PGGAN and StyleGAN2 take theirs through it
    batch_free: Callable[[Any], Any]
    #: options of ``read``: what no file tells, such as classes
    options: frozenset[str] = frozenset()
    #: whether a discriminator can be made of an Arch; False for what is only ever a teacher's generator
    has_discriminator: bool = True
    #: the game its discriminators are trained with, as a recipe takes it where it names none: a key of losses.gan.GAMES
    game: str = "nonsaturating"
    #: fields of Arch that change no tensor, such as a truncation: they may be given for any source
    settings: frozenset[str] = frozenset()


@dataclass
class GAN:
    """A generator and, where there is one, its discriminator. Teacher and student are both this.

    ``generator(inputs, condition) -> images (N, C, H, W) in [-1, 1]``; ``discriminator(images, condition) -> logits (N,)``
    ((N, patches) where it judges patches, as those of image translators do).
    """

    family: Family
    arch: Any
    generator: nn.Module
    discriminator: nn.Module | None = None
    source: str = ""
    #: (n, rng) -> input images of a translator, from a data set; without it ``sample`` gives noise images
    inputs: Callable[[int, torch.Generator], Tensor] | None = None

    def freeze(self) -> GAN:
        """Evaluation mode, no gradients: what a teacher is."""
        for net in self.networks.values():
            net.eval().requires_grad_(False)
        return self

    def to(self, device: torch.device | str) -> GAN:
        for net in self.networks.values():
            net.to(device)
        return self

    @property
    def networks(self) -> dict[Part, nn.Module]:
        found: dict[Part, nn.Module] = {"generator": self.generator}
        if self.discriminator is not None:
            found["discriminator"] = self.discriminator
        return found

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n latents (and labels, for a conditional family) or input images drawn from ``rng``, on the CPU."""
        if self.inputs is not None:
            return self.inputs(n, rng), None
        return self.family.sample(self.arch, n, rng)

    def sha256(self) -> str:
        """Hash of every tensor of both networks, names and shapes included."""
        return state_hash({f"{p}.{k}": v for p, net in self.networks.items() for k, v in net.state_dict().items()})


def shares_latents(a: GAN, b: GAN) -> bool:
    """Whether the same latents (or input images) can be given to both and make comparable images."""
    return all(getattr(a.arch, k) == getattr(b.arch, k) for k in ("nz", "classes", "resolution", "nc"))


class BothWays(nn.Module):
    """Two translators trained as one: called it is the one there, ``back`` is the other direction's."""

    def __init__(self, there: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.there, self.back = there, back

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        images: Tensor = self.there(inputs, condition)
        return images


def one_way(generator: nn.Module) -> nn.Module:
    """The network that makes the images when ``generator`` is called: of two translators the one there."""
    return generator.there if isinstance(generator, BothWays) else generator


def state_hash(state: StateDict) -> str:
    """sha256 over names, shapes and bytes of a state dict, independent of order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Batch:
    """One batch, a function of (seed, step, substep) alone. Real and teacher images are made when first asked for."""

    inputs: Tensor  # (N, nz), or a translator's images (N, nc_in, H, W)
    condition: Tensor | None  # labels (N,) int64; of a translator whose discriminator sees inputs beside outputs: the inputs
    step: int  # of the student's optimiser, from 0
    kimg: float  # thousands of images its optimiser has seen before this step
    draw_real: Callable[[], tuple[Tensor, Tensor | None]] = field(repr=False)
    draw_teacher: Callable[[], Tensor] = field(repr=False)
    draw_unpaired: Callable[[], tuple[Tensor, Tensor | None]] = field(repr=False)
    paired: bool = False  # ``real`` is what a translator is to make of ``inputs``
    progress: float = 0.0  # share of the run's steps done before this one
    has_real: bool = True  # whether ``real`` is of a data set, not the teacher's samples in its stead

    @cached_property
    def real_and_condition(self) -> tuple[Tensor, Tensor | None]:
        return self.draw_real()

    @property
    def real(self) -> Tensor:
        """(N, C, H, W) in [-1, 1]: real images, or the teacher's samples where no data set was given."""
        return self.real_and_condition[0]

    @property
    def real_condition(self) -> Tensor | None:
        return self.real_and_condition[1]

    @cached_property
    def teacher(self) -> Tensor:
        """(N, C, H, W) in [-1, 1]: the teacher's images of ``inputs`` and ``condition``."""
        return self.draw_teacher()

    @cached_property
    def unpaired(self) -> tuple[Tensor, Tensor | None]:
        """The teacher's images (N, C, H, W) of latents of its own, independent of ``inputs``, and their labels (N,)."""
        return self.draw_unpaired()


class Translation(Protocol):
    """Inputs of a translator and targets, as an endless sequence. ``paired``: a target is that of the input at its place; ``beside``:
    discriminators see inputs beside outputs."""

    paired: bool
    beside: bool

    def take(self, start: int, count: int, *seed: int) -> tuple[Tensor, Tensor]: ...


def parse_arch(arch_type: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check and convert ``{field: value}`` (values may be text) against a family's Arch.

    Raises:
        UsageError: an unknown field (the nearest is offered) or a value of the wrong type.
    """
    hints = typing.get_type_hints(arch_type)
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            raise UsageError(
                f"no field {key!r} in this architecture" + (f"; did you mean {near[0]!r}?" if near else ""),
                f"fields: {', '.join(f.name for f in dataclasses.fields(arch_type))}",
            )
        out[key] = _convert(key, value, hints[key])
    return out


def _convert(key: str, value: Any, kind: Any) -> Any:
    text = str(value).strip()
    if kind is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
        return text.lower() in ("true", "yes", "1")
    if kind is int and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(text)
        except ValueError:
            pass
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(text)
        except ValueError:
            pass
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else text.strip("[]()").split(",")
        try:
            return tuple(int(v) for v in items if str(v).strip())
        except ValueError:
            pass
    if typing.get_origin(kind) is Literal and text in typing.get_args(kind):
        return text
    if kind is str or (isinstance(kind, types.UnionType) and str in kind.__args__):
        return text
    names = " | ".join(typing.get_args(kind)) if typing.get_origin(kind) is Literal else getattr(kind, "__name__", kind)
    raise UsageError(f"architecture field {key}={value!r}: expected {names}")
