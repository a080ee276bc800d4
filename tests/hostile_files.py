"""Hostile and broken files, made by code, and a process that gives each of them to the command line and writes down what happened.

Run as a script: ``python hostile_files.py FOLDER`` makes the corpus in FOLDER and prints one JSON object for each file. The process may take a gigabyte of
address space beyond what importing torch took; an audit hook notes every call, connection, import and file opened for writing. With a second word it is the
control: it loads every payload with pickle, so that FOLDER has the mark of each.
"""

import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from conftest import named, sequential_generator

STATE = named(sequential_generator(6, (8, 4), 1))


def text(word):
    """The operation that pushes a word."""
    raw = word.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module, name, *args):
    """Operations that call module.name(*args); an argument of bytes is operations itself."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + b"".join(a if isinstance(a, bytes) else text(a) for a in args) + b"tR"


def stack_call(module, name, *args):
    return text(module) + text(name) + b"\x93(" + b"".join(map(text, args)) + b"tR"


def payloads(canary):
    """Pickles that make the file ``canary`` when loaded in the ordinary way, by the trick they use."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    attribute = call("operator", "attrgetter", "system")
    partial = call("functools", "partial", b"cbuiltins\nprint\n") + b"(cos\nsystem\n(" + text(touch) + b"t}}tb"
    bodies = {
        "os.system": call("os", "system", touch),
        "posix": call("posix", "system", touch),
        "stack-global": stack_call("posix", "system", touch),
        "stack-global-of-memo": text("os") + b"\x940" + text("system") + b"\x940" + b"h\x00h\x01\x93(" + text(touch) + b"tR",
        "dotted-in-torch": stack_call("torch", "serialization.os.system", touch),
        "dotted-in-numpy": stack_call("numpy", "f2py.os.system", touch),
        "dotted-in-this-package": stack_call("gancompress.checkpoint", "os.system", touch),
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "python2-eval": call("__builtin__", "eval", code),
        "getattr-chain": call("builtins", "getattr", call("builtins", "__import__", "os"), "system") + b"(" + text(touch) + b"tR",
        "attrgetter": attribute + b"(" + call("builtins", "__import__", "os") + b"tR(" + text(touch) + b"tR",
        "methodcaller": call("operator", "methodcaller", "system", touch) + b"(" + call("builtins", "__import__", "os") + b"tR",
        "partial": call("functools", "partial", b"cos\nsystem\n", touch) + b")R",
        "setstate-of-partial": partial + b")R",
        "map-in-a-list": call("builtins", "list", call("builtins", "map", b"cos\nsystem\n", b"]" + text(touch) + b"a")),
        "inst": b"(S" + repr(touch).encode() + b"\nios\nsystem\n",
        "obj": b"(cos\nsystem\n" + text(touch) + b"o",
        "popen": call("subprocess", "Popen", text("touch").join((b"](", text(str(canary)) + b"e"))),
        "nested-reduce": call("builtins", "eval", call("builtins", "str", call("builtins", "str", code))),
        "extension-registered-by-itself": call("copyreg", "add_extension", "os", "system", b"J\x01\x02\x03\x04")
        + b"0\x84\x01\x02\x03\x04("
        + text(touch)
        + b"tR",
        "profile": call("cProfile", "run", code),
        "runstring": call("numpy.testing._private.utils", "runstring", code, b"}"),
    }
    inner = b"\x80\x02" + bodies["os.system"] + b"."
    stream = b"".join(pickle.dumps(o, 2) for o in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + inner + pickle.dumps([], 2)
    bodies["load-from-bytes"] = call("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(stream)) + stream)
    return {name: (b"\x80\x02" if name.startswith("python2") else b"\x80\x04") + body + b"." for name, body in bodies.items()}


class Corpus:
    """Writes files into ``folder``; ``cases`` are their paths by name, ``fine`` the names of those that may be read, since only what lies beside is hostile."""

    def __init__(self, folder, canary):
        self.folder, self.canary = folder, canary
        self.cases, self.fine = {}, set()
        self.odd = {"name-too-long"}
        for make in (
            self.pickles,
            self.containers,
            self.torch_files,
            self.zips,
            self.safetensors,
            self.bombs,
            self.arrays,
            self.broken,
            self.odd_files,
            self.beside,
        ):
            make()

    def write(self, name, data=b"", fine=False):
        path = self.folder / f"{name}.pt"
        path.write_bytes(data)
        return self.add(name, path, fine)

    def add(self, name, path, fine=False):
        assert name not in self.cases
        self.cases[name] = path
        if fine:
            self.fine.add(name)
        return path

    def zip(self, name, pickled, storages=None, **options):
        """A torch zip around a pickle as it is."""
        path = self.add(name, self.folder / f"{name}.pt")
        with zipfile.ZipFile(path, "w", **options) as archive:
            archive.writestr("archive/data.pkl", pickled)
            for key, data in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", data)
            archive.writestr("archive/version", "3\n")
        return path

    def legacy(self, name, pickled, keys=(), tail=b""):
        parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}})
        self.write(name, b"".join(pickle.dumps(p, 2) for p in parts) + pickled + pickle.dumps(list(keys), 2) + tail)

    def pickles(self):
        """Every payload in every container of pickles."""
        for name, data in payloads(self.canary).items():
            self.write(f"pickle-{name}", data)
            self.zip(f"zip-{name}", data)
            self.legacy(f"legacy-{name}", data)

    def containers(self):
        """Payloads where no reader of ours should look at all, or not so deep."""
        payload = payloads(self.canary)["os.system"]
        inner = self.zip("zip-inside", payload).read_bytes()
        outer = self.add("zip-in-zip", self.folder / "zip-in-zip.pt")
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("model/teacher.pt", inner)
        self.write("gz", gzip.compress(payload))
        hostile = np.array([None], object)
        with zipfile.ZipFile(self.add("npz-of-objects", self.folder / "objects.npz"), "w") as archive:
            file = io.BytesIO()
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": hostile.shape})
            archive.writestr("x_train.npy", file.getvalue() + payload)
        source = f"open({str(self.canary)!r}, 'w').close()\nclass G: pass\n"
        meta = b"}(" + text("type") + text("class") + text("module_src") + text(source) + text("class_name") + text("G") + text("state") + b"}u"
        network = call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)
        self.write("nvlabs-with-module-source", b"\x80\x02}(" + text("G") + network + text("G_ema") + network + b"u.")
        tf = b"cdnnlib.tflib.network\nNetwork\n)\x81}(" + text("build_module_src") + text(source) + text("variables") + b"]" + payload[2:-1] + b"aub"
        self.write("tensorflow-with-source", b"\x80\x02(" + tf * 3 + b"t.")
        self.write("optimizer-state", b"\x80\x02}(" + text("state") + b"}" + text("param_groups") + b"]" + payload[2:-1] + b"au.")
        path = self.add("tar-with-links", self.folder / "links.pt")
        with tarfile.open(path, "w") as archive:
            for name, target in (("pickle", "/etc/passwd"), ("../../outside", None), ("/absolute", None), ("storages", "../../../etc")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
                archive.addfile(info)

    def torch_files(self):
        """Storages and tensors that lie."""

        def storage(kind="torch\nFloatStorage", key=b"X\x01\x00\x00\x000", numel=b"K\x04"):
            return b"(X\x07\x00\x00\x00storagec" + kind.encode() + b"\n" + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"

        def tensor(stored, offset=b"K\x00", size=b"K\x02K\x02\x86", stride=b"K\x02K\x01\x86"):
            rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + offset + size + stride + b"\x89ccollections\nOrderedDict\n)RtR"
            return b"\x80\x02}X\x0d\x00\x00\x00main.0.weight" + rebuilt + b"s."

        large = b"\x8a\x08" + struct.pack("<q", 2**62)
        lies = {
            "storage-of-a-function": tensor(storage("os\nsystem")),
            "storage-key-outside": tensor(storage(key=text("../../../../etc/passwd"))),
            "storage-key-absolute": tensor(storage(key=text("/etc/passwd"))),
            "storage-key-with-escapes": tensor(storage(key=text("\x1b[31m\n0"))),
            "storage-of-too-many": tensor(storage(numel=large)),
            "storage-of-negative-size": tensor(storage(numel=b"J\xff\xff\xff\xff")),
            "offset-beyond": tensor(storage(), offset=b"K\x40"),
            "offset-negative": tensor(storage(), offset=b"J\xff\xff\xff\xff"),
            "stride-beyond": tensor(storage(), stride=b"J\x00\x00\x00\x40K\x01\x86"),
            "stride-negative": tensor(storage(), stride=b"J\xff\xff\xff\xffK\x01\x86"),
            "size-beyond": tensor(storage(), size=b"J\x00\x00\x00\x40K\x02\x86"),
            "size-overflowing": tensor(storage(), size=large + large + b"\x86", stride=b"K\x00K\x00\x86"),
            "size-huge-of-one-value": tensor(storage(), size=b"J\x00\x00\x00\x40J\x00\x00\x00\x40\x86", stride=b"K\x00K\x00\x86"),
            "size-of-words": tensor(storage(), size=text("a") + text("b") + b"\x86"),
            "persistent-id-of-one-word": b"\x80\x02" + text("storage") + b"Q.",
            "persistent-id-of-a-list": b"\x80\x02]Q.",
            "persistent-id-of-a-module": b"\x80\x02(" + text("module") + b"cos\nsystem\n" + text("x.py") + text("import os") + b"tQ.",
        }
        data = struct.pack("<4f", 1, 2, 3, 4)
        for name, pickled in lies.items():
            self.zip(f"zip-{name}", pickled, {"0": data})
            self.legacy(f"legacy-{name}", pickled, ["0"], struct.pack("<q", 4) + data)
        for name, change in {
            "sparse": lambda t: t.to_sparse(),
            "meta": lambda t: t.to("meta"),
            "complex": lambda t: t.to(torch.complex64),
            "nan": lambda t: t * float("nan"),
            "too-large-for-float32": lambda t: t.double() * 1e300,
            "escapes-in-a-key": None,
        }.items():
            key = next(iter(STATE))
            changed = (
                {**STATE, key: change(STATE[key])}
                if change
                else {"\x1b[31mred\x07\nerror: forged": STATE, **{"\x1b]0;title\x07" + k: v for k, v in STATE.items()}}
            )
            torch.save(changed, self.add(f"state-{name}", self.folder / f"state-{name}.pt", fine=not change))

    def zips(self):
        """Archives that lie about what is in them."""
        self.zip("zip-bomb", b"\x80\x02" + b"]" * 150_000_000, compression=zipfile.ZIP_DEFLATED)
        self.zip("zip-storage-bomb", b"\x80\x02}.", {"0": bytes(150_000_000)}, compression=zipfile.ZIP_DEFLATED)
        path = self.zip("zip-overlapping", b"\x80\x02}.", {str(k): bytes(1000) for k in range(50)})
        data = bytearray(path.read_bytes())
        first, at = data.index(b"PK\x01\x02"), data.index(b"PK\x01\x02")
        while (at := data.find(b"PK\x01\x02", at + 4)) > 0:  # all begin where the first storage does, and are as long as the file
            struct.pack_into("<II", data, at + 20, len(data) - 200, len(data) - 200)
            data[at + 42 : at + 46] = data[first + 42 : first + 46]
        path.write_bytes(data)
        for name, entries in {
            "path-outside": ["../../outside/data.pkl"],
            "absolute-path": ["/tmp/outside/data.pkl"],
            "two-pickles": ["a/data.pkl", "b/data.pkl"],
            "same-name-twice": ["a/data.pkl", "a/version", "a/VERSION"],
            "escapes-in-a-name": ["a/data.pkl", "a/\x1b[31m\r"],
        }.items():
            with zipfile.ZipFile(self.add(f"zip-{name}", self.folder / f"zip-{name}.pt"), "w") as archive:
                for entry in entries:
                    archive.writestr(entry, b"\x80\x02}q\x00.")
        path = self.zip("zip-encrypted", b"\x80\x02}.")
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 6, 1)
        struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 8, 1)
        path.write_bytes(data)
        path = self.zip("zip-of-unknown-compression", b"\x80\x02}.")
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 8, 77)
        struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, 77)
        path.write_bytes(data)

    def safetensors(self):
        """Headers that lie."""

        def stored(name, header, body=b"", length=None):
            raw = header if isinstance(header, bytes) else json.dumps(header).encode()
            self.write(f"safetensors-{name}", struct.pack("<Q", len(raw) if length is None else length) + raw + body)

        def one(shape, *offsets, dtype="F32"):
            return {"main.0.weight": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}

        ours = {"format": 1, "family": "dcgan", "arch": {"resolution": 8, "nc": 1, "nz": 4, "g_widths": [4], "d_widths": [4]}}
        stored("length-2-60", one([1], 0, 4), bytes(4), 1 << 60)
        stored("length-99-mb", b"{" + b" " * 99_000_000 + b"}")
        stored("header-of-many", b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % k for k in range(400_000)) + b"}")
        stored("shape-huge", one([2**40, 2**40], 0, 4), bytes(4))
        stored("shape-overflowing", one([2**32, 2**32], 0, 0))
        stored("shape-negative", one([-1, 4], 0, 4), bytes(4))
        stored("shape-empty-and-huge", one([2**62, 0, 4, 4], 0, 0))
        stored("offsets-beyond", one([4], 0, 1 << 40), bytes(16))
        stored("offsets-turned-round", one([4], 16, 0), bytes(16))
        stored("nested", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        stored("dtype-unknown", one([4], 0, 16, dtype="os.system"), bytes(16))
        stored("metadata-nested", {"__metadata__": {"gancompress": "[" * 100_000}, **one([4], 0, 16)}, bytes(16))
        stored(
            "metadata-of-a-huge-network",
            {"__metadata__": {"gancompress": json.dumps({**ours, "arch": {**ours["arch"], "g_widths": [2**31] * 8, "resolution": 1024}})}} | one([4], 0, 16),
            bytes(16),
        )
        stored("family-with-escapes", {"__metadata__": {"gancompress": json.dumps({**ours, "family": "\x1b[31m[red]\n"})}, **one([4], 0, 16)}, bytes(16))
        stored("family-of-a-module", {"__metadata__": {"gancompress": json.dumps({**ours, "family": "os.system"})}, **one([4], 0, 16)}, bytes(16))

    def bombs(self):
        """Small pickles that unfold."""
        twice = b"q\x00h\x00\x86"
        shared = b"\x80\x02" + b"B" + struct.pack("<I", 4_000_000) + bytes(4_000_000) + b"q\x00"
        dtype = b"cnumpy\ndtype\n(" + text("u1") + b"tRq\x01"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01J" + struct.pack("<i", 4_000_000) + b"\x85h\x01\x89h\x00tb"
        for name, data in {
            "hash-of-shared-tuples": b"\x80\x02})" + twice * 60 + b"K\x01s.",
            "hash-of-deep-tuples": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
            "memo-slot": b"\x80\x02]r\xff\xff\xff\x3f.",
            "memo-slot-in-text": b"\x80\x02]p999999999\n.",
            "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].",
            "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
            "bytes8-of-16-gb": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 34) + b".",
            "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
            "long4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
            "depth-of-lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
            "depth-of-dicts": b"\x80\x02" + b"}K\x00" * 100_000 + b"K\x00" + b"s" * 100_000 + b".",
            "depth-of-calls": b"\x80\x02" + b"ccollections\nOrderedDict\n" * 50_000 + b")" + b"R\x85" * 50_000 + b".",
            "list-in-itself": b"\x80\x02]q\x00h\x00a.",
            "dict-in-itself": b"\x80\x02}q\x00K\x01h\x00s.",
            "object-in-itself": b"\x80\x02cm\nC\n)\x81q\x00}X\x08\x00\x00\x00_modulesq\x01}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00usb.",
            "state-that-renames-itself": b"\x80\x02cm\nC\n)\x81}(X\x0a\x00\x00\x00inert_argsK\x05"
            b"X\x0b\x00\x00\x00inert_itemsK\x06X\x0a\x00\x00\x00_modulesK\x07ub.",
            "names": b"\x80\x02](" + b"".join(b"cm\nn%d\n" % k for k in range(100_000)) + b"e.",
            "the-same-array-often": shared + b"0" + dtype + b"0](" + array * 2_000 + b"e.",
            "the-same-text-encoded-often": b"\x80\x02"
            + text("a" * 1_000_000)
            + b"q\x000]("
            + (b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tR") * 1_000
            + b"e.",
            "the-same-list-copied-often": b"\x80\x02](" + b"K\x01" * 100_000 + b"eq\x000](" + b"ctorch\nSize\n(h\x00tR" * 1_000 + b"e.",
            "device-of-shared-lists": b"\x80\x02](K\x01K\x01eq\x00" + b"0](h\x00h\x00eq\x00" * 60 + b"0ctorch\ndevice\n(h\x00tR.",
            "settings-of-shared-dicts": b"\x80\x02}"
            + b"q\x000}(".join([b"", *[b"".join(b"K" + bytes([k]) + b"h\x00" for k in range(200)) + b"u" for _ in range(4)]])
            + b".",
        }.items():
            self.write(f"pickle-{name}", data)
        layers = {}
        for _ in range(5):
            layers = dict.fromkeys(range(300), layers)
        torch.save({"g": STATE, "args": layers, "config": layers}, self.add("zip-settings-of-shared-dicts", self.folder / "settings.pt", fine=True))

    def arrays(self):
        """What numpy's own reader would believe."""
        dtype = b"cnumpy\ndtype\n(" + text("O") + b"\x89\x88tR(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
        void = b"cnumpy\ndtype\n(" + text("V8") + b"\x89\x88tR(K\x03" + text("|") + b"NNNJ\x00\x00\x00\x40K\x01K?tb"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
        for name, data in {
            "pointers-as-objects": empty + b"(K\x01K\x01\x85" + dtype + b"\x89C\x08AAAAAAAAtb",
            "void-with-references": empty + b"(K\x01K\x01\x85" + void + b"\x89C\x08AAAAAAAAtb",
            "scalar-of-void": b"cnumpy.core.multiarray\nscalar\n(" + void + b"C\x08AAAAAAAAtR",
            "scalar-of-objects": b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"C\x08AAAAAAAAtR",
            "shape-huge": empty + b"(K\x01\x8a\x06" + struct.pack("<q", 1 << 45)[:6] + b"\x85cnumpy\ndtype\n(" + text("f8") + b"tR\x89C\x08AAAAAAAAtb",
            "ndarray-made-huge": b"cnumpy\nndarray\n(\x8a\x06" + struct.pack("<q", 1 << 40)[:6] + b"\x85tR",
            "changes-our-function": b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b",
        }.items():
            self.write(f"numpy-{name}", b"\x80\x04" + data + b".")

    def broken(self):
        """Cut, empty, and what is no checkpoint."""
        torch.save(STATE, whole := self.folder / "whole")
        data = whole.read_bytes()
        whole.unlink()
        for size in (0, 1, 4, 30, 100, 700, len(data) // 2, len(data) - 22, len(data) - 1):
            self.write(f"cut-at-{size}", data[:size])
        self.write("zeros", bytes(10_000))
        self.write("noise", np.random.default_rng(0).bytes(10_000))
        self.write("json", b'{"architectures": ["os.system"]}')
        self.write("html", b"<!DOCTYPE html><script>1</script>")
        self.write("escapes", b"\x1b]0;owned\x07\x1b[2J" * 9)
        for name, pickled in {"extension-1": b"\x82\x01", "extension-4": b"\x84\xff\xff\xff\x7f", "buffer": b"\x97", "mark": b"(q\x00", "stop": b""}.items():
            self.write(f"pickle-{name}", b"\x80\x05" + pickled + b".")

    def odd_files(self):
        """What lies in a folder and is no file."""
        for name, target in (("zero", "/dev/zero"), ("passwd", "/etc/passwd"), ("loop", "link-loop.pt"), ("dangling", "/nonexistent/teacher.pt")):
            (self.folder / f"link-{name}.pt").symlink_to(target)
            self.add(f"link-{name}", self.folder / f"link-{name}.pt")
        os.mkfifo(self.add("pipe", self.folder / "pipe.pt"))
        self.add("directory", self.folder / "directory.pt").mkdir()
        folder = self.add("directory-of-links", self.folder / "links")
        folder.mkdir()
        (folder / "netG.pth").symlink_to("/dev/zero")
        os.mkfifo(folder / "netD.pth")
        (folder / "loop.pt").symlink_to("loop.pt")
        self.add("name-too-long", self.folder / ("a" * 5000))
        self.add("no-such-user", Path("~nosuchuser") / "teacher.pt")
        self.add("sample-outside", Path("sample:../../../etc/passwd"))

    def beside(self):
        """Honest weights in a folder whose other files are hostile."""
        payload = payloads(self.canary)["os.system"]
        contents = {
            "config-of-code": b'{"auto_map": {"AutoModel": "evil.py"}, "_target_": "os.system", "resolution": "__import__(\'os\').system(\'x\')"}',
            "config-nested": b"[" * 200_000,
            "config-of-large-numbers": b'{"resolution": ' + b"9" * 5000 + b"}",
            "config-not-text": b"\xff\xfe\x00" * 100,
            "config-of-names": b'{"resolution": "../../../etc/passwd", "\\u001b[31m": "\\n/absolute"}',
        }
        for name, data in contents.items():
            folder = self._honest(name)
            (folder / "config.json").write_bytes(data)
            (folder / "evil.py").write_text(f"open({str(self.canary)!r}, 'w')")
        folder = self._honest("arguments-of-code")
        (folder / "state_dict.pth").write_bytes(payload)
        self.cases["beside-arguments-of-code"] = folder / "teacher.safetensors"
        folder = self._honest("config-pipe")
        os.mkfifo(folder / "config.json")
        os.mkfifo(folder / "state_dict_best0.pth")
        folder = self._honest("config-of-zeros")
        (folder / "config.json").symlink_to("/dev/zero")
        folder = self._honest("run", "student.safetensors")
        (folder / "run.json").write_bytes(b"[" * 200_000)
        (folder / "recipe.yaml").write_text("a: !!python/object/apply:os.system ['touch " + str(self.canary) + "']\n")
        (folder / "state.pt").write_bytes(payload)

    def _honest(self, name, file="teacher.safetensors"):
        from safetensors.torch import save_file

        folder = self.add(f"beside-{name}", self.folder / f"beside-{name}", fine=True)
        folder.mkdir()
        save_file({k: v.contiguous() for k, v in STATE.items()}, folder / file)
        return folder


# ------------------------------------------------------------------------------------------------------------------- the process

CALLS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "pickle.find_class", "webbrowser.open")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree", "os.utime")


def ordinary(what):
    """Python's own modules (its encodings come when they are first needed), and the annotations of our own classes."""
    file, caller = getattr(what, "co_filename", ""), sys._getframe(2).f_globals["__name__"]
    return str(what).startswith("encodings.") or file.startswith(sys.base_prefix) or caller == "typing"


def reading():
    """Whether a source is being looked into, as opposed to the command line being put together."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("gancompress/loading.py"):
        frame = frame.f_back
    return frame is not None


def note_events(events):
    """From now on every event that no reading of a file should have is noted in the list."""

    def hook(event, args):
        if event in CALLS or event in CHANGES or event.startswith(("socket.", "ctypes.", "urllib.", "ftplib.", "http.")):
            events.append(f"{event} {args!r:.200}")
        elif event in ("exec", "compile", "import") and reading() and not ordinary(args[0]):
            events.append(f"{event} of {args[0]!r:.100}")
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) and args[0] != "/proc/self/clear_refs":
            events.append(f"open for writing {args[0]!r}")

    sys.addaudithook(hook)


def memory(field):
    """Bytes that /proc says of this process."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def forget_peak():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def call_command(command, words):
    """(exit code, what was printed, the exception that should not have come out) of one command line."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            command.main(words, prog_name="gancompress")
        except SystemExit as done:
            return done.code or 0, said.getvalue(), ""
        except BaseException as error:
            return -1, said.getvalue(), repr(error)
    return 0, said.getvalue(), ""


def control(folder):
    """Load every payload in the ordinary way, each in a process of its own."""
    for name in payloads("x"):
        if not (child := os.fork()):
            data, events = payloads(folder / name)[name], []
            if name == "posix":
                note_events(events)
            with contextlib.suppress(Exception):
                made = pickle.loads(data)
                made.wait() if hasattr(made, "wait") else None
            if events:
                print(json.dumps(events), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def main(folder):
    from typer.main import get_command

    from gancompress.cli import app

    run = functools.partial(call_command, get_command(app))  # put together once

    canary, events = folder / "it-ran", []
    (folder / "files").mkdir()
    corpus = Corpus(folder / "files", canary)
    torch.save(STATE, honest := folder / "honest.pt")
    torch.save(dict(STATE), legacy := folder / "honest-legacy.pt", _use_new_zipfile_serialization=False)
    for path in (honest, legacy, corpus.cases["beside-config-not-text"]):  # what is imported on the way is imported now
        assert run(["inspect", str(path)])[0] == 0
    used = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    note_events(events)
    for name, path in corpus.cases.items():
        events.clear()
        forget_peak()
        before, start = memory("VmRSS"), time.process_time()
        code, output, failed = run(["inspect", str(path)])
        found = {
            "name": name, "code": code, "output": output, "failed": failed, "events": list(events),
            "seconds": time.process_time() - start, "memory": memory("VmHWM") - before, "fine": name in corpus.fine, "ran": canary.exists(),
            "bytes": path.stat().st_size if name not in corpus.odd and path.is_file() else 0,
        }  # fmt: skip
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    (control if sys.argv[2:] else main)(Path(sys.argv[1]))
