"""Thousands of files with something changed in them, through ``inspect``: nothing but a GanCompressError may come out.

Mutations are of three kinds: bytes of any container; headers of safetensors files that stay well-formed (shapes, dtypes, names, metadata); and
operations of pickles. Seeds are fixed: the case of a failure is its number.
"""

import argparse
import collections
import functools
import io
import itertools
import json
import pickle
import pickletools
import resource
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, named, sequential_generator, small_gan
from safetensors.torch import save
from test_safety import rezip, save_plain

from gancompress import api
from gancompress.checkpoint import save_networks
from gancompress.errors import GanCompressError

#: cases of the default run and of the slow one, for each kind of mutation
FEW, MANY = 40, 2600
#: a case that takes longer than this (seconds of this process) counts as a failure
SLOWEST = 10.0


def numbers(rng):
    """Numbers that make trouble."""
    return [0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, int(rng.integers(0, 5000))][rng.integers(16)]


def values(rng):
    """Values that make trouble, of any type JSON has."""
    return [numbers(rng), -0.5, 1e308, True, None, "", "tanh", "none", [], [0], [8, 4], [[1]], {}, {"a": 1}, "\x1b[31m", [10**9]][rng.integers(16)]


# ------------------------------------------------------------------------------------------------------------------------ seeds


@functools.cache
def our_files():
    """Bytes of our own files, two for each family."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for family, variants in SMALL.items():
            for fields in variants[:2]:
                gan = small_gan(family, fields)
                save_networks(path := Path(folder) / "a.safetensors", gan.family, gan.arch, gan.networks, {"recipe": "mse", "kimg": 1.0})
                found.append(path.read_bytes())
    return found


@functools.cache
def foreign_states():
    """State dicts as others save them, and our families' own without our metadata."""
    found = [named(sequential_generator(6, (8, 4), 1))]
    for family, variants in SMALL.items():
        for fields in variants[:2]:
            found += [dict(net.state_dict()) for net in small_gan(family, fields).networks.values()]
    return found


def pickles(rng):
    """One of the containers that hold pickles, and a setting of odd types beside the weights."""
    state = foreign_states()[rng.integers(len(foreign_states()))]
    content = {"g_ema": state, "args": argparse.Namespace(a=1, b=[1, 2]), "epoch": 3, "config": {"resolution": 8, "z_dim": 4}}
    return content if rng.integers(2) else state


# -------------------------------------------------------------------------------------------------------------------- mutations


def bytes_changed(data, rng, head):
    """A few bytes flipped, cut out, put in, or all behind one cut off; most of them near the beginning or the end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        if not data:
            break
        near = [int(rng.integers(len(data))), int(rng.integers(min(head, len(data)))), len(data) - 1 - int(rng.integers(min(head, len(data))))]
        at = near[rng.integers(3)]
        kind = rng.integers(6)
        if kind < 3:
            data[at] ^= int(rng.integers(1, 256))
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 40)))
        else:
            del data[at:]
    return bytes(data)


def split_header(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body, rng):
    text = json.dumps(header).encode()
    return struct.pack("<Q", numbers(rng) % 2**64 if rng.integers(20) == 0 else len(text)) + text + body


def header_changed(data, rng):
    """Numbers, names, dtypes and metadata of a safetensors header, its tensors laid out anew (or not) to fit."""
    header, body = split_header(data)
    meta = header.pop("__metadata__", {})
    for _ in range(rng.integers(1, 4)):
        key = list(header)[rng.integers(len(header))]
        kind = rng.integers(9)
        if kind < 3:
            shape = header[key]["shape"]
            if shape and kind:
                shape[rng.integers(len(shape))] = numbers(rng) if kind == 1 else int(rng.integers(0, 9))
            else:
                header[key]["shape"] = [int(n) for n in rng.integers(0, 5, rng.integers(0, 6))]
        elif kind == 3:
            header[key]["dtype"] = ["F16", "BF16", "F64", "I64", "I8", "BOOL", "U16", "F8_E4M3", "F8_E5M2", "C64", "F4", "X"][rng.integers(12)]
        elif kind == 4:
            header[["", key + ".weight", "main.0.weight", "\x1b[2J", "a" * 3000, key.replace("0", "99999999999")][rng.integers(6)]] = header.pop(key)
        elif kind == 5:
            del header[key]
            if not header:
                break
        elif kind == 6:
            header[key]["data_offsets"] = [numbers(rng), numbers(rng)]
        elif meta.get("gancompress"):
            ours = json.loads(meta["gancompress"])
            place = ours["arch"] if kind == 7 and isinstance(ours["arch"], dict) else ours
            field = list(place)[rng.integers(len(place))]
            old = place[field]
            if isinstance(old, list) and old and rng.integers(2):
                old[rng.integers(len(old))] = values(rng)
            else:
                place[field] = values(rng)
            meta["gancompress"] = json.dumps(ours)
    if rng.integers(4) and all(isinstance(n, int) and 0 <= n < 5000 for t in header.values() for n in t["shape"]):
        sizes = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2, "U16": 2}
        at = 0
        for tensor in header.values():
            end = at + int(np.prod(tensor["shape"], dtype=object)) * sizes.get(tensor["dtype"], 1)
            tensor["data_offsets"], at = [at, end], end
        if at < 4_000_000:
            body = bytes(at)
    return joined({"__metadata__": meta, **header} if meta else header, body, rng)


OPCODES = [op.code.encode("latin1") for op in pickletools.opcodes]


def operations_changed(data, rng):
    """A pickle with operations taken out, doubled, exchanged, put in, or given other arguments."""
    spots = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(spots)]
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(parts)))
        kind = rng.integers(6)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[rng.integers(len(parts))])
        elif kind == 2:
            parts[at] = parts[rng.integers(len(parts))]
        elif kind == 3:
            parts.insert(at, OPCODES[rng.integers(len(OPCODES))] + rng.bytes(int(rng.integers(0, 6))))
        elif kind == 4:
            parts[at] = parts[at][:1] + rng.bytes(len(parts[at]) - 1)
        else:
            parts[at] = pickle.dumps(numbers(rng), 2)[2:-1]
        if not parts:
            break
    return b"".join(parts)


def safetensors_bytes(rng, path):
    seeds = our_files()
    path.write_bytes(bytes_changed(seeds[rng.integers(len(seeds))], rng, 3000))


def safetensors_header(rng, path):
    seeds = our_files() if rng.integers(2) else [save(s) for s in [foreign_states()[rng.integers(len(foreign_states()))]]]
    path.write_bytes(header_changed(seeds[rng.integers(len(seeds))], rng))


def container_bytes(rng, path):
    content = pickles(rng)
    if (kind := rng.integers(3)) == 2:
        save_plain({"G": argparse.Namespace(x=collections.OrderedDict(a=1)), "x": np.arange(30)}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=bool(kind))
    path.write_bytes(bytes_changed(path.read_bytes(), rng, 4000))


def pickle_operations(rng, path):
    content = pickles(rng)
    kind = rng.integers(3)
    if kind == 0:  # in a zip
        torch.save(content, whole := path.with_name("whole"))
        rezip(whole, path, lambda name, data: operations_changed(data, rng) if name.endswith("data.pkl") else data)
    elif kind == 1:  # the fourth pickle of a legacy file
        torch.save(content, path, _use_new_zipfile_serialization=False)
        file = io.BytesIO(path.read_bytes())
        for _ in range(3):
            collections.deque(pickletools.genops(file), 0)
        start = file.tell()
        collections.deque(pickletools.genops(file), 0)
        data, end = file.getvalue(), file.tell()
        path.write_bytes(data[:start] + operations_changed(data[start:end], rng) + data[end:])
    else:
        arrays = {"G": {"variables": [("a/weight", np.ones((3, 3, 2, 2), np.float32)), ("b", np.float32(1))]}, "set": {1, 2}}
        path.write_bytes(operations_changed(pickle.dumps(arrays, protocol=int(rng.integers(2, 6))), rng))


KINDS = {f.__name__: f for f in (safetensors_bytes, safetensors_header, container_bytes, pickle_operations)}


def outcomes(kind, count, folder):
    """How many cases of each outcome; the first failure is raised with its number."""
    found = collections.Counter()
    for number in range(count):
        rng = np.random.default_rng([list(KINDS).index(kind), number])
        path = folder / "case.pt"
        path.unlink(missing_ok=True)
        KINDS[kind](rng, path)
        before = time.process_time()
        try:
            api.inspect(str(path))
            outcome = "read"
        except GanCompressError as error:
            outcome = type(error).__name__
            assert not set(str(error) + error.hint) & {chr(c) for c in range(32) if c != 10}, f"{kind} {number}: control characters in {error}"  # noqa: PT017
        except Exception as error:
            raise AssertionError(f"{kind}, case {number}: {type(error).__name__}: {error}") from error
        assert time.process_time() - before < SLOWEST, f"{kind}, case {number} took {time.process_time() - before:.1f} s"
        found[outcome] += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_a_little_is_read_or_refused(kind, tmp_path):
    assert sum(outcomes(kind, FEW, tmp_path).values()) == FEW


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_changed_files_are_read_or_refused(kind, tmp_path):
    """10,400 in all; memory may grow by half a gigabyte from the first case to the last."""
    outcomes(kind, 1, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outcomes(kind, MANY, tmp_path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{kind}: {dict(found)}, {grown / 1e6:.0f} MB more")
    assert sum(found.values()) == MANY
    assert len(found) > 1, "not one was read, or not one refused"
    assert grown < 512e6
