"""The networks in opened files: each state dict is offered to every family's reader; our own files say what they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gancompress.checkpoint import FORMAT_VERSION, METADATA_KEY
from gancompress.contents import Content, contents, is_ema, split, strip
from gancompress.errors import CheckpointError, GanCompressError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import Family, Mismatch, Reading, StateDict
from gancompress.unpickle import Opened

SHARED_FIELDS = {"resolution", "nc", "classes"}
#: of names before a network's own in one flat dict
MAX_DEPTH = 8
#: of widths, layers, classes and pixels of a network of ours
MAX_SIZE = 1 << 20


@dataclass(frozen=True)
class Network:
    """One network read from a file: ``where`` names the file and the place in it."""

    family: Family
    reading: Reading
    where: str
    ema: bool
    foreign: StateDict = field(default_factory=dict, repr=False)  # as the file has it; empty for our own files


class NoFamily(Exception):
    """No reader takes a state dict. The message gives the objections of the nearest families, up to three, best first."""

    def __init__(self, where: str, state: StateDict, misses: list[tuple[str, Mismatch]]) -> None:
        misses = sorted(misses, key=lambda miss: -miss[1].score)
        self.score = misses[0][1].score
        near = [f"{name}: {_objection(miss)}" for name, miss in misses[:3] if miss.score >= max(0.01, self.score / 2)]
        if not near:
            near = [f"none is near; it begins with {', '.join(f'{k} {tuple(t.shape)}' for k, t in list(state.items())[:3])}"]
        super().__init__(f"{where}: {'nearest family ' if self.score else ''}{near[0]}" + "".join(f"\n  or {line}" for line in near[1:]))


def _objection(miss: Mismatch) -> str:
    """A reader's reason, and the first keys where there are more than the reason names."""
    lists = [(word, keys) for word, keys in (("missing", miss.missing), ("unexpected", miss.unexpected)) if len(keys) > 1]
    more = [f"{word}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}" for word, keys in lists]
    return str(miss) + (f" ({'; '.join(more)})" if more else "")


def read_files(
    opened: Mapping[Path, Opened],
    critic: Path | None,
    family: str | None,
    options: Mapping[str, Any],
    optional: set[Path],
    unread: dict[Path, GanCompressError],
) -> tuple[list[Network], list[str], dict[str, Any], NoFamily | None]:
    """(networks, what else there is, metadata of our own file, nearest miss) of all files; of ``critic`` its discriminator alone.

    What is wrong with a file of ``optional`` goes into ``unread``.
    """
    networks: list[Network] = []
    others: list[str] = []
    metadata: dict[str, Any] = {}
    miss: NoFamily | None = None
    for file, content in opened.items():
        try:
            found, rest, meta, near = _read_file(file, content, family, options)
        except CheckpointError as error:
            if file not in optional:
                raise
            unread[file] = error
            continue
        others += rest
        metadata = metadata or meta
        miss = near if miss is None or (near and near.score > miss.score) else miss
        if file == critic:  # what else is in that file was not asked for
            others += [f"{n.where}: a generator, left aside" for n in found if n.reading.part == "generator"]
            found = [n for n in found if n.reading.part == "discriminator"]
        networks += found
    return networks, others, metadata, miss


def _read_file(file: Path, content: Opened, family: str | None, options: Mapping[str, Any]) -> tuple[list[Network], list[str], dict[str, Any], NoFamily | None]:
    if METADATA_KEY in content.metadata:
        found, meta = _own_networks(content, file)
        return found, [], meta, None
    found, rest, miss = _networks(content, file, family, options)
    return found, rest + ([f"not imported: {', '.join(content.inert[:4])}"] if content.inert else []), {}, miss


# ----------------------------------------------------------------------------------------------------------- somebody else's file


def _networks(opened: Opened, path: Path, family: str | None, options: Mapping[str, Any]) -> tuple[list[Network], list[str], NoFamily | None]:
    """Every network of one file, what else is in it, and the nearest miss."""
    pending, others = contents(opened.content)
    for one in pending:
        _check_sizes(one, path)
    others = [f"{path.name}:{other}" for other in others]
    networks: list[Network] = []
    miss: NoFamily | None = None
    while pending:
        content = pending.pop(0)
        place, state = content.place, strip(content.state)
        where = f"{path.name}:{place}" if place else path.name
        try:
            found, reading = _read_state(state, where, family, {**options, "config": {**content.config, **options["config"]}})
        except NoFamily as error:
            if miss is None or error.score > miss.score:
                miss = error
            if (parts := split(state)) and place.count(".") < MAX_DEPTH:
                pending += [Content(f"{place}.{head}" if place else head, part, content.config) for head, part in parts.items()]
            else:
                others.append(f"{where}: {len(state)} tensors of no family we know")
            continue
        _check_values(state, path, place)
        networks.append(Network(found, reading, where, is_ema(place, path.stem), state))
    return networks, others, miss


def _read_state(state: StateDict, where: str, family: str | None, options: Mapping[str, Any]) -> tuple[Family, Reading]:
    misses = []
    for candidate in [FAMILIES[family]] if family else FAMILIES.values():
        try:
            return candidate, candidate.read(state, options)
        except Mismatch as miss:
            misses.append((candidate.name, miss))
    raise NoFamily(where, state, misses)


def _check_sizes(content: Content, path: Path) -> None:
    """Refuse tensors that are not stored as numbers one after the other, or that claim far more of them than there are."""
    total, size = 0, path.stat().st_size
    for key, tensor in content.state.items():
        where = f"{path}: {content.place + '.' if content.place else ''}{key}"
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout) if tensor.layout != torch.strided else ""
        if kind or tensor.device.type != "cpu":
            raise CheckpointError(f"{where} is a {kind or tensor.device.type} tensor; weights are plain ones", "save it dense, in floating point")
        claimed, held = tensor.numel() * tensor.element_size(), min(tensor.untyped_storage().nbytes(), size)
        total += claimed
        if claimed > max(1 << 26, held):
            raise CheckpointError(f"{where} claims {claimed:,} bytes and holds {held:,}")
    if total > max(1 << 28, 4 * size):
        raise CheckpointError(f"{path}: its tensors claim {total:,} bytes in a file of {size:,}")


def _check_values(state: StateDict, path: Path, place: str) -> None:
    """Refuse what no trained network holds; the message has the key as the file has it."""
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        where = f"{path}: {place}.{key}" if place else f"{path}: {key}"
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where} has {tensor.dtype} values; weights are floating point (a quantised file?)")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{where} has NaN or infinite values, as float32; this network diverged or the file is damaged")


# ---------------------------------------------------------------------------------------------------------------------- our own


def _own_networks(opened: Opened, path: Path) -> tuple[list[Network], dict[str, Any]]:
    """The networks of our own safetensors file."""
    try:
        meta = json.loads(opened.metadata[METADATA_KEY])
        if not isinstance(meta, dict):
            raise TypeError("no table of settings")
        if meta.get("format") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: written in format {meta.get('format')}, and this gancompress reads {FORMAT_VERSION}", "pip install -U gancompress")
        family = FAMILIES[meta["family"]]
        if _largest(meta["arch"]) > MAX_SIZE:
            raise ValueError(f"a size of more than {MAX_SIZE:,}")
        arch = family.build_arch(None, meta["arch"])
        with torch.device("meta"):
            family.generator(arch)  # sizes that no memory holds end here
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError, UsageError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged or of a newer version ({error})") from None
    networks = []
    for part in ("generator", "discriminator"):
        state = {k.removeprefix(f"{part}."): v for k, v in opened.content.items() if k.startswith(f"{part}.")}
        if state:
            _check_values(state, path, part)
            fields = dataclasses.asdict(arch)
            if part == "discriminator":  # the generator's own file tells the rest
                fields = {k: v for k, v in fields.items() if k.startswith("d_") or k in SHARED_FIELDS}
            networks.append(network := Network(family, Reading(part, fields, state), f"{path.name}:{part}", False))
            with torch.device("meta"):  # what it says it is has to be what it holds: costs are counted on that
                check_shapes(family.generator(arch) if part == "generator" else family.discriminator(arch), network)
    return networks, meta


def _largest(value: Any) -> int:
    """The largest whole number in a table of settings."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_largest(v) for v in held), default=value if isinstance(value, int) else 0)


def check_shapes(net: nn.Module, network: Network) -> None:
    """Raises CheckpointError where the tensors are not those of the network."""
    state = network.reading.state
    expected = net.state_dict()
    missing, unexpected = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing or unexpected:
        raise CheckpointError(f"{network.where}: missing keys {missing[:3]}, unexpected keys {unexpected[:3]}")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(f"{network.where}: {key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
