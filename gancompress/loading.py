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

from gancompress.checkpoint import FORMAT_VERSION, METADATA_KEY, read_json
from gancompress.console import stderr
from gancompress.contents import Content, contents, is_ema, plain, split, strip
from gancompress.errors import CheckpointError, GanCompressError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Family, Mismatch, Part, Reading, StateDict
from gancompress.hub import SCHEME, SUFFIXES, fetch, parse
from gancompress.layers import natural_key
from gancompress.unpickle import Opened, open_checkpoint

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


class _NoFamily(Exception):
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


def _read_state(state: StateDict, where: str, family: str | None, options: Mapping[str, Any]) -> tuple[Family, Reading]:
    misses = []
    for candidate in [FAMILIES[family]] if family else FAMILIES.values():
        try:
            return candidate, candidate.read(state, options)
        except Mismatch as miss:
            misses.append((candidate.name, miss))
    raise _NoFamily(where, state, misses)


def _networks(opened: Opened, path: Path, family: str | None, options: Mapping[str, Any]) -> tuple[list[Network], list[str], _NoFamily | None]:
    """Every network of one file, what else is in it, and the nearest miss."""
    pending, others = contents(opened.content)
    for one in pending:
        _check_sizes(one, path)
    others = [f"{path.name}:{other}" for other in others]
    networks: list[Network] = []
    miss: _NoFamily | None = None
    while pending:
        content = pending.pop(0)
        place, state = content.place, strip(content.state)
        where = f"{path.name}:{place}" if place else path.name
        try:
            found, reading = _read_state(state, where, family, {**options, "config": {**content.config, **options["config"]}})
        except _NoFamily as error:
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


# ------------------------------------------------------------------------------------------------------------------- sources


def _resolve(source: str) -> tuple[Path, str]:
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
        series = re.sub(r"^(iter_\d+|latest)_net_", "#_net_", path.name)  # pix2pix keeps latest_net_G.pth beside 200_net_G.pth
        newest[re.sub(r"\d+", "#", series)] = path
    if not newest:
        raise MissingError(f"{folder}: no checkpoint in this directory", f"looked for {', '.join('*' + s for s in SUFFIXES)}")
    return list(newest.values())


def _largest(value: Any) -> int:
    """The largest whole number in a table of settings."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_largest(v) for v in held), default=value if isinstance(value, int) else 0)


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
                _check_shapes(family.generator(arch) if part == "generator" else family.discriminator(arch), network)
    return networks, meta


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
    path, pinned = _resolve(source)
    files = _files_of(path) if path.is_dir() else [path]
    pins = [pinned]
    if discriminator:
        beside, pin = _resolve(discriminator)
        if beside == path:
            raise UsageError(f"--discriminator {discriminator}: this is the source itself", "name the file of the discriminator")
        files = [f for f in files if f != beside] + [beside]
        pins.append(pin)
    critic, optional = beside if discriminator else None, set(files) if len(files) > 1 and path.is_dir() else set()
    opened, unread = _opened(files, optional - {critic})
    options["config"] = _config_beside(files, opened)
    networks, others, metadata, miss = _read_files(opened, critic, family, options, optional - {critic}, unread)
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


def _opened(files: list[Path], optional: set[Path]) -> tuple[dict[Path, Opened], dict[Path, GanCompressError]]:
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


def _read_files(
    opened: Mapping[Path, Opened],
    critic: Path | None,
    family: str | None,
    options: Mapping[str, Any],
    optional: set[Path],
    unread: dict[Path, GanCompressError],
) -> tuple[list[Network], list[str], dict[str, Any], _NoFamily | None]:
    """(networks, what else there is, metadata of our own file, nearest miss) of all files; of ``critic`` its discriminator alone.

    What is wrong with a file of ``optional`` goes into ``unread``.
    """
    networks: list[Network] = []
    others: list[str] = []
    metadata: dict[str, Any] = {}
    miss: _NoFamily | None = None
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


def _read_file(
    file: Path, content: Opened, family: str | None, options: Mapping[str, Any]
) -> tuple[list[Network], list[str], dict[str, Any], _NoFamily | None]:
    if METADATA_KEY in content.metadata:
        found, meta = _own_networks(content, file)
        return found, [], meta, None
    found, rest, miss = _networks(content, file, family, options)
    return found, rest + ([f"not imported: {', '.join(content.inert[:4])}"] if content.inert else []), {}, miss


def _chosen(networks: list[Network], key: str) -> list[Network]:
    """Without the others of the same part as the one at ``key``."""
    taken = [n for n in networks if key in (n.where, n.where.partition(":")[2])]
    if not taken:
        raise UsageError(f"--key {key}: no network is there", f"there is: {', '.join(n.where for n in networks)}")
    parts = {n.reading.part for n in taken}
    return [n for n in networks if any(n is t for t in taken) or n.reading.part not in parts]


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


def _config_beside(files: list[Path], opened: Mapping[Path, Opened]) -> dict[str, Any]:
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


def _nothing_found(path: Path, others: list[str], miss: _NoFamily | None) -> CheckpointError:
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


def _check_shapes(net: nn.Module, network: Network) -> None:
    """Raises CheckpointError where the tensors are not those of the network."""
    state = network.reading.state
    expected = net.state_dict()
    missing, unexpected = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing or unexpected:
        raise CheckpointError(f"{network.where}: missing keys {missing[:3]}, unexpected keys {unexpected[:3]}")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(f"{network.where}: {key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")


def _load_strictly(net: nn.Module, network: Network) -> nn.Module:
    _check_shapes(net, network)
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
