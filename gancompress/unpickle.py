"""Opens foreign checkpoint files without running anything in them.

The container is told by its first bytes, never by its name. torch.load(weights_only=True) reads what it can; what it refuses
(whole modules, config objects, argparse namespaces) goes to the inert reader: an unpickler that knows a short list of names
and puts a lifeless ``Inert`` object in place of every other one.
"""

from __future__ import annotations

import collections
import functools
import importlib
import io
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gancompress.errors import CheckpointError, GanCompressError, MissingError, UnsafeCheckpointError

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a"
#: modules whose functions act on the machine: a checkpoint that names one was made to do harm. The list only makes the message
#: plainer; what keeps us safe is that no name outside ``_allowed`` is ever imported.
_HOSTILE = {"os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "runpy", "importlib", "ctypes", "code", "webbrowser"} | {
    "builtins", "__builtin__", "operator", "multiprocessing", "asyncio", "urllib", "http", "pip", "pdb", "timeit", "pickle", "_pickle",
}  # fmt: skip
_HARMLESS = {f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("set", "frozenset", "slice", "range", "complex", "bytearray", "object")}


class Inert:
    """Stands for an object of a class we do not import. Keeps what the pickle says of it and does nothing."""

    inert_name = "?"

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.__dict__["inert_args"] = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict | None):
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            self.__dict__.update((str(k), v) for k, v in state.items())
        else:
            self.__dict__["inert_state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("inert_items", {})[key] = value

    def append(self, value: Any) -> None:
        self.__dict__.setdefault("inert_list", []).append(value)

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        self.append(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self


@dataclass
class Opened:
    """What a file holds. ``inert``: names that were not imported; ``metadata``: safetensors' own."""

    content: Any
    container: str
    inert: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    memory: torch.UntypedStorage
    dtype: torch.dtype


def _dtype_of(storage_class: str) -> torch.dtype:
    if storage_class not in _DTYPES:
        raise CheckpointError(f"it holds a {storage_class}, a kind of tensor we do not read")
    return _DTYPES[storage_class]


def _rebuild_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    size, stride = tuple(size), tuple(stride)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else offset
    # a view past the end of the storage would read foreign memory
    if min((offset, *size, *stride), default=0) < 0 or (all(size) and (last + 1) * storage.dtype.itemsize > storage.memory.nbytes()):
        raise CheckpointError(f"a tensor of shape {size} lies outside its storage")
    return torch.tensor([], dtype=storage.dtype).set_(storage.memory, offset, size, stride)


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: str = "C") -> Any:
    """An array as pickle protocol 5 writes it."""
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if order == "F" else "C")


def _load_from_bytes(data: bytes) -> Any:
    return _read_torch_stream(io.BytesIO(data), len(data), collections.Counter())


@functools.cache
def _allowed() -> dict[tuple[str, str], Any]:
    multiarray = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")  # numpy 2 and 1
    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): _load_from_bytes,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): str,
        ("_codecs", "encode"): _encode,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
    }
    for package in ("numpy.core.numeric", "numpy._core.numeric"):
        found[package, "_frombuffer"] = _array_from_buffer
    for package in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
        for name in ("dtype", "ndarray", "_reconstruct", "scalar"):
            if hasattr(np, name) or hasattr(multiarray, name):
                found[package, name] = getattr(np, name, None) or getattr(multiarray, name)
    return found


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, names: collections.Counter[str], load_storage: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._names = names
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (allowed := _allowed()):
            return allowed[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _dtype_of(name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        self._names[f"{module}.{name}"] += 1
        return type("Inert", (Inert,), {"inert_name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        if self._load_storage is None:
            raise CheckpointError("it refers to storages outside itself")
        return self._load_storage(pid)


def _read_torch_zip(path: Path, names: collections.Counter[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        main = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
        size = path.stat().st_size
        storages: dict[str, _Storage] = {}

        def entry(name: str) -> bytearray:
            info = archive.getinfo(name)
            if info.file_size > size:  # torch never compresses
                raise CheckpointError(f"its entry {name} claims {info.file_size:,} bytes in a file of {size:,}")
            return bytearray(archive.read(info))

        def load_storage(pid: Any) -> _Storage:
            _, dtype, key, _, numel = pid[:5]
            if key not in storages:
                data = entry(f"{main.removesuffix('data.pkl')}data/{key}")
                if len(data) < numel * dtype.itemsize:
                    raise CheckpointError(f"its storage {key} is shorter than the tensor that uses it")
                memory = torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
                storages[key] = _Storage(memory, dtype)
            return storages[key]

        return _InertUnpickler(io.BytesIO(entry(main)), names, load_storage).load()


def _read_torch_stream(file: Any, size: int, names: collections.Counter[str]) -> Any:
    """torch <= 1.5: magic, protocol and system as pickles, the object, the storage keys, then the storages' bytes."""
    for _ in range(3):
        _InertUnpickler(file, names).load()
    storages: dict[str, _Storage] = {}
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
            storages[key] = _Storage(torch.UntypedStorage(numel * dtype.itemsize), dtype)
        if len(pid) < 6 or pid[5] is None:
            return storages[key]
        _, offset, length = pid[5]  # torch 0.1: a view into another storage
        return _Storage(storages[key].memory[offset * dtype.itemsize : (offset + length) * dtype.itemsize], dtype)

    content = _InertUnpickler(file, names, load_storage).load()
    for key in _InertUnpickler(file, names).load():
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


def _open_zip(path: Path) -> Opened:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"it is truncated or damaged ({error})", "download it again") from None
    leaves = {n.rpartition("/")[2] for n in entries}
    if "constants.pkl" in leaves:
        raise CheckpointError("it is a TorchScript archive, which is a program and runs when loaded", "save the module's state_dict() with torch.save instead")
    if "data.pkl" not in leaves:
        what = "a numpy archive" if any(n.endswith(".npy") for n in entries) else "a zip archive"
        raise CheckpointError(f"it is {what} without a torch checkpoint in it")
    try:
        return Opened(torch.load(path, map_location="cpu", weights_only=True, mmap=True), "torch zip")
    except Exception:  # refused or unreadable for torch: the inert reader says which
        return _inert(lambda names: _read_torch_zip(path, names), "torch zip")


def _open_stream(path: Path) -> Opened:
    try:
        return Opened(torch.load(path, map_location="cpu", weights_only=True), "torch legacy")
    except Exception:

        def read(names: collections.Counter[str]) -> Any:
            with path.open("rb") as file:
                return _read_torch_stream(file, path.stat().st_size, names)

        return _inert(read, "torch legacy")


def _open_pickle(path: Path) -> Opened:
    def read(names: collections.Counter[str]) -> Any:
        with path.open("rb") as file:
            return _InertUnpickler(file, names).load()

    return _inert(read, "pickle")


def _open_safetensors(path: Path) -> Opened:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return Opened({key: file.get_tensor(key) for key in file.keys()}, "safetensors", metadata=dict(file.metadata() or {}))  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"it is truncated or damaged ({error})", "download it again") from None


def open_checkpoint(path: Path) -> Opened:
    """Read any checkpoint file into plain dicts, lists and tensors (on the CPU). Nothing in the file is executed.

    Raises:
        MissingError: no such file.
        CheckpointError: not a checkpoint, damaged, or of a kind that cannot be read safely; the message names the file.
    """
    try:
        size = path.stat().st_size
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
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
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
