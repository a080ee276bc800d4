"""Finds the networks in whatever a user calls a checkpoint, and builds them.

A source is a file, a directory holding G and D, a run folder, ``sample:NAME`` or ``module:FILE.py:FACTORY``.
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

from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family, Mismatch, Part, Reading, StateDict
from gancompress.layers import natural_key
from gancompress.unpickle import Inert, Opened, open_checkpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
EMA_NAMES = {"g_ema", "ema", "avgg", "netg_ema", "params_ema", "generator_ema", "ema_generator"}
G_NAMES = {"g", "netg", "generator", "gen", "netg_state_dict", "g_state_dict", "generator_state_dict", *EMA_NAMES}
D_NAMES = {"d", "netd", "discriminator", "disc", "critic", "netd_state_dict", "d_state_dict", "discriminator_state_dict"}
READER_OPTIONS = {"classes", "nc", "output"}
METADATA_KEY = "gancompress"
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
    """Everything a source holds; what ``inspect`` prints. ``arch`` is exact for the parts in ``networks``."""

    source: str
    path: Path
    container: str
    file_bytes: int
    family: Family
    arch: Any
    networks: list[Network]
    others: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def network(self, part: Part, ema: bool = True) -> Network | None:
        """The network of that part: the EMA where there is one and ``ema`` is set, else the raw one."""
        here = [n for n in self.networks if n.reading.part == part]
        preferred = [n for n in here if n.ema == ema]
        return next(iter(preferred or here), None)

    @property
    def assumptions(self) -> list[str]:
        return [a for n in (self.network("generator"), self.network("discriminator")) if n for a in n.reading.assumptions]


# ------------------------------------------------------------------------------------------------- state dicts inside a container


def _module_state(module: Inert) -> StateDict:
    """The state dict of a pickled nn.Module whose class we did not import, in its order."""
    out: StateDict = {}
    pending = [("", 0, module)]
    for _ in range(20_000):  # more than any network has: modules that hold one another would never end
        if not pending:
            break
        prefix, depth, current = pending.pop()
        attributes = vars(current)
        tensors = [v if isinstance(v := attributes.get(name), dict) else {} for name in ("_parameters", "_buffers")]
        skip = v if isinstance(v := attributes.get("_non_persistent_buffers_set"), set) else ()
        for name, value in [*tensors[0].items(), *tensors[1].items()]:
            if isinstance(value, Tensor) and name not in skip:
                out[prefix + str(name)] = value
        children = attributes.get("_modules")
        if isinstance(children, dict) and depth < 60:
            pending += [(f"{prefix}{name}.", depth + 1, child) for name, child in reversed(children.items()) if isinstance(child, Inert)]
    return out


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> tuple[dict[str, StateDict], list[str]]:
    """({place: state dict}, [place of anything else worth naming]) of an opened file."""
    if isinstance(content, Inert):
        state = _module_state(content)
        return ({name: state}, []) if state else ({}, [])
    if not isinstance(content, dict) or depth > 3:
        return {}, []
    if "param_groups" in content and "state" in content:
        return {}, [f"{name or 'the file'}: an optimizer's state"]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if any(t.ndim >= 2 for t in tensors.values()) and 2 * len(tensors) > len(content):
        return {name: tensors}, []
    states: dict[str, StateDict] = {}
    others: list[str] = []
    for key, value in content.items():
        inner = _state_dicts(value, f"{name}.{key}" if name else str(key), depth + 1)
        states |= inner[0]
        others += inner[1]
    return states, others


def _strip(state: StateDict) -> StateDict:
    """Without the prefixes of wrappers (DataParallel, torch.compile)."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            return _strip({k.removeprefix(prefix): v for k, v in state.items()})
    return state


def _split(state: StateDict) -> dict[str, StateDict]:
    """A flat dict of several networks (``netG.main.0.weight``, ``netD.main.0.weight``) by its first names."""
    groups: dict[str, StateDict] = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    named = {head: group for head, group in groups.items() if head.lower() in G_NAMES | D_NAMES}
    return named if len(named) > 1 or (named and len(named) < len(groups)) else {}


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
    states, others = _state_dicts(opened.content)
    pending = [(place, _strip(state)) for place, state in states.items()]
    networks: list[Network] = []
    miss: Mismatch | None = None
    while pending:
        place, state = pending.pop(0)
        where = f"{path.name}:{place}" if place else path.name
        try:
            found, reading = _read_state(state, family, options)
        except Mismatch as error:
            if parts := _split(state):
                pending += [(f"{place}.{head}" if place else head, _strip(part)) for head, part in parts.items()]
                continue
            others.append(f"{place or path.name}: {len(state)} tensors of no family we know")
            if miss is None or error.score > miss.score:
                miss = Mismatch(f"{where}: {error}", error.score)
            continue
        stem = re.sub(r"([_.-]?(epoch|iter|steps?))*[_.-]?\d*$", "", path.stem.lower())
        ema = bool({stem, *place.lower().split(".")} & EMA_NAMES)
        _check_values(state, path, place)
        networks.append(Network(found, reading, where, ema))
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


def _resolve(source: str) -> Path:
    if source.startswith("sample:"):
        name = source.removeprefix("sample:")
        folder = Path(str(resources.files("gancompress"))) / "samples"
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            known = ", ".join(f"sample:{p.stem}" for p in sorted(folder.glob("*.safetensors")))
            raise MissingError(f"no bundled teacher {source!r}", f"there is: {known}")
        return path
    path = Path(source).expanduser()
    if not path.exists():
        raise MissingError(f"{source}: no such file or directory", "give a checkpoint file, a directory with G and D, or sample:dcgan-mnist")
    return path


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
    options = dict(options or {})
    if unknown := set(options) - READER_OPTIONS:
        raise UsageError(f"unknown reader option {sorted(unknown)[0]!r}", f"options: {', '.join(sorted(READER_OPTIONS))}")
    if family and family not in FAMILIES:
        raise UsageError(f"no family {family!r}", f"families: {', '.join(FAMILIES)}")
    for key in {"classes", "nc"} & set(options):
        if not re.fullmatch(r"\d+", str(options[key])):
            raise UsageError(f"{key}={options[key]!r}: expected a whole number")
    path = _resolve(source)
    files = _files_of(path) if path.is_dir() else [path]
    if discriminator:
        files.append(_resolve(discriminator))
    networks: list[Network] = []
    others: list[str] = []
    metadata: dict[str, Any] = {}
    miss: Mismatch | None = None
    containers: list[str] = []
    for file in files:
        opened = open_checkpoint(file)
        if opened.container not in containers:
            containers.append(opened.container)
        if METADATA_KEY in opened.metadata:
            own, meta = _own_networks(opened, file)
            networks += own
            metadata = metadata or meta
            continue
        more, rest, near = _networks(opened, file, family, options)
        networks += more
        others += rest + ([f"not imported: {', '.join(opened.inert[:4])}"] if opened.inert else [])
        miss = near if miss is None or (near and near.score > miss.score) else miss
    if not networks:
        raise _nothing_found(path, others, miss)
    return _assemble(source, path, " and ".join(containers), sum(f.stat().st_size for f in files), networks, others, metadata)


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
    return GAN(found.family, found.arch, generator, critic, source).freeze()


def load(source: str | Path, part: Part = "generator", ema: bool = True, **reader_options: Any) -> nn.Module:
    """A network in evaluation mode from anything ``distill`` takes: a teacher or a student, a file, a directory, ``sample:NAME``.

    Args:
        source: path of a checkpoint or directory, ``sample:dcgan-mnist``, or ``module:file.py:factory``.
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
