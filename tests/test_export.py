"""An export gives the source's images, or it is not there."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch
from conftest import named, sequential_discriminator, sequential_generator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import gancompress
from gancompress import exporter
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.errors import CheckpointError, GanCompressError, ParityError, UsageError
from gancompress.gan import state_hash
from gancompress.loading import find, load_gan

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def images_of(net):
    with torch.no_grad():
        return net(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-2)])
def test_an_export_loads_back_and_gives_the_same_images(dtype, tolerance, tiny_teacher, tmp_path):
    folder = gancompress.export(str(tiny_teacher), tmp_path / "out", dtype)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "parity.json"}
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


# ------------------------------------------------------------------------------------------------------ what safetensors refuses


class Awkward(nn.Module):
    """Tied weights, a view into another tensor, channels_last, a scalar, and names with colons and dashes."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.register_buffer("view", self.one.bias.detach()[1:3])
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.gamma = nn.Parameter(torch.tensor(0.25))
        self.register_module("pyramid:4-2:convt", nn.Linear(4, 2))


def test_tied_channels_last_scalar_and_oddly_named_tensors_are_written_with_their_values(tmp_path, tiny_gan):
    net = Awkward()
    assert not net.conv.weight.is_contiguous()
    save_networks(tmp_path / "net.safetensors", tiny_gan.family, tiny_gan.arch, {"generator": net, "discriminator": net}, {})
    tensors = load_file(tmp_path / "net.safetensors")
    for part in ("generator", "discriminator"):
        assert state_hash({k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(part)}) == state_hash(net.state_dict())
    assert tensors["generator.gamma"].shape == ()
    assert "generator.pyramid:4-2:convt.weight" in tensors


# ------------------------------------------------------------------------------------------------------------------------ convert

G, G_EMA, D = sequential_generator(4, (8, 4), 1), sequential_generator(4, (8, 4), 1, seed=9), sequential_discriminator(1, (4, 8))


@pytest.fixture
def training_file(tmp_path):
    path = tmp_path / "private" / "snapshot.pt"
    path.parent.mkdir()
    torch.save({"g": named(G), "g_ema": named(G_EMA), "d": named(D), "g_optim": {"state": {}, "param_groups": []}}, path)
    return str(path)


def test_a_converted_teacher_gives_the_source_s_outputs_bit_by_bit(training_file, tmp_path):
    target = gancompress.convert(training_file, tmp_path / "out" / "teacher.safetensors")
    before, after = load_gan(training_file), load_gan(str(target))
    assert (after.arch, after.sha256()) == (before.arch, before.sha256())
    z = torch.randn(3, 4)
    assert after.generator(z).equal(before.generator(z))
    assert after.discriminator(after.generator(z)).equal(before.discriminator(before.generator(z)))
    torch.testing.assert_close(after.generator(z), G_EMA(z[:, :, None, None]))


def test_a_converted_file_tells_where_it_is_from_and_nothing_of_the_machine(training_file, tmp_path):
    target = gancompress.convert(training_file, tmp_path / "teacher.safetensors")
    metadata = find(str(target)).metadata
    assert metadata["source"] == "snapshot.pt"
    assert metadata["source_sha256"] == load_gan(training_file).sha256()
    with safe_open(target, framework="pt") as file:
        assert "private" not in json.dumps(file.metadata())


def test_reader_options_and_a_discriminator_apart_are_converted_with_it(tmp_path):
    for name, net in (("G", G), ("D", D)):
        torch.save(named(net), tmp_path / f"{name}.pth")
    target = gancompress.convert(
        str(tmp_path / "G.pth"), tmp_path / "t.safetensors", discriminator=str(tmp_path / "D.pth"), reader_options={"classes": 2, "output": "linear"}
    )
    gan = load_gan(str(target))
    assert (gan.arch.nz, gan.arch.classes, gan.arch.output) == (2, 2, "linear")
    assert gan.discriminator is not None


def test_a_generator_alone_is_converted_and_a_discriminator_alone_is_not(tmp_path):
    torch.save(named(G), tmp_path / "G.pth")
    torch.save(named(D), tmp_path / "D.pth")
    assert load_gan(str(gancompress.convert(str(tmp_path / "G.pth"), tmp_path / "g.safetensors"))).discriminator is None
    with pytest.raises(CheckpointError, match="no generator"):
        gancompress.convert(str(tmp_path / "D.pth"), tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize(("name", "said"), [("there.safetensors", "exists already"), ("new.pt", r"ends in \.safetensors")])
def test_a_converted_file_replaces_nothing_and_has_its_suffix(name, said, tiny_teacher, tmp_path):
    (tmp_path / "there.safetensors").write_text("precious")
    with pytest.raises(UsageError, match=said):
        gancompress.convert(str(tiny_teacher), tmp_path / name)
    assert (tmp_path / "there.safetensors").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["there.safetensors"]


def test_a_file_that_would_load_differently_is_an_error_and_not_left(tiny_teacher, tmp_path, monkeypatch):
    def save_wrongly(path, family, arch, networks, facts, dtype=None):
        with torch.no_grad():
            next(networks["discriminator"].parameters()).add_(1)
        save_networks(path, family, arch, networks, facts, dtype)

    monkeypatch.setattr(exporter, "save_networks", save_wrongly)
    with pytest.raises(ParityError, match="does not load as what was read"):
        gancompress.convert(str(tiny_teacher), tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_module_of_the_user_s_own_is_not_converted(tmp_path):
    body = """
        from torch import nn
        class N(nn.Module):
            nz = 4
            def forward(self, z):
                return z.flatten(1)[:, :3, None, None].expand(-1, -1, 8, 8)
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(body))
    with pytest.raises(UsageError, match="your own code"):
        gancompress.convert(f"module:{tmp_path / 'mine.py'}:N", tmp_path / "t.safetensors")


def test_the_command_says_what_it_wrote_and_how_to_load_it(training_file, tmp_path):
    target = tmp_path / "t.safetensors"
    words = ["convert", training_file, str(target), "--key", "g", "--family", "dcgan", "--reader", "output=linear", "--classes", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert f"converted: {target} (dcgan generator and discriminator, " in result.stdout
    assert f'load: gancompress.load("{target}")' in result.stdout
    arch = load_gan(str(target)).arch
    assert (arch.classes, arch.output) == (1, "linear")
    assert load_gan(str(target)).generator.layers[0].conv.weight.equal(G[0].weight)  # --key took the raw one
    assert CliRunner().invoke(app, words).exit_code == 2
