"""Students under the names of the projects they come from: the layouts are the projects' own, and nothing is lost."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from test_golden import CASES
from torch.nn.utils.parametrize import is_parametrized
from typer.testing import CliRunner

from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.errors import UsageError
from gancompress.exporter import export
from gancompress.families import FAMILIES
from gancompress.layers import SpectralNorm
from gancompress.loading import find, load_gan
from gancompress.original_keys import WRITERS, _power_start, original, reader_options

BROCK = {"biggan", "biggan_deep"}
STYLEGAN2 = {"nz": 6, "w_dim": 6, "map_layers": 2, "const_width": 8, "g_widths": (8, 8, 4), "resolution": 16}
SAGAN = {"resolution": 16, "nz": 4, "classes": 2, "g_widths": (16, 16, 16), "g_spectral": True, "g_attention": 2}
#: every small network whose project has such a one
ROUND = [(f, v) for f in WRITERS if f != "stylegan2" for v in SMALL[f] if not (v.get("convolution") == "standard" or v.get("g_spectral") or v.get("g_depth"))]
ROUND += [("stylegan2", STYLEGAN2), ("sngan", SAGAN)]


def averaged_vectors(gan):
    """Its singular vectors as an average leaves them: nearly those of the weight, and a little short."""
    for module in gan.generator.modules():
        if isinstance(module, SpectralNorm):
            weight = next(m.parametrizations.weight.original for m in gan.generator.modules() if is_parametrized(m) and m.parametrizations.weight[0] is module)
            for _ in range(20):
                module.step(weight)
            module.u.mul_(0.998)
    return gan


def written(gan, tmp_path):
    path = tmp_path / "original.pth"
    torch.save(original(gan).content, path)
    return str(path)


@pytest.mark.parametrize(("family", "fields"), ROUND, ids=[f"{f}-{i}" for i, (f, _) in enumerate(ROUND)])
def test_what_is_written_reads_back_as_the_same_network(family, fields, tmp_path):
    gan = averaged_vectors(small_gan(family, fields))
    again = load_gan(written(gan, tmp_path), options=reader_options(gan))
    same = {k: v for k, v in vars(gan.arch).items() if not k.startswith("d_") and k not in ("latents", "statistics")}
    assert {k: v for k, v in vars(again.arch).items() if k in same} == same
    expected, found = gan.generator.state_dict(), again.generator.state_dict()
    for key, tensor in expected.items():
        if not (family in BROCK and key.endswith((".0.u", ".0.v", "num_batches_tracked"))):
            assert found[key].equal(tensor), key
    given = gan.sample(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.generator(*given), gan.generator(*given), rtol=0, atol=1e-5 if family in BROCK else 0)


def test_settings_that_no_tensor_tells_are_said_and_the_file_is_checked_with_them(tmp_path):
    gan = averaged_vectors(small_gan("biggan_deep", SMALL["biggan_deep"][1] | {"bn_eps": 0.01}))  # of one block a stage, which no file tells
    save_networks(tmp_path / "source.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {})
    folder = export(str(tmp_path / "source.safetensors"), tmp_path / "out", keys="original")
    settings = json.loads((folder / "config.json").read_text())["original"]["settings"]
    assert (settings["G_depth"], settings["BN_eps"]) == (1, 0.01)
    assert max(json.loads((folder / "parity.json").read_text())["files"]["original.pth"]["max_abs_difference"].values()) <= 1e-4


@pytest.mark.parametrize("norm", [0.999, 0.9, 0.6])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 5), (3, 3, 1, 1)])
def test_one_power_step_from_there_finds_the_norm_that_was_asked_for(shape, norm):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    matrix = weight.flatten(1)
    wanted = norm * float(torch.linalg.matrix_norm(matrix, 2))
    v = torch.nn.functional.normalize(_power_start(weight, wanted) @ matrix, dim=0)
    assert float((matrix @ v).norm()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.assets
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c] in WRITERS and not c.startswith(("nvlabs", "hf_", "whole_module"))])
def test_the_layout_is_that_of_the_project_s_own_files(golden, case):
    """Same keys, shapes and values as the file that the project's code wrote, but for what has no effect."""
    folder = golden / case
    meta = json.loads((folder / "meta.json").read_text())
    network = next(n for n in meta["networks"] if n["role"] in ("G", "G_A"))
    found = find(str(folder / network["file"]))
    gan = load_gan(str(folder / network["file"]), options={"resolution": 1 << 8} if "resnet" in case else None)
    content = original(gan).content
    theirs = found.network("generator").foreign
    ours = next((content[k] for k in ("g_ema", "model_state_dict", "G") if k in content), content)
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        if not key.endswith(("u0", "sv0", "num_batches_tracked")):
            assert ours[key].shape == tensor.shape, key
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-7 if key.endswith("kernel") else 0, msg=key)
        assert ours[key].shape == tensor.shape, key


@pytest.mark.assets
@pytest.mark.parametrize(
    ("keys", "heading", "family", "fields"),
    [
        ("biggan", "G 128 official", "biggan", {}),
        ("biggan", "G C10", "biggan", {"resolution": 32, "classes": 10, "shared_dim": 0, "hier": False, "nz": 128, "g_widths": (256,) * 4, "g_attn": ()}),
        ("biggan", "Gdeep 128", "biggan_deep", {}),
        ("ros", "rosinality Generator(size=64)", "stylegan2", {"resolution": 64}),
        ("pix", "resnet_9blocks instance (CycleGAN)", "resnet", {}),
        ("pix", "resnet_9blocks instance + dropout", "resnet", {"dropout": True}),
        ("pix", "unet_256 batch", "unet", {}),
        ("pix", "unet_128", "unet", {"resolution": 128}),
        ("mimicry", "SAGANGenerator32", "sngan", {"classes": 10, "g_spectral": True, "g_attention": 2}),
        ("mimicry", "SNGANGenerator64", "sngan", {"resolution": 64}),
        ("wgan", "DCGAN_G extra1", "dcgan", {"g_extra": 1}),
        ("wgan", "MLP_G", "mlp", {"resolution": 64}),
    ],
)
def test_the_keys_are_those_of_the_project_s_networks_at_full_size(keys, heading, family, fields, assets, monkeypatch):
    monkeypatch.setattr("gancompress.original_keys._power_start", lambda weight, norm: weight.new_zeros(len(weight)))
    section = next(s for s in (assets / "keys" / f"{keys}.txt").read_text().split("## ") if s.startswith(heading))
    expected = {line.split(" ", 1)[0] for line in section.splitlines()[1:] if line.strip()}
    record = FAMILIES[family]
    arch = record.build_arch(None, fields)
    with torch.device("meta"):
        net = record.generator(arch)
    gan = type("Shapes", (), {"family": record, "arch": arch, "generator": net.to_empty(device="cpu")})
    content = original(gan).content
    assert set(next((content[k] for k in ("g_ema", "model_state_dict") if k in content), content)) == expected


def test_an_export_of_original_keys_is_a_plain_file_that_is_checked(tiny_teacher, tmp_path):
    words = ["export", str(tiny_teacher), "--keys", "original", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    state = torch.load(tmp_path / "out" / "original.pth", weights_only=True)
    assert next(iter(state)) == "main.0.weight"
    assert {type(t) for t in state.values()} == {torch.Tensor}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["original"]
    assert config["project"] == "pytorch/examples (dcgan)"
    assert config["file"] == "original.pth"
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["files"]["original.pth"]["max_abs_difference"] == {"1": 0.0, "4": 0.0, "7": 0.0}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_pytorch_examples_generator_loads_the_student(tmp_path):
    """The class as that project has it, at another width."""
    nn = torch.nn
    layers = [nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(4), nn.ReLU(True), nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh()]
    net = nn.Module()
    net.main = nn.Sequential(*layers)
    gan = make_gan(resolution=16, nc=3, nz=5, g_widths=(8, 4), d_widths=(4, 8))
    net.load_state_dict(torch.load(written(gan, tmp_path), weights_only=True))
    z = torch.randn(3, 5)
    torch.testing.assert_close(net.eval().main(z[:, :, None, None]), gan.generator(z))


@pytest.mark.parametrize(("family", "fields", "said"), [
    ("pggan", SMALL["pggan"][0], "not there for pggan"),
    ("stylegan3", SMALL["stylegan3"][0], "not there for stylegan3"),
    ("stylegan2", SMALL["stylegan2"][2], "has no g_kind=orig and g_clamp=0.9"),
    ("tinygan", SMALL["tinygan"][1], "no standard generator"),
])  # fmt: skip
def test_what_no_code_outside_has_is_refused_and_nothing_is_written(family, fields, said, tmp_path):
    gan = small_gan(family, fields)
    save_networks(tmp_path / "source.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {})
    with pytest.raises(UsageError, match=said) as caught:
        export(str(tmp_path / "source.safetensors"), tmp_path / "out", keys="original")
    assert not (tmp_path / "out").exists()
    if family in ("pggan", "stylegan3"):
        assert all(name in caught.value.hint for name in WRITERS)


def test_unknown_keys_are_refused(tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match="--keys theirs"):
        export(str(tiny_teacher), tmp_path / "out", keys="theirs")
