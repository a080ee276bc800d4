"""Finds the networks in whatever a user calls a checkpoint, and builds them.

A source is a file, a directory holding G and D, a run folder, ``sample:NAME``, ``module:FILE.py:FACTORY`` or, on the Hugging Face Hub, ``owner/name``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancompress.checkpoint import FORMAT_VERSION, METADATA_KEY
from gancompress.contents import Content, contents, is_ema, plain, split, strip
from gancompress.errors import CheckpointError, GanCompressError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family, Mismatch, Part, Reading, StateDict
from gancompress.hub import SCHEME, SUFFIXES, fetch, parse
from gancompress.layers import natural_key
from gancompress.unpickle import Opened, open_checkpoint

SHARED_FIELDS = {"resolution", "nc", "classes"}


@dataclass(frozen=True)
class Network:
    """One network read from a file: ``where`` names the file and the place in it."""

    family: Family
    reading: Reading
    where: str
    ema: bool


@dataclass
class Found:
    """Everything a source holds; what ``inspect`` prints. ``arch`` is exact for the parts in ``networks``.

    ``pinned``: the source by a name that stays the same file, with commit and file where it lies on the Hub.
    """

    source: str
    path: Path
    container: str
    file_bytes: int
    family: Family
    arch: Any
    networks: list[Network]
    others: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    pinned: str = ""

    def network(self, part: Part, ema: bool = True) -> Network | None:
        """The network of that part: the EMA where there is one and ``ema`` is set, else the raw one."""
        here = [n for n in self.networks if n.reading.part == part]
        preferred = [n for n in here if n.ema == ema]
        return next(iter(preferred or here), None)

    @property
    def assumptions(self) -> list[str]:
        return [a for n in (self.network("generator"), self.network("discriminator")) if n for a in n.reading.assumptions]


# ------------------------------------------------------------------------------------------------------------- networks of a file


def _read_state(state: StateDict, family: str | None, options: Mapping[str, Any]) -> tuple[Family, Reading]:
    best: tuple[Family, Mismatch] | None = None
    for candidate in [FAMILIES[family]] if family else FAMILIES.values():
        try:
            return candidate, candidate.read(state, options)
        except Mismatch as error:
            if best is None or error.score > best[1].score:
                best = (candidate, error)
    assert best is not None
    raise Mismatch(f"nearest family {best[0].name}: {best[1]}", best[1].score)


def _networks(opened: Opened, path: Path, family: str | None, options: Mapping[str, Any]) -> tuple[list[Network], list[str], Mismatch | None]:
    """Every network of one file, what else is in it, and the nearest miss."""
    pending, others = contents(opened.content)
    networks: list[Network] = []
    miss: Mismatch | None = None
    while pending:
        content = pending.pop(0)
        place, state = content.place, strip(content.state)
        where = f"{path.name}:{place}" if place else path.name
        try:
            found, reading = _read_state(state, family, {**options, "config": {**content.config, **options["config"]}})
        except Mismatch as error:
            if parts := split(state):
                pending += [Content(f"{place}.{head}" if place else head, part, content.config) for head, part in parts.items()]
                continue
            others.append(f"{place or path.name}: {len(state)} tensors of no family we know")
            if miss is None or error.score > miss.score:
                miss = Mismatch(f"{where}: {error}", error.score)
            continue
        _check_values(state, path, place)
        networks.append(Network(found, reading, where, is_ema(place, path.stem)))
    return networks, others, miss


def _check_values(state: StateDict, path: Path, place: str) -> None:
    """Refuse what no trained network holds; the message has the key as the file has it."""
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        where = f"{path}: {place}.{key}" if place else f"{path}: {key}"
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where} has {tensor.dtype} values; weights are floating point (a quantised file?)")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where} has NaN or infinite values; this network diverged or the file is damaged")


# ------------------------------------------------------------------------------------------------------------------- sources


def _resolve(source: str) -> tuple[Path, str]:
    """(path, the same source pinned to a commit and file if it lies on the Hub). What is here comes before what is there."""
    if source.startswith("sample:"):
        name = source.removeprefix("sample:")
        folder = Path(str(resources.files("gancompress"))) / "samples"
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            known = ", ".join(f"sample:{p.stem}" for p in sorted(folder.glob("*.safetensors")))
            raise MissingError(f"no bundled teacher {source!r}", f"there is: {known}")
        return path, source
    path, uri = Path(source).expanduser(), source.startswith(SCHEME)
    if path.exists() and not uri:
        return path, source
    if not (remote := parse(source)):
        hint = f"give a checkpoint file, a directory with G and D, sample:dcgan-mnist, or {SCHEME}owner/name for the Hugging Face Hub"
        raise MissingError(f"{source}: no such file or directory", hint)
    try:
        path, pinned = fetch(remote)
    except GanCompressError as error:
        raise type(error)(f"{source}: {'' if uri else 'no such file or directory; and '}{error}", error.hint) from None
    return path, str(pinned)


def _files_of(folder: Path) -> list[Path]:
    """The files of a directory to read: a run's or an export's own, else the newest of each numbered series."""
    for own in ("model.safetensors", "student.safetensors"):
        if (folder / own).is_file():
            extra = folder / "discriminator.safetensors"
            return [folder / own, *([extra] if extra.is_file() else [])]
    if (folder / "state.pt").is_file() and (folder / "recipe.yaml").is_file():
        raise MissingError(f"{folder}: this run is not finished; it has no student.safetensors yet", "go on with the command it was started with")
    newest: dict[str, Path] = {}
    for path in sorted((p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=lambda p: natural_key(p.name)):
        newest[re.sub(r"\d+", "#", path.name)] = path
    if not newest:
        raise MissingError(f"{folder}: no checkpoint in this directory", f"looked for {', '.join('*' + s for s in SUFFIXES)}")
    return list(newest.values())


def _own_networks(opened: Opened, path: Path) -> tuple[list[Network], dict[str, Any]]:
    """The networks of our own safetensors file."""
    try:
        meta = json.loads(opened.metadata[METADATA_KEY])
        if meta.get("format") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: written in format {meta.get('format')}, and this gancompress reads {FORMAT_VERSION}", "pip install -U gancompress")
        family = FAMILIES[meta["family"]]
        arch = family.build_arch(None, meta["arch"])
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged or of a newer version ({error})") from None
    networks = []
    for part in ("generator", "discriminator"):
        state = {k.removeprefix(f"{part}."): v for k, v in opened.content.items() if k.startswith(f"{part}.")}
        if state:
            _check_values(state, path, part)
            fields = dataclasses.asdict(arch)
            if part == "discriminator":  # the generator's own file tells the rest
                fields = {k: v for k, v in fields.items() if k.startswith("d_") or k in SHARED_FIELDS}
            networks.append(Network(family, Reading(part, fields, state), f"{path.name}:{part}", False))
    return networks, meta


def find(source: str, *, discriminator: str | None = None, family: str | None = None, options: Mapping[str, Any] | None = None) -> Found:
    """Read a source without building anything.

    Raises:
        MissingError, CheckpointError: nothing there, or nothing we can read; the message names file, key and reason.
        UsageError: networks that do not belong together, or an unknown option.
    """
    options = _checked_options(options or {}, family)
    path, pinned = _resolve(source)
    files = _files_of(path) if path.is_dir() else [path]
    pins = [pinned]
    if discriminator:
        beside, pin = _resolve(discriminator)
        files.append(beside)
        pins.append(pin)
    opened = {file: open_checkpoint(file) for file in files}
    config = _config_beside(files, opened)
    networks: list[Network] = []
    others: list[str] = []
    metadata: dict[str, Any] = {}
    miss: Mismatch | None = None
    for file, content in opened.items():
        if METADATA_KEY in content.metadata:
            own, meta = _own_networks(content, file)
            networks += own
            metadata = metadata or meta
            continue
        more, rest, near = _networks(content, file, family, {**options, "config": config})
        networks += more
        others += rest + ([f"not imported: {', '.join(content.inert[:4])}"] if content.inert else [])
        miss = near if miss is None or (near and near.score > miss.score) else miss
    if not networks:
        raise _nothing_found(path, others, miss)
    containers = " and ".join(dict.fromkeys(o.container for o in opened.values()))
    found = _assemble(source, path, containers, sum(f.stat().st_size for f in files), networks, others, metadata)
    known = found.family.options | found.family.settings
    if unknown := set(options) - known:
        raise UsageError(f"{source}: a {found.family.name} takes no option {min(unknown)!r}", f"options: {', '.join(sorted(known)) or 'none'}")
    found.arch = found.family.build_arch(found.arch, {k: v for k, v in options.items() if k in found.family.settings})
    found.pinned = pinned
    if remote := [p for p in pins if p.startswith(SCHEME)]:
        found.metadata["hub"] = " and ".join(remote)
    return found


def _checked_options(options: Mapping[str, Any], family: str | None) -> dict[str, Any]:
    if family and family not in FAMILIES:
        raise UsageError(f"no family {family!r}", f"families: {', '.join(FAMILIES)}")
    known = {o for f in FAMILIES.values() for o in f.options | f.settings}
    if unknown := set(options) - known:
        raise UsageError(f"unknown reader option {min(unknown)!r}", f"options: {', '.join(sorted(known))}")
    for key in {"classes", "nc"} & set(options):
        if not re.fullmatch(r"\d+", str(options[key])):
            raise UsageError(f"{key}={options[key]!r}: expected a whole number")
    return dict(options)


def _config_beside(files: list[Path], opened: Mapping[Path, Opened]) -> dict[str, Any]:
    """Settings kept in files of their own: config.json, generator_config.json, or a checkpoint without weights."""
    found: dict[str, Any] = {}
    for path in sorted({p for f in files for p in f.parent.glob("*config*.json")}):
        try:
            found |= plain(json.loads(path.read_text())) if path.stat().st_size < 1 << 20 else {}
        except (OSError, ValueError):
            continue
    for content in opened.values():
        if isinstance(content.content, dict) and not any(isinstance(v, Tensor | dict) and k != "config" for k, v in content.content.items()):
            found |= plain(content.content.get("config"))
    return found


def _nothing_found(path: Path, others: list[str], miss: Mismatch | None) -> CheckpointError:
    if miss is not None:
        return CheckpointError(f"{path}: of no family we know. {miss}", "for an architecture of your own: --teacher-module file.py:factory")
    if any("optimizer" in o for o in others):
        return CheckpointError(f"{path}: this is an optimizer's state, not a network's weights", "give the file saved beside it (netG, G, generator)")
    return CheckpointError(f"{path}: no network's weights in it" + (f" ({'; '.join(others[:3])})" if others else ""))


def _assemble(source: str, path: Path, container: str, size: int, networks: list[Network], others: list[str], metadata: dict[str, Any]) -> Found:
    found = Found(source, path, container, size, networks[0].family, None, networks, others, metadata)
    parts = [n for n in (found.network("generator"), found.network("discriminator")) if n]
    if len({n.family.name for n in parts}) > 1:
        # several families in one place: the generator's counts
        found.others.append(f"{parts[1].where}: a {parts[1].family.name} discriminator, left aside")
        found.networks = [n for n in networks if n is not parts[1]]
        parts = parts[:1]
    found.family = parts[0].family
    fields: dict[str, Any] = {}
    for network in parts:
        for key, value in network.reading.fields.items():
            if key in fields and fields[key] != value and key in SHARED_FIELDS:
                raise UsageError(f"{parts[0].where} has {key} {fields[key]}, {network.where} has {value}: they do not belong together")
            fields[key] = value
    found.arch = found.family.build_arch(None, fields)
    return found


def _load_strictly(net: nn.Module, network: Network) -> nn.Module:
    state = network.reading.state
    expected = net.state_dict()
    missing, unexpected = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing or unexpected:
        raise CheckpointError(f"{network.where}: missing keys {missing[:3]}, unexpected keys {unexpected[:3]}")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(f"{network.where}: {key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
    net.load_state_dict(state)  # copies into float32, whatever the file holds
    return net


def build(found: Found, part: Part, ema: bool = True) -> nn.Module:
    """The network of that part with its weights, in evaluation mode.

    Raises:
        MissingError: the source does not hold it.
    """
    network = found.network(part, ema)
    if network is None:
        have = " and ".join(sorted({n.reading.part for n in found.networks}))
        hint = "give the generator's file" if part == "generator" else "--discriminator PATH adds one that lies apart"
        error = CheckpointError if part == "generator" else MissingError
        raise error(f"{found.source}: it holds a {have} and no {part}", hint)
    with torch.device("meta"):
        net = found.family.generator(found.arch) if part == "generator" else found.family.discriminator(found.arch)
    return _load_strictly(net.to_empty(device="cpu"), network).eval()


def load_gan(source: str, *, discriminator: str | None = None, ema: bool = True, options: Mapping[str, Any] | None = None) -> GAN:
    """The whole GAN of a source, frozen; its discriminator is None where the source has none.

    Raises:
        MissingError, CheckpointError, UsageError: as ``find``; CheckpointError too where there is no generator.
    """
    if source.startswith("module:"):
        from gancompress.user_module import load_module

        return load_module(source.removeprefix("module:"), dict(options or {}))
    found = find(source, discriminator=discriminator, options=options)
    generator = build(found, "generator", ema)
    critic = build(found, "discriminator") if found.network("discriminator") else None
    return GAN(found.family, found.arch, generator, critic, found.pinned).freeze()


def load(source: str | Path, part: Part = "generator", ema: bool = True, **reader_options: Any) -> nn.Module:
    """A network in evaluation mode from anything ``distill`` takes: a teacher or a student, a file, a directory, ``sample:NAME``.

    Args:
        source: path of a checkpoint or directory, ``sample:dcgan-mnist``, ``owner/name`` (``@revision``, ``:file``) of the Hugging Face Hub,
            or ``module:file.py:factory``.
        part: "generator": ``G(inputs, condition=None) -> images (N, C, H, W) in [-1, 1]``;
            "discriminator": ``D(images, condition=None) -> logits (N,)`` before any sigmoid.
        ema: take the averaged weights where the file has both.
        reader_options: what no file tells, such as ``classes=10`` for a one-hot conditional DCGAN.

    Raises:
        GanCompressError: the source is missing, unsafe, damaged or holds no such part.
    """
    if part not in ("generator", "discriminator"):
        raise UsageError(f"part={part!r}: expected 'generator' or 'discriminator'")
    source = str(source)
    if source.startswith("module:"):
        networks = load_gan(source, options=reader_options).networks
        if part not in networks:
            raise MissingError(f"{source}: a module of your own has no discriminator")
        return networks[part]
    return build(find(source, options=reader_options), part, ema).requires_grad_(False)
