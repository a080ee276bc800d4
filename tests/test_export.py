"""An export gives the source's images, or it is not there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import gancompress
from gancompress import exporter
from gancompress.checkpoint import save_networks
from gancompress.errors import GanCompressError, ParityError, UsageError
from gancompress.loading import load_gan

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def images_of(net):
    with torch.no_grad():
        return net(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-2)])
def test_an_export_loads_back_and_gives_the_same_images(dtype, tolerance, tiny_teacher, tmp_path):
    folder = gancompress.export(str(tiny_teacher), tmp_path / "out", dtype)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert not list(tmp_path.glob("*.partial"))
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {DTYPES[dtype]}
    assert all(k.startswith("generator.") for k in tensors)
    expected = images_of(gancompress.load(str(tiny_teacher)))
    for source in (folder, folder / "model.safetensors"):
        net = gancompress.load(str(source))
        assert not net.training
        assert (images_of(net) - expected).abs().max() <= tolerance
        assert {p.dtype for p in net.parameters()} == {torch.float32}  # what the file holds is half; what runs is not


def test_what_is_written_loads_whatever_the_length_of_its_header(tiny_gan, tmp_path):
    """A safetensors file begins with its header's length: some lengths look like the first bytes of a pickle."""
    starts = set()
    for pad in range(0, 900, 8):
        path = tmp_path / "net.safetensors"
        save_networks(path, tiny_gan.family, tiny_gan.arch, {"generator": tiny_gan.generator}, {"note": "x" * pad})
        starts.add(path.read_bytes()[:2])
        load_gan(str(path))
    assert starts & {b"\x80" + bytes([n]) for n in range(2, 6)}


def test_config_json_tells_all_it_takes_to_rebuild_the_network(tiny_teacher, tmp_path):
    folder = gancompress.export(str(tiny_teacher), tmp_path / "out", "float16")
    config = json.loads((folder / "config.json").read_text())
    gan = load_gan(str(tiny_teacher))
    assert (config["library"], config["family"], config["dtype"], config["output_range"]) == ("gancompress", "dcgan", "float16", [-1, 1])
    arch = gan.family.build_arch(None, config["arch"])
    assert arch == gan.arch.__class__(**{**vars(gan.arch), "d_widths": arch.d_widths})
    assert 0 <= config["parity_max_difference"] <= 1e-2


def test_half_precision_halves_the_file(tiny_teacher, tmp_path):
    sizes = [
        sum(t.numel() * t.element_size() for t in load_file(gancompress.export(str(tiny_teacher), tmp_path / d, d) / "model.safetensors").values() if t.ndim)
        for d in DTYPES
    ]
    assert sizes[0] == 2 * sizes[1]


def test_an_export_over_an_export_replaces_it(tiny_teacher, tmp_path):
    for dtype in ("float32", "float16"):
        folder = gancompress.export(str(tiny_teacher), tmp_path / "out", dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("there", [False, True])
def test_an_export_that_differs_is_an_error_and_nothing_is_left(there, tiny_teacher, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if there:
        gancompress.export(str(tiny_teacher), out)
    before = {p: p.read_bytes() for p in out.glob("*")}
    monkeypatch.setitem(exporter.TOLERANCE, torch.float16, 1e-9)
    with pytest.raises(ParityError, match="pixels differ by up to") as caught:
        gancompress.export(str(tiny_teacher), out, "float16")
    assert caught.value.exit_code == 6
    assert {p: p.read_bytes() for p in out.glob("*")} == before
    assert {p.name for p in tmp_path.iterdir()} == ({"out"} if there else set())


def test_a_network_whose_numbers_do_not_fit_half_precision_is_an_error_and_nothing_is_left(tmp_path, tiny_gan):
    tiny_gan.generator.state_dict()["layers.0.norm.running_var"].fill_(1e6)  # more than float16's 65504
    save_networks(tmp_path / "big.safetensors", tiny_gan.family, tiny_gan.arch, {"generator": tiny_gan.generator}, {})
    with pytest.raises(ParityError, match=r"big\.safetensors as float16"):
        gancompress.export(str(tmp_path / "big.safetensors"), tmp_path / "out", "float16")
    assert [p.name for p in tmp_path.iterdir()] == ["big.safetensors"]
    gancompress.export(str(tmp_path / "big.safetensors"), tmp_path / "out", "float32")


@pytest.mark.parametrize("what", ["a file", "other files"])
def test_somebodys_files_are_never_written_over(what, tiny_teacher, tmp_path):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious.txt").write_text("precious")
    with pytest.raises(UsageError, match="not an empty directory") as caught:
        gancompress.export(str(tiny_teacher), out)
    assert "--out" in caught.value.hint
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [out.name if what == "a file" else "precious.txt"]


def test_an_empty_directory_is_taken(tiny_teacher, tmp_path):
    (tmp_path / "out").mkdir()
    assert (gancompress.export(str(tiny_teacher), tmp_path / "out") / "model.safetensors").is_file()


def test_an_unknown_dtype_names_the_known_ones(tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match="float32 or float16"):
        gancompress.export(str(tiny_teacher), tmp_path / "out", "int8")


def test_a_place_that_cannot_be_written_is_a_clear_error(tiny_teacher, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GanCompressError) as caught:
        gancompress.export(str(tiny_teacher), tmp_path / "file" / "out")
    assert "file" in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"
