"""A network of an architecture we do not know: a factory in the user's own Python file, which may therefore run."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.gan import GAN, Family


@dataclass(frozen=True)
class Arch:
    """What a black box shows of itself."""

    resolution: int
    nz: int
    nc: int
    classes: int = 0


class BlackBox(nn.Module):
    """Calls the user's module as ``module(z)`` or ``module(z, label)``, with z as (N, nz) or, if it wants that, (N, nz, 1, 1)."""

    def __init__(self, module: nn.Module, classes: int, spatial: bool) -> None:
        super().__init__()
        self.module, self.classes, self.spatial = module, classes, spatial

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        z = inputs[:, :, None, None] if self.spatial else inputs
        return self.module(z, condition) if self.classes else self.module(z)


def _sample(arch: Arch, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    z = torch.randn(n, arch.nz, generator=rng)
    return z, torch.randint(arch.classes, (n,), generator=rng) if arch.classes else None


def _no(*_: Any) -> Any:
    raise UsageError("the shapes of a --teacher-module are not known, so no student can be made like it", "name one: --student dcgan")


FAMILY = Family("module", Arch, _no, _no, _no, _sample, _no, _no, _no, _no, has_discriminator=False)


def load_module(spec: str, options: Mapping[str, Any]) -> GAN:
    """``file.py:factory`` -> a frozen GAN without discriminator. The factory takes nothing and returns an nn.Module that maps
    z (N, nz) to images (N, C, H, H) in [-1, 1]. nz is the option ``nz`` or the module's attribute nz, z_dim or latent_dim;
    ``classes`` likewise (0: unconditional).

    Raises:
        MissingError: no such file. UsageError: no such factory, nz unknown. GanCompressError: the user's code failed.
    """
    for key, value in options.items():
        if key not in ("nz", "classes"):
            raise UsageError(f"{spec}: a module of your own takes no option {key!r}", "options: classes, nz")
        if not str(value).isdigit():
            raise UsageError(f"{key}={value!r}: expected a whole number")
    module = make_module(spec)
    nz = options.get("nz") or next((getattr(module, a) for a in ("nz", "z_dim", "latent_dim") if hasattr(module, a)), None)
    if nz is None:
        raise UsageError(f"{spec}: its latent size is not known", "give the module an attribute nz, or --reader nz=N")
    classes = options.get("classes", getattr(module, "classes", 0))
    with running(spec):
        return _probe(module, int(nz), int(classes), f"module:{spec}").freeze()


def make_module(spec: str) -> nn.Module:
    """What ``file.py:factory`` returns, in float32 and in evaluation mode.

    Raises:
        MissingError: no such file. UsageError: no such factory, or it makes no module. GanCompressError: the user's code failed.
    """
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text)
    if not path_text or not name:
        raise UsageError(f"{spec!r}: expected file.py:factory")
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    loader = importlib.util.spec_from_file_location(f"gancompress_user_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UsageError(f"{path}: not a Python file")
    code = importlib.util.module_from_spec(loader)
    with running(spec):
        loader.loader.exec_module(code)
        factory = getattr(code, name, None)
        if not callable(factory):
            raise UsageError(f"{path}: no function {name!r} in it")
        module = factory()
        if not isinstance(module, nn.Module):
            raise UsageError(f"{spec}: it returned {type(module).__name__}, expected a torch.nn.Module")
        return module.float().eval()


@contextmanager
def running(spec: str) -> Iterator[None]:
    """Code of ``file.py:factory`` runs inside: what lies beside the file can be imported, and a failure is told with its place.

    Raises:
        GanCompressError: the user's code failed.
    """
    sys.path.insert(0, str(Path(spec.rpartition(":")[0]).parent.resolve()))
    try:
        yield
    except GanCompressError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise GanCompressError(f"{spec} failed: {type(error).__name__}: {error} ({where.filename}:{where.lineno})") from error
    finally:
        sys.path.pop(0)


@torch.no_grad()
def _probe(module: nn.Module, nz: int, classes: int, source: str) -> GAN:
    """Find out how it likes its latents and what it returns."""
    z, label = torch.zeros(2, nz), torch.zeros(2, dtype=torch.long) if classes else None
    first: Exception | None = None
    for spatial in (False, True):
        box = BlackBox(module, classes, spatial)
        try:
            images = box(z, label)
        except Exception as error:  # it may want the other shape
            first = first or error
            continue
        if isinstance(images, Tensor) and images.ndim == 4 and images.shape[2] == images.shape[3] > 1:
            return GAN(FAMILY, Arch(images.shape[2], nz, images.shape[1], classes), box, None, source)
    if first is not None:
        raise first
    raise UsageError(f"{source}: it must return square images (N, C, H, H)")
