"""Finds the networks in whatever a user calls a checkpoint, and builds them.

A source is a file, a directory holding G and D, a run folder, ``sample:NAME``, ``module:FILE.py:FACTORY`` or, on the Hugging Face Hub, ``owner/name``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gancompress.console import stderr
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family, Mismatch, Part
from gancompress.hub import SCHEME
from gancompress.reading import SHARED_FIELDS, Network, NoFamily, check_shapes, read_files
from gancompress.sources import config_beside, files_of, open_all, resolve


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


def find(source: str, *, discriminator: str | None = None, options: Mapping[str, Any] | None = None) -> Found:
    """Read a source without building anything.

    Args:
        options: those of the family's reader and its settings; ``family``: the only one to try; ``key``: the place of the network to
            take among several of its part, as ``inspect`` prints it.

    Raises:
        MissingError, CheckpointError: nothing there, or nothing we can read; the message names file, key and reason.
        UsageError: networks that do not belong together, or an unknown option.
    """
    options = _checked_options(options or {})
    family, key = options.pop("family", None), options.pop("key", None)
    path, pinned = resolve(source)
    files = files_of(path) if path.is_dir() else [path]
    pins = [pinned]
    if discriminator:
        beside, pin = resolve(discriminator)
        if beside == path:
            raise UsageError(f"--discriminator {discriminator}: this is the source itself", "name the file of the discriminator")
        files = [f for f in files if f != beside] + [beside]
        pins.append(pin)
    critic, optional = beside if discriminator else None, set(files) if len(files) > 1 and path.is_dir() else set()
    opened, unread = open_all(files, optional - {critic})
    options["config"] = config_beside(files, opened)
    networks, others, metadata, miss = read_files(opened, critic, family, options, optional - {critic}, unread)
    if unread and not any(n.reading.part == "generator" for n in networks):
        raise next(iter(unread.values()))  # it may be the one that is meant
    if not networks:
        raise _nothing_found(path, others, miss)
    for error in unread.values():
        stderr.print(f"left out: {error}", highlight=False, markup=False)
    others += [f"not read: {error}" for error in unread.values()]
    networks = _chosen(networks, key) if key else networks
    if path.is_dir():
        names = {file.name for file in files[: len(files) - bool(discriminator)]}
        _refuse_two_generators(path, [n for n in networks if n.where.partition(":")[0] in names])
    containers = " and ".join(dict.fromkeys(o.container for o in opened.values()))
    networks = _of_one_family(networks, options)
    found = _assemble(source, path, containers, sum(f.stat().st_size for f in files), networks, others, metadata)
    known = found.family.options | found.family.settings
    if unknown := set(options) - known - {"config"}:
        raise UsageError(f"{source}: a {found.family.name} takes no option {min(unknown)!r}", f"options: {', '.join(sorted(known)) or 'none'}")
    if discriminator and not found.network("discriminator"):
        here = "; ".join(o for o in found.others if beside.name in o) or "nothing we can read"
        raise UsageError(f"--discriminator {discriminator}: no discriminator of a {found.family.name} in it ({here})")
    found.arch = found.family.build_arch(found.arch, {k: v for k, v in options.items() if k in found.family.settings})
    found.pinned = pinned
    if remote := [p for p in pins if p.startswith(SCHEME)]:
        found.metadata["hub"] = " and ".join(remote)
    return found


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    options = {("resolution" if k == "size" else k): v for k, v in options.items()}  # as image translation calls it
    if (family := options.get("family")) is not None and str(family) not in FAMILIES:
        raise UsageError(f"no family {family!r}", f"families: {', '.join(FAMILIES)}")
    known = {"family", "key"} | {o for f in FAMILIES.values() for o in f.options | f.settings}
    if unknown := set(options) - known:
        raise UsageError(f"unknown reader option {min(unknown)!r}", f"options: {', '.join(sorted(known))}")
    for key in {"classes", "nc"} & set(options):
        if not re.fullmatch(r"\d+", str(options[key])):
            raise UsageError(f"{key}={options[key]!r}: expected a whole number")
    return dict(options)


def _chosen(networks: list[Network], key: str) -> list[Network]:
    """Without the others of the same part as the one at ``key``."""
    taken = [n for n in networks if key in (n.where, n.where.partition(":")[2])]
    if not taken:
        raise UsageError(f"--key {key}: no network is there", f"there is: {', '.join(n.where for n in networks)}")
    parts = {n.reading.part for n in taken}
    return [n for n in networks if any(n is t for t in taken) or n.reading.part not in parts]


def _nothing_found(path: Path, others: list[str], miss: NoFamily | None) -> CheckpointError:
    if miss is not None:
        hint = f"--family NAME tries one alone ({', '.join(FAMILIES)}); an architecture of your own: --teacher-module file.py:factory"
        return CheckpointError(f"{path}: of no family we know. {miss}", hint)
    if any("optimizer" in o for o in others):
        return CheckpointError(f"{path}: this is an optimizer's state, not a network's weights", "give the file saved beside it (netG, G, generator)")
    return CheckpointError(f"{path}: no network's weights in it" + (f" ({'; '.join(others[:3])})" if others else ""))


def _refuse_two_generators(folder: Path, networks: list[Network]) -> None:
    """A CycleGAN's folder has one for each direction, and no file tells which is which."""
    for ema in (True, False):
        here = [n.where for n in networks if n.reading.part == "generator" and n.ema == ema]
        if len(here) > 1:
            raise UsageError(
                f"{folder}: {len(here)} generators here: {' and '.join(here)}; what each is for is in no file",
                "name the file of the one you mean; --recipe portable-i2i data.paired=false takes G_A and G_B",
            )


def _of_one_family(networks: list[Network], options: Mapping[str, Any]) -> list[Network]:
    """Discriminators that fit several families, as a PatchGAN fits every translator's, are read as of the generator's."""
    family = next((n.family for n in networks if n.reading.part == "generator"), None)
    out: list[Network] = []
    for network in networks:
        if family is not None and network.family is not family and network.reading.part == "discriminator":
            try:
                reading = family.read(network.foreign, options)
            except Mismatch:
                reading = network.reading
            if reading.part == "discriminator" and reading is not network.reading:
                network = dataclasses.replace(network, family=family, reading=reading)
        out.append(network)
    return out


def _assemble(source: str, path: Path, container: str, size: int, networks: list[Network], others: list[str], metadata: dict[str, Any]) -> Found:
    found = Found(source, path, container, size, networks[0].family, None, networks, others, metadata)
    parts = [n for n in (found.network("generator"), found.network("discriminator")) if n]
    if len({n.family.name for n in parts}) > 1:
        # several families in one place: the generator's counts
        aside = [n for n in networks if n.family is not parts[0].family]
        found.others += [f"{n.where}: a {n.family.name} {n.reading.part}, left aside" for n in aside]
        found.networks = [n for n in networks if n not in aside]
        parts = [n for n in (parts[0], found.network("discriminator")) if n]
    found.family = parts[0].family
    fields: dict[str, Any] = {}
    for network in parts:
        for key, value in network.reading.fields.items():
            if key in fields and fields[key] != value and key in SHARED_FIELDS:
                hint = "a conditional discriminator may have its labels among its channels: --classes N --reader nc=C" if key == "nc" else ""
                raise UsageError(f"{parts[0].where} has {key} {fields[key]}, {network.where} has {value}: they do not belong together", hint)
            fields[key] = value
    found.arch = found.family.build_arch(None, fields)
    return found


# ------------------------------------------------------------------------------------------------------------------- built


def _load_strictly(net: nn.Module, network: Network) -> nn.Module:
    check_shapes(net, network)
    net.load_state_dict(network.reading.state)  # copies into float32, whatever the file holds
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
        reader_options: what no file tells, such as ``classes=10`` for a one-hot conditional DCGAN; ``family="dcgan"``: the only one
            to try; ``key="netG"``: the place in the file, where there are several networks.

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
