"""Nothing in a checkpoint runs, and no damaged one gives a traceback."""

import argparse
import collections
import contextlib
import io
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import named, sequential_discriminator, sequential_generator

import gancompress
from gancompress.errors import CheckpointError, GanCompressError, UnsafeCheckpointError
from gancompress.loading import find
from gancompress.unpickle import open_checkpoint

NET = sequential_generator(6, (8, 4), 1)
STATE = {**named(NET)}


class Call:
    """Pickles as a call of module.name(*args), which need not exist here."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args

    def __reduce__(self):
        return Global(self.module, self.name), self.args


class Global:
    """Pickles as the global module.name."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *_):
        raise AssertionError("only for pickling")


class Pickler(pickle._Pickler):
    """Writes ``Global`` objects as bare references, whatever they name."""

    def save_global(self, obj, name=None):
        super().save_global(obj, name)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)


class PickleModule:
    """What torch.save takes as pickle_module."""

    Pickler = Pickler
    __name__ = "pickle"

    @staticmethod
    def dump(obj, file, protocol=2):
        Pickler(file, protocol).dump(obj)


def save_zip(content, path):
    torch.save(content, path, pickle_module=PickleModule)


def save_legacy(content, path):
    torch.save(content, path, pickle_module=PickleModule, _use_new_zipfile_serialization=False)


def save_plain(content, path):
    with path.open("wb") as file:
        Pickler(file, 2).dump(content)


CONTAINERS = {"zip": save_zip, "legacy": save_legacy, "plain": save_plain}


@pytest.fixture
def marker(tmp_path):
    """A file that the payloads would make."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "the payload ran"


def attempts(path, **options):
    """Everything the package does with a source; the first error is raised after all were tried."""
    errors = []
    for function in (open_checkpoint, lambda p: find(str(p)), lambda p: gancompress.load(str(p), **options), lambda p: gancompress.inspect(str(p))):
        try:
            function(path)
        except GanCompressError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def payloads(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call("posix", "system", f"touch {marker}"),
        "os.system": Call("os", "system", f"touch {marker}"),
        "subprocess.Popen": Call("subprocess", "Popen", ["touch", str(marker)]),
        "builtins.exec": Call("builtins", "exec", touch),
        "__builtin__.eval": Call("__builtin__", "eval", touch),
        "builtins.getattr": Call("builtins", "getattr", Call("builtins", "__import__", "os"), "system"),
        "runpy._run_code": Call("runpy", "_run_code", touch, {}),
    }


NAMES = list(payloads("x"))


@pytest.mark.parametrize("name", NAMES)
def test_the_payloads_of_these_tests_are_not_blanks(name, tmp_path):
    """The control: the same bytes, read in the ordinary way, do run (getattr alone has nothing to run)."""
    path = tmp_path / "it-ran"
    file = io.BytesIO()
    Pickler(file, 2).dump(payloads(path)[name])
    try:
        made = pickle.loads(file.getvalue())
        made.wait() if hasattr(made, "wait") else None
    except SystemError:
        pass
    assert path.exists() == (name != "builtins.getattr")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "place",
    [
        lambda p: p,
        lambda p: {"netG": dict(STATE), "optimizer": {"state": {0: p}, "param_groups": []}},
        lambda p: {**STATE, "main.0.weight": p},
        lambda p: {"netG": dict(STATE), p: 1},
        lambda p: [({"deep": [p]},)],
    ],
    ids=["top", "optimizer", "weight", "key", "deep"],
)
def test_a_hostile_call_is_named_and_never_made(name, container, place, marker, tmp_path):
    content = place(payloads(marker)[name])
    if container == "plain" and isinstance(content, dict):
        content = {k: (np.zeros(3) if isinstance(v, torch.Tensor) else {} if k == "netG" else v) for k, v in content.items()}
    CONTAINERS[container](content, path := tmp_path / "teacher.pt")
    with pytest.raises(UnsafeCheckpointError) as caught:
        attempts(path)
    assert str(path) in str(caught.value)
    assert any(n in str(caught.value) for n in (name, "builtins.__import__"))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "name", ["cProfile.run", "numpy.testing._private.utils.runstring", "torch.hub.load", "bdb.Bdb", "_osx_support._read_output", "nosuch.module"]
)
def test_a_call_nobody_listed_is_not_made_either(container, name, marker, tmp_path):
    module, _, function = name.rpartition(".")
    content = {"epoch": 3, "extra": Call(module, function, f"open({str(marker)!r}, 'w')")}
    CONTAINERS[container](content, path := tmp_path / "teacher.pt")
    opened = open_checkpoint(path)
    assert opened.inert == [name]
    with pytest.raises(CheckpointError):
        attempts(path)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_dotted_name_does_not_climb_out_of_an_allowed_module(container, marker, tmp_path):
    content = {**STATE, "extra": Call("torch", "serialization.os.system", f"touch {marker}"), "more": Call("numpy", "os.system", f"touch {marker}")}
    CONTAINERS[container](content, path := tmp_path / "teacher.pt")
    with contextlib.suppress(GanCompressError):
        attempts(path)


def test_nvlabs_embedded_source_is_not_run(marker, tmp_path):
    source = f"open({str(marker)!r}, 'w').close()\nclass Generator: pass\n"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Generator", "state": {"_parameters": collections.OrderedDict(), "z_dim": 4}}
    network = Call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)
    path = tmp_path / "network.pkl"
    save_plain({"G": network, "D": network, "G_ema": network, "training_set_kwargs": {}}, path)
    opened = open_checkpoint(path)
    assert opened.inert == ["torch_utils.persistence._reconstruct_persistent_obj"]
    with pytest.raises(CheckpointError, match=r"network\.pkl"):
        attempts(path)


class Config:
    def __init__(self):
        self.lr, self.hidden = 2e-4, [1, 2]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "extra", [argparse.Namespace(lr=1e-4), Config(), {1, 2}, np.arange(3), np.float64(1.5), torch.nn.ReLU(), slice(1, 2), torch.device("cpu")]
)
def test_harmless_things_beside_the_weights_do_no_harm(zipped, extra, tmp_path):
    path = tmp_path / "teacher.pt"
    torch.save({"args": extra, "g": STATE, "nested": {"more": [extra]}}, path, _use_new_zipfile_serialization=zipped)
    z = torch.ones(2, 6)
    torch.testing.assert_close(gancompress.load(str(path))(z), NET(z[:, :, None, None]), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- sizes that lie


def rezip(source, target, change):
    """A copy of a zip with every (name, bytes) passed through ``change``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if (data := change(info.filename, old.read(info))) is not None:
                new.writestr(info.filename, data)


def replace_number(data, old, new):
    """The pickle with the one integer ``old`` replaced by a 32-bit ``new``."""
    spots = [(op, pos) for op, arg, pos in pickletools.genops(data) if op.name.startswith(("BININT", "LONG")) and arg == old]
    (op, pos) = spots[0]
    length = {"BININT1": 2, "BININT2": 3, "BININT": 5}[op.name]
    return data[:pos] + b"J" + struct.pack("<i", new) + data[pos + length :]


@pytest.fixture
def odd_file(tmp_path):
    """A zip of one oddly sized tensor, whose pickle is easily found and changed; kept from torch's own reader by a config object."""

    def write(zipped=True, hidden=True):
        content = {"w": torch.zeros(3001), **({"args": argparse.Namespace()} if hidden else {})}
        torch.save(content, path := tmp_path / "odd.pt", _use_new_zipfile_serialization=zipped)
        return path

    return write


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize(("number", "value"), [(0, 2**31 - 1), (1, 2**31 - 1), (1, 3002), (1, -5)])
def test_a_tensor_or_storage_beyond_the_file_is_refused(odd_file, tmp_path, hidden, number, value):
    """The first 3001 in the pickle is the storage's size, the second the tensor's."""

    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        if number:  # change the second one: hide the first meanwhile
            data = replace_number(data, 3001, 77777)
        data = replace_number(data, 3001, value)
        return replace_number(data, 77777, 3001) if number else data

    rezip(odd_file(hidden=hidden), path := tmp_path / "changed.pt", change)
    with pytest.raises(CheckpointError, match=r"changed\.pt"):
        attempts(path)


@pytest.mark.parametrize("size", [3002, 65000])
def test_a_tensor_beyond_its_storage_is_refused_in_a_legacy_file_too(odd_file, tmp_path, size):
    first, found, rest = odd_file(zipped=False).read_bytes().partition(b"M" + struct.pack("<H", 3001))
    rest, again, tail = rest.partition(found)
    assert again, "the storage's size, then the tensor's"
    path = tmp_path / "outside.pt"
    path.write_bytes(first + found + rest + b"M" + struct.pack("<H", size) + tail)
    with pytest.raises(CheckpointError, match="outside its storage"):
        attempts(path)


def test_a_storage_shorter_than_its_tensor_is_refused(odd_file, tmp_path):
    rezip(odd_file(), path := tmp_path / "short.pt", lambda name, data: data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match=r"short\.pt: .*shorter"):
        attempts(path)


def test_a_zip_without_the_storage_it_refers_to_is_refused(odd_file, tmp_path):
    rezip(odd_file(), path := tmp_path / "lacking.pt", lambda name, data: None if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match=r"lacking\.pt"):
        attempts(path)


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("entry", [b"data/0", b"data.pkl"])
def test_a_zip_entry_that_claims_more_than_the_file_is_refused(odd_file, tmp_path, entry, hidden):
    data = bytearray(odd_file(hidden=hidden).read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(entry))  # its place in the central directory
    struct.pack_into("<II", data, at + 20, 0xF0000000, 0xF0000000)
    path = tmp_path / "bomb.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bomb\.pt"):
        attempts(path)


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"]" * 5_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="claims 5,000,002 bytes"):
        attempts(path)


def test_a_legacy_storage_that_claims_more_than_the_file_is_refused(odd_file, tmp_path):
    data = odd_file(zipped=False).read_bytes()
    path = tmp_path / "large.pt"
    path.write_bytes(data.replace(b"M" + struct.pack("<H", 3001), b"J" + struct.pack("<i", 2**31 - 1), 1))
    assert path.read_bytes() != data
    with pytest.raises(CheckpointError, match="claim more than"):
        attempts(path)


def test_a_torchscript_archive_is_refused_by_name(tmp_path):
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("s/data.pkl", "s/constants.pkl", "s/code/__torch__.py", "s/version"):
            archive.writestr(name, b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="TorchScript"):
        attempts(path)


# ------------------------------------------------------------------------------------------------------------- what is cut or torn


def write_safetensors(content, path):
    from safetensors.torch import save_file

    save_file({k: t.contiguous() for k, t in content.items()}, path)


WHOLE = sequential_discriminator(1, (4, 8))
WRITERS = {
    "zip": lambda path: torch.save(STATE, path),
    "legacy": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "zip module": lambda path: torch.save(WHOLE, path),
    "legacy module": lambda path: torch.save(WHOLE, path, _use_new_zipfile_serialization=False),
    "plain": lambda path: save_plain({"G": Config(), "x": np.arange(300)}, path),
    "safetensors": lambda path: write_safetensors(STATE, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_cut_anywhere_is_an_error_and_never_a_traceback(writer, tmp_path):
    WRITERS[writer](whole := tmp_path / "whole.pt")
    data = whole.read_bytes()
    path = tmp_path / "cut.pt"
    for size in sorted({0, 1, 2, 3, 4, 8, 9, 10, 64, len(data) - 1, *(len(data) * i // 12 for i in range(12))}):
        path.write_bytes(data[:size])
        with pytest.raises(GanCompressError, match=r"cut\.pt: "):
            attempts(path)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_with_flipped_bytes_is_read_or_refused(writer, tmp_path):
    WRITERS[writer](whole := tmp_path / "whole.pt")
    data = whole.read_bytes()
    path = tmp_path / "torn.pt"
    rng = np.random.default_rng(0)
    for _ in range(25):
        torn = bytearray(data)
        for at in rng.integers(0, min(len(data), 3000), 3):
            torn[at] ^= int(rng.integers(1, 256))
        path.write_bytes(torn)
        try:
            attempts(path)
        except GanCompressError as error:
            assert "torn.pt" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02N.",
        b"\x80\x04]\x94.",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02\x8a\x0a",
        b"\0" * 600,
        b"\xff" * 600,
    ],
)
def test_a_few_bytes_are_no_checkpoint(data, tmp_path):
    path = tmp_path / "few.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"few\.pt: "):
        gancompress.load(str(path))


def test_a_pickle_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "deep.pkl"
    path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(CheckpointError, match=r"deep\.pkl"):
        attempts(path)


def test_a_module_that_holds_itself_is_no_endless_loop(tmp_path):
    net = torch.nn.Module()
    net.weight = torch.nn.Parameter(torch.zeros(2, 2))
    net._modules["one"] = net._modules["two"] = net
    path = tmp_path / "cycle.pt"
    torch.save(net, path)
    with pytest.raises(CheckpointError, match=r"cycle\.pt"):
        gancompress.load(str(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_are_read_whatever_the_protocol_of_the_pickle(protocol, order, tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)) if order == "F" else np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": array}, protocol=protocol))
    assert np.array_equal(open_checkpoint(tmp_path / "a.pkl").content["w"], array)


def test_a_tensor_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path):
    torch.save({"main.0.weight": torch.zeros(1).expand(10**6, 100, 4, 4), "main.2.weight": torch.zeros(100, 3, 4, 4)}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match=r"main\.0\.weight claims 6,400,000,000 bytes"):
        find(str(tmp_path / "bomb.pth"))


def test_a_file_whose_parts_hold_one_another_many_times_over_ends(tmp_path):
    leaf = {"param_groups": [], "state": {}}
    inner = dict.fromkeys(range(1000), leaf)
    torch.save(dict.fromkeys(range(1000), dict.fromkeys(range(1000), inner)), tmp_path / "dag.pth")
    with pytest.raises(CheckpointError):
        find(str(tmp_path / "dag.pth"))
