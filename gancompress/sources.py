"""Where a source is: its files, here or on the Hub, and the settings that training code left beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from gancompress.checkpoint import read_json
from gancompress.contents import plain
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.hub import SCHEME, SUFFIXES, fetch, parse
from gancompress.layers import natural_key
from gancompress.unpickle import Opened, open_checkpoint


def resolve(source: str) -> tuple[Path, str]:
    """(path, the same source pinned to a commit and file if it lies on the Hub). What is here comes before what is there."""
    if source.startswith("module:"):
        raise UsageError(f"{source}: a module of your own is no file to look into", "distill, eval and sample take it")
    if source.startswith("sample:"):
        name = source.removeprefix("sample:")
        folder = Path(str(resources.files("gancompress"))) / "samples"
        path = folder / f"{name}.safetensors"
        if not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
            known = ", ".join(f"sample:{p.stem}" for p in sorted(folder.glob("*.safetensors")))
            raise MissingError(f"no bundled teacher {source!r}", f"there is: {known}")
        return path, source
    path, uri = Path(source), "://" in source
    try:
        path = path.expanduser()
        if path.exists() and not uri:
            return path, source
    except (OSError, RuntimeError) as error:  # too long, not ours to look into; no such user
        raise MissingError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if not (remote := parse(source)):
        hint = f"give a checkpoint file, a directory with G and D, sample:dcgan-mnist, or {SCHEME}owner/name for the Hugging Face Hub"
        raise MissingError(f"{source}: no such file or directory", hint)
    try:
        path, pinned = fetch(remote)
    except GanCompressError as error:
        raise type(error)(f"{source}: {'' if uri else 'no such file or directory; and '}{error}", error.hint) from None
    return path, str(pinned)


def files_of(folder: Path) -> list[Path]:
    """The files of a directory to read: a run's or an export's own, else the newest of each numbered series."""
    for own in ("model.safetensors", "student.safetensors"):
        if (folder / own).is_file():
            extra = folder / "discriminator.safetensors"
            return [folder / own, *([extra] if extra.is_file() else [])]
    if (folder / "state.pt").is_file() and (folder / "recipe.yaml").is_file():
        raise MissingError(f"{folder}: this run is not finished; it has no student.safetensors yet", "go on with the command it was started with")
    newest: dict[str, Path] = {}
    for path in sorted((p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=lambda p: natural_key(p.name)):
        series = re.sub(r"^(iter_\d+|latest)_net_", "#_net_", path.name)  # pix2pix keeps latest_net_G.pth beside 200_net_G.pth
        newest[re.sub(r"\d+", "#", series)] = path
    if not newest:
        raise MissingError(f"{folder}: no checkpoint in this directory", f"looked for {', '.join('*' + s for s in SUFFIXES)}")
    return list(newest.values())


def open_all(files: list[Path], optional: set[Path]) -> tuple[dict[Path, Opened], dict[Path, GanCompressError]]:
    """Every file's content, and why those of ``optional`` have none that cannot be opened."""
    opened: dict[Path, Opened] = {}
    unread: dict[Path, GanCompressError] = {}
    for file in files:
        try:
            opened[file] = open_checkpoint(file)
        except GanCompressError as error:
            if file not in optional:
                raise
            unread[file] = error
    return opened, unread


def config_beside(files: list[Path], opened: Mapping[Path, Opened]) -> dict[str, Any]:
    """Settings kept in files of their own: config.json, generator_config.json, or a checkpoint without weights."""
    found: dict[str, Any] = {}
    for path in sorted({p for f in files for p in f.parent.glob("*config*.json")}):
        try:
            found |= plain(read_json(path, most=1 << 20))
        except (OSError, ValueError):
            continue
    # BigGAN-PyTorch saves its arguments beside the weights, in state_dict.pth or state_dict_best0.pth
    beside = {p for f in files for p in f.parent.glob("state_dict*.pth") if p not in opened and p.stat().st_size < 1 << 20}
    for content in [*opened.values(), *(o for p in sorted(beside) if (o := _opened_or_none(p)))]:
        if isinstance(content.content, dict) and not any(isinstance(v, Tensor | dict) and k != "config" for k, v in content.content.items()):
            found |= plain(content.content.get("config"))
    return found


def _opened_or_none(path: Path) -> Opened | None:
    """A file that nobody asked for, unless it cannot be read."""
    try:
        return open_checkpoint(path)
    except GanCompressError:
        return None
