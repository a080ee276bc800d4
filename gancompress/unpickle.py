"""Opens foreign checkpoint files without running anything in them.

The container is told by its first bytes, never by its name. Pickles are looked through first (``opcodes``). torch.load(weights_only=True)
reads what it can; what it refuses (whole modules, config objects, argparse namespaces) goes to the inert reader (``inert``).
"""

from __future__ import annotations

import collections
import io
import json
import stat
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from gancompress.errors import CheckpointError, GanCompressError, MissingError, UnsafeCheckpointError, printable
from gancompress.inert import Budget, Reader, Storage
from gancompress.opcodes import check_pickle

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a"
#: modules whose functions act on the machine: a checkpoint that names one was made to do harm. The list only makes the message
#: plainer; what keeps us safe is that ``inert`` imports nothing.
_HOSTILE = {"os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "runpy", "importlib", "ctypes", "code", "webbrowser"} | {
    "builtins", "__builtin__", "operator", "multiprocessing", "asyncio", "urllib", "http", "pip", "pdb", "timeit", "pickle", "_pickle",
}  # fmt: skip
#: bytes of a safetensors header; the largest networks' take some hundred thousand, and reading one takes many times its size
_MAX_HEADER = 1 << 24
_HARMLESS = {f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("set", "frozenset", "slice", "range", "complex", "bytearray", "object")}


@dataclass
class Opened:
    """What a file holds. ``inert``: names that were not imported; ``metadata``: safetensors' own."""

    content: Any
    container: str
    inert: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def _read_torch_zip(path: Path, main: str, names: collections.Counter[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        budget = Budget(path.stat().st_size)
        storages: dict[str, Storage] = {}

        def load_storage(pid: Any) -> Storage:
            _, dtype, key, _, numel = pid[:5]
            if key not in storages:
                data = bytearray(archive.read(f"{main.removesuffix('data.pkl')}data/{key}"))
                budget.take(len(data))
                if len(data) < numel * dtype.itemsize:
                    raise CheckpointError(f"its storage {printable(str(key), 80)} is shorter than the tensor that uses it")
                memory = torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
                storages[key] = Storage(memory, dtype)
            return storages[key]

        def load_bytes(data: bytes) -> Any:
            return _read_torch_stream(io.BytesIO(data), len(data), names, budget)

        return Reader(io.BytesIO(archive.read(main)), names, budget, load_storage, load_bytes).load()


def _check_torch_stream(file: IO[bytes]) -> None:
    """Look through the five pickles of such a file."""
    for _ in range(5):
        check_pickle(file)
    file.seek(0)


def _read_torch_stream(file: IO[bytes], size: int, names: collections.Counter[str], budget: Budget) -> Any:
    """torch <= 1.5: magic, protocol and system as pickles, the object, the storage keys, then the storages' bytes."""
    _check_torch_stream(file)
    for _ in range(3):
        Reader(file, names, budget).load()
    storages: dict[str, Storage] = {}
    claimed = 0

    def load_storage(pid: Any) -> Any:
        nonlocal claimed
        if pid[0] == "module":  # a class with its source text: neither is used
            return pid[1]
        _, dtype, key, _, numel = pid[:5]
        if key not in storages:
            claimed += numel * dtype.itemsize
            if numel < 0 or claimed > size:
                raise CheckpointError(f"its storages claim more than the {size:,} bytes of the file")
            storages[key] = Storage(torch.UntypedStorage(numel * dtype.itemsize), dtype)
        if len(pid) < 6 or pid[5] is None:
            return storages[key]
        _, offset, length = pid[5]  # torch 0.1: a view into another storage
        return Storage(storages[key].memory[offset * dtype.itemsize : (offset + length) * dtype.itemsize], dtype)

    content = Reader(file, names, budget, load_storage).load()
    for key in Reader(file, names, budget).load():
        storage = storages[key]
        if len(head := file.read(8)) < 8:
            raise CheckpointError("it is truncated: a storage is missing")
        (numel,) = struct.unpack("<q", head)
        data = file.read(storage.memory.nbytes())
        if numel * storage.dtype.itemsize != storage.memory.nbytes() or len(data) != storage.memory.nbytes():
            raise CheckpointError("it is truncated: a storage ends before its size")
        if data:
            torch.tensor([], dtype=torch.uint8).set_(storage.memory).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return content


def _refuse_hostile(names: collections.Counter[str]) -> None:
    for name in names:
        if name.split(".")[0] in _HOSTILE and name not in _HARMLESS:
            raise UnsafeCheckpointError(f"it calls {name} when loaded in the ordinary way; nothing of it was run", "do not use this file")


def _inert(read: Callable[[collections.Counter[str]], Any], container: str) -> Opened:
    names: collections.Counter[str] = collections.Counter()
    try:
        content = read(names)
    except GanCompressError:
        _refuse_hostile(names)
        raise
    except MemoryError:
        raise CheckpointError("its sizes do not fit into memory") from None
    except Exception as error:  # whatever a broken pickle makes of our reader: the file is at fault, not the program
        _refuse_hostile(names)
        raise CheckpointError(f"it is damaged or no checkpoint ({type(error).__name__}: {str(error)[:120]})") from None
    _refuse_hostile(names)
    return Opened(content, container, sorted(names))


def _checked_zip(path: Path) -> str:
    """The name of a torch archive's pickle, after a look at sizes, names and the pickle's operations.

    Raises:
        CheckpointError: it is damaged, no torch archive, or claims more than there is.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            main = _main_entry(entries)
            for entry in entries:
                if entry.file_size > size:  # torch never compresses
                    raise CheckpointError(f"its entry {printable(entry.filename, 80)} claims {entry.file_size:,} bytes in a file of {size:,}")
            if (total := sum(entry.file_size for entry in entries)) > size:
                raise CheckpointError(f"its entries claim {total:,} bytes in a file of {size:,}")
            check_pickle(io.BytesIO(archive.read(main)))
            return main
    except GanCompressError:
        raise
    except Exception as error:  # zipfile and the decoders behind it have a dozen kinds
        raise CheckpointError(f"it is truncated or damaged ({error})", "download it again") from None


def _main_entry(entries: list[zipfile.ZipInfo]) -> str:
    leaves = collections.Counter(entry.filename.rpartition("/")[2] for entry in entries)
    if "constants.pkl" in leaves:
        raise CheckpointError("it is a TorchScript archive, which is a program and runs when loaded", "save the module's state_dict() with torch.save instead")
    if "data.pkl" not in leaves:
        what = "a numpy archive" if any(name.endswith(".npy") for name in leaves) else "a zip archive"
        raise CheckpointError(f"it is {what} without a torch checkpoint in it")
    if leaves["data.pkl"] > 1 or len({entry.filename.lower() for entry in entries}) < len(entries):  # readers differ in which they take
        raise CheckpointError("it is a zip archive with several entries of one name")
    return next(entry.filename for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl")


def _torch_load(path: Path, mmap: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they repeat what the file says
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _open_zip(path: Path) -> Opened:
    main = _checked_zip(path)
    try:
        return Opened(_torch_load(path, mmap=True), "torch zip")
    except Exception:  # refused or unreadable for torch: the inert reader says which
        return _inert(lambda names: _read_torch_zip(path, main, names), "torch zip")


def _open_stream(path: Path) -> Opened:
    with path.open("rb") as file:
        _check_torch_stream(file)
    try:
        return Opened(_torch_load(path), "torch legacy")
    except Exception:

        def read(names: collections.Counter[str]) -> Any:
            size = path.stat().st_size
            with path.open("rb") as file:
                return _read_torch_stream(file, size, names, Budget(size))

        return _inert(read, "torch legacy")


def _open_pickle(path: Path) -> Opened:
    def read(names: collections.Counter[str]) -> Any:
        budget = Budget(path.stat().st_size)
        with path.open("rb") as file:
            check_pickle(file)
            file.seek(0)
            return Reader(file, names, budget, load_bytes=lambda data: _read_torch_stream(io.BytesIO(data), len(data), names, budget)).load()

    return _inert(read, "pickle")


def _open_safetensors(path: Path) -> Opened:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return Opened({printable(key): file.get_tensor(key) for key in file.keys()}, "safetensors", metadata=dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, RuntimeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"it is truncated or damaged ({error})", "download it again") from None


def open_checkpoint(path: Path) -> Opened:
    """Read any checkpoint file into plain dicts, lists and tensors (on the CPU). Nothing in the file is executed.

    Raises:
        MissingError: no such file.
        CheckpointError: not a checkpoint, damaged, or of a kind that cannot be read safely; the message names the file.
    """
    try:
        size = (status := path.stat()).st_size
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
            raise CheckpointError(f"{path}: not a file of its own (a pipe, a device or a directory)")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise GanCompressError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if not size:
            raise CheckpointError("the file is empty", "download it again")
        # before pickles: the length that a safetensors file begins with may look like the beginning of one
        if head[8:9] == b"{" and (header := int.from_bytes(head[:8], "little")) <= size - 8:
            if header > _MAX_HEADER:
                raise CheckpointError(f"its header has {header:,} bytes; no network's is longer than {_MAX_HEADER:,}")
            return _open_safetensors(path)
        if head.startswith(b"PK\x03\x04"):
            return _open_zip(path)
        if head.startswith(_LEGACY_MAGIC):
            return _open_stream(path)
        if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
            return _open_pickle(path)
        if len(head) > 9 and head[8:9] == b"{":
            return _open_safetensors(path)
        raise _not_a_checkpoint(head)
    except GanCompressError as error:
        raise type(error)(f"{path}: {error}", error.hint) from None


def _not_a_checkpoint(head: bytes) -> CheckpointError:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return CheckpointError("this is a Git-LFS pointer, not the weights", "fetch the real file with `git lfs pull` or from the download link")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return CheckpointError("this is an HTML page saved under a checkpoint's name", "open the link in a browser and download the file itself")
    if head[257:262] == b"ustar":
        return CheckpointError("this is a tar archive (torch before 0.2), which is not read", "load it with an old torch and save it again")
    if head.startswith(b"\x89HDF"):
        return CheckpointError("this is an HDF5 file (Keras), which is not read")
    try:
        json.loads(head)
        return CheckpointError("this is a JSON file, not weights")
    except ValueError:
        return CheckpointError(f"not a checkpoint: it begins with {head[:8]!r}")


assert sys.byteorder == "little"  # storages are read as they lie in the file
