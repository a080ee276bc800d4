"""An unpickler that imports nothing: it knows a short list of names, and puts a lifeless ``Inert`` object in place of every other one.

What it does know is bounded: every array, tensor and copy that a pickle asks for is counted against the size of the file, so that naming one
thing a thousand times does not make it a thousand things.
"""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gancompress.errors import CheckpointError, printable

#: foreign names in one file; the largest networks name some dozens
MAX_NAMES = 1000

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip


class Budget:
    """Bytes that may be made of a file of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.left = (1 << 26) + 8 * size

    def take(self, count: int) -> None:
        """Raises CheckpointError where there is no more."""
        self.left -= count
        if self.left < 0:
            raise CheckpointError("it unfolds to far more than the file holds")


class Inert:
    """Stands for an object of a class we do not import. Keeps what the pickle says of it and does nothing."""

    inert_name = "?"
    inert_budget: Budget

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        cls.inert_budget.take(300)
        self = super().__new__(cls)
        self.__dict__["inert_args"] = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict | None):
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            self.inert_budget.take(100 * len(state))
            self.__dict__.update((k, v) for k, v in state.items() if isinstance(k, str) and not k.startswith("inert_"))
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


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of tensors, as a pickle refers to it."""

    memory: torch.UntypedStorage
    dtype: torch.dtype


class _Call:
    """A function of ours that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError("it tries to change the program that reads it")


class _Dtype:
    """A numpy dtype of numbers or text; ``real`` None: of another kind, which is not read."""

    __slots__ = ("real",)

    def __init__(self, name: Any, *_: Any) -> None:
        found = np.dtype(name) if isinstance(name, str) and len(name) < 20 else None
        self.real = found if found is not None and found.kind in "biufcSU" and found.shape == () else None

    def __setstate__(self, state: Any) -> None:
        """numpy's own would believe sizes and flags; of those states the byte order alone is of use."""
        if self.real is not None and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.real = self.real.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled by the state its pickle has for it."""

    budget: Budget

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.real is None:
            return  # of objects: left empty
        count = _count(shape) * dtype.real.itemsize
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, bytes) or len(raw) != count:
            raise CheckpointError(f"an array of shape {shape} is not made of {count:,} bytes")
        self.budget.take(count)
        filled: Any = (1, shape, dtype.real, bool(fortran), raw)
        super().__setstate__(filled)


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in shape):
        raise CheckpointError("an array has a shape that is none")
    return math.prod(shape)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, str | int))


def _parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


class Reader(pickle.Unpickler):
    """Reads one pickle of a file. ``names`` counts those that were not imported.

    Args:
        load_storage: what a persistent id stands for; none may be there where it is None.
        load_bytes: reads a torch file within the file, where one may be.
    """

    def __init__(
        self,
        file: Any,
        names: collections.Counter[str],
        budget: Budget,
        load_storage: Callable[[Any], Any] | None = None,
        load_bytes: Callable[[bytes], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._names, self._budget, self._load_storage, self._load_bytes = names, budget, load_storage, load_bytes
        self._array_class = type("_Array", (_Array,), {"budget": budget})
        self._classes: dict[str, type[Inert]] = {}
        self._calls = {name: _Call(function) for name, function in self._functions().items()}

    def _functions(self) -> dict[tuple[str, str], Callable[..., Any]]:
        found: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): lambda *args: self._copy(collections.OrderedDict, 100, *args),
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
            ("torch.storage", "_load_from_bytes"): self._nested,
            ("torch", "Size"): lambda *args: self._copy(torch.Size, 8, *args),
            ("torch", "device"): _device,
            ("_codecs", "encode"): self._encoded,
            ("builtins", "set"): lambda *args: self._copy(set, 70, *args),
            ("__builtin__", "set"): lambda *args: self._copy(set, 70, *args),
        }
        for package in ("numpy.core.numeric", "numpy._core.numeric"):
            found[package, "_frombuffer"] = self._from_buffer
        for package in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            found |= {(package, "dtype"): _Dtype, (package, "_reconstruct"): self._empty, (package, "scalar"): self._scalar}
            found[package, "ndarray"] = self._empty
        return found

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._calls:
            return self._calls[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return dtype_of(name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        full = printable(f"{module}.{name}", 200)
        self._names[full] += 1
        if full not in self._classes:
            if len(self._classes) >= MAX_NAMES:
                raise CheckpointError(f"it names more than {MAX_NAMES} things to be imported")
            self._classes[full] = type("Inert", (Inert,), {"inert_name": full, "inert_budget": self._budget})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        if self._load_storage is None:
            raise CheckpointError("it refers to storages outside itself")
        return self._load_storage(pid)

    def _copy(self, kind: Callable[..., Any], weight: int, *args: Any) -> Any:
        self._budget.take(weight * (1 + sum(len(a) for a in args)))
        return kind(*args)

    def _nested(self, data: bytes) -> Any:
        if self._load_bytes is None or not isinstance(data, bytes):
            raise CheckpointError("it has files within files within files")
        self._budget.take(len(data))
        return self._load_bytes(data)

    def _encoded(self, text: str, encoding: str = "latin1") -> bytes:
        self._budget.take(len(text))
        return _encode(text, encoding)

    def _empty(self, *_: Any) -> Any:
        self._budget.take(200)
        return np.empty(0, np.int8).view(self._array_class)

    def _scalar(self, dtype: _Dtype, data: Any = b"") -> Any:
        if dtype.real is None:
            return None
        raw = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(raw, dtype.real, 1)[0]

    def _from_buffer(self, buffer: Any, dtype: _Dtype, shape: Any, order: str = "C") -> Any:
        """An array as pickle protocol 5 writes it."""
        if dtype.real is None:
            return self._empty()
        _count(shape)
        return np.frombuffer(buffer, dtype.real).reshape(shape, order="F" if order == "F" else "C")

    def _tensor(self, storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        self._budget.take(1000)
        size, stride = tuple(size), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else offset
        # a view past the end of the storage would read foreign memory
        if min((offset, *size, *stride), default=0) < 0 or (all(size) and (last + 1) * storage.dtype.itemsize > storage.memory.nbytes()):
            raise CheckpointError(f"a tensor of shape {size} lies outside its storage")
        return torch.tensor([], dtype=storage.dtype).set_(storage.memory, offset, size, stride)


def dtype_of(storage_class: str) -> torch.dtype:
    """Raises CheckpointError for a class of storages that is not read."""
    if storage_class not in _DTYPES:
        raise CheckpointError(f"it holds a {printable(storage_class, 80)}, a kind of tensor we do not read")
    return _DTYPES[storage_class]
