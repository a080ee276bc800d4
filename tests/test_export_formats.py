"""Exports for other runtimes: each runs at any batch size, gives the source's images, or is not there."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from torch import nn
from typer.testing import CliRunner

import gancompress
from gancompress import exporter, onnx_export
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.describing import describe
from gancompress.errors import GanCompressError, MissingError, ParityError, UsageError
from gancompress.exporter import export
from gancompress.folding import Deployed, fold_batch_norm, fold_spectral_norm, unfolded
from gancompress.loading import load_gan

#: torch.export takes seconds for each: these in every run, the others in the slow one
QUICK = {("dcgan", 1), ("biggan", 1)}
VARIANTS = [pytest.param(f, i, marks=[] if (f, i) in QUICK else pytest.mark.slow, id=f"{f}-{i}") for f in SMALL for i in range(len(SMALL[f]))]


def saved(gan, tmp_path):
    path = tmp_path / "source.safetensors"
    save_networks(path, gan.family, gan.arch, {"generator": gan.generator}, {"recipe": "mse", "teacher_sha256": "ab" * 32})
    return str(path)


def parity_of(folder):
    return json.loads((folder / "parity.json").read_text())["files"]


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_every_family_runs_in_onnxruntime_at_any_batch_size_and_gives_the_source_s_images(family, variant, tmp_path):
    gan = small_gan(family, SMALL[family][variant])
    folder = export(saved(gan, tmp_path), tmp_path / "out", formats=["onnx"])
    figures = parity_of(folder)["model.onnx"]
    assert list(figures["max_abs_difference"]) == ["1", "4", "7"]
    assert max(figures["max_abs_difference"].values()) <= 1e-4
    session = session_of(folder / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["latents" if gan.arch.nz else "inputs", *["labels"] * bool(gan.arch.classes)]
    inputs, labels = gan.sample(5, torch.Generator().manual_seed(3))  # neither the inputs nor a batch size of the check
    given = {"latents" if gan.arch.nz else "inputs": inputs.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    torch.testing.assert_close(torch.from_numpy(session.run(["images"], given)[0]), gan.generator(inputs, labels), rtol=0, atol=1e-4)
    told = json.loads(session.get_modelmeta().custom_metadata_map["gancompress"])
    assert (told["family"], told["recipe"], told["teacher_sha256"]) == (family, "mse", "ab" * 32)


def test_no_file_tells_of_the_machine_it_was_made_on(tiny_teacher, tmp_path):
    folder = export(str(tiny_teacher), tmp_path / "out", formats=["onnx", "pt2", "safetensors"])
    here = str(onnx_export.__file__).rpartition("/gancompress/")[0].encode()
    assert not [p.name for p in folder.iterdir() if here in p.read_bytes() or str(tmp_path).encode() in p.read_bytes()]


@pytest.mark.parametrize(("family", "variant"), [("dcgan", 0), ("resnet", 1), ("sngan24", 0), ("unet", 0)])
def test_every_batch_norm_behind_a_convolution_is_folded_and_changes_nothing(family, variant):
    gan = small_gan(family, SMALL[family][variant])
    net, (inputs, labels) = unfolded(gan), gan.sample(3, torch.Generator().manual_seed(0))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert fold_batch_norm(net, inputs, labels) == norms > 0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(net(inputs, labels), gan.generator(inputs, labels), rtol=0, atol=1e-6)


class Shared(nn.Module):
    """A convolution whose output is normalised and used beside it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        h = self.conv(x)
        return h + self.norm(h)


def test_a_batch_norm_is_left_where_something_else_reads_the_convolution():
    net, x = Shared().eval(), torch.randn(2, 2, 4, 4)
    net.norm.running_mean.fill_(0.7)
    expected = net(x)
    assert fold_batch_norm(net, x) == 0
    assert net(x).equal(expected)


def test_statistics_of_each_image_are_not_folded():
    gan = small_gan("unet", SMALL["unet"][0] | {"statistics": "image"})
    assert fold_batch_norm(unfolded(gan), gan.sample(2, torch.Generator().manual_seed(0))[0]) == 0


def test_folding_spectral_norm_changes_no_bit_and_leaves_the_source_as_it_was():
    gan = small_gan("biggan", SMALL["biggan"][0])
    given = gan.sample(3, torch.Generator().manual_seed(0))
    expected, keys, net = gan.generator(*given), list(gan.generator.state_dict()), unfolded(gan)
    fold_spectral_norm(net)
    assert net(*given).equal(expected)
    assert not [k for k in net.state_dict() if "parametrizations" in k]
    assert list(gan.generator.state_dict()) == keys
    assert gan.generator(*given).equal(expected)


# ----------------------------------------------------------------------------------------------------------- pt2, float16, noise


def test_a_pt2_needs_torch_alone_and_takes_any_batch_size(tmp_path):
    gan = small_gan("dcgan", SMALL["dcgan"][1])
    folder = export(saved(gan, tmp_path), tmp_path / "out", formats=["pt2"])
    extra = {"gancompress.json": ""}
    module = torch.export.load(folder / "model.pt2", extra_files=extra).module()
    inputs, labels = gan.sample(9, torch.Generator().manual_seed(3))
    torch.testing.assert_close(module(inputs, labels), gan.generator(inputs, labels), rtol=0, atol=1e-6)
    assert json.loads(extra["gancompress.json"])["family"] == "dcgan"


def test_half_precision_is_half_inside_and_float32_outside(tiny_teacher, tmp_path):
    folder = export(str(tiny_teacher), tmp_path / "out", "float16", formats=["onnx", "safetensors"])
    assert {name: f["dtype"] for name, f in parity_of(folder).items()} == {"model.onnx": "float16", "model.safetensors": "float16"}
    import onnx

    graph = onnx.load(folder / "model.onnx").graph
    assert {w.data_type for w in graph.initializer if len(w.dims) == 4} == {onnx.TensorProto.FLOAT16}
    assert {i.type.tensor_type.elem_type for i in [*graph.input, *graph.output]} == {onnx.TensorProto.FLOAT}
    assert 0 < max(parity_of(folder)["model.onnx"]["max_abs_difference"].values()) <= 1e-2


def test_noise_is_a_constant_or_an_input_that_changes_the_images(tmp_path):
    gan = small_gan("stylegan2", SMALL["stylegan2"][1])
    folder = export(saved(gan, tmp_path), tmp_path / "out", formats=["onnx"], noise="input")
    session = session_of(folder / "model.onnx")
    maps = [i for i in session.get_inputs() if i.name.startswith("noise_")]
    assert [i.shape[1:] for i in maps] == [[1, 4, 4], [1, 8, 8], [1, 8, 8]]
    inputs, labels = gan.sample(3, torch.Generator().manual_seed(3))
    stored = [b for name, b in gan.generator.named_buffers() if name.endswith("noise_const")]
    given = {"latents": inputs.numpy(), "labels": labels.numpy()} | {f"noise_{i}": b.expand(3, 1, -1, -1).numpy() for i, b in enumerate(stored)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), gan.generator(inputs, labels), rtol=0, atol=1e-5)
    other = session.run(None, given | {"noise_2": given["noise_2"] + 1})[0]
    assert abs(other - session.run(None, given)[0]).max() > 1e-3
    assert json.loads((folder / "config.json").read_text())["noise"] == "input"


def test_a_student_of_random_noise_is_exported_on_its_stored_noise(tmp_path):
    gan = small_gan("stylegan2", SMALL["stylegan2"][1] | {"noise": "random"})
    folder = export(saved(gan, tmp_path), tmp_path / "out")
    assert load_gan(str(folder)).arch.noise == "random"  # what it is does not change


# ------------------------------------------------------------------------------------------------------------------------- int8


def test_int8_is_smaller_close_and_says_that_no_distance_was_measured(tmp_path):
    gan = make_gan(resolution=16, nc=1, nz=8, g_widths=(48, 32), d_widths=(4, 8))
    folder = export(saved(gan, tmp_path), tmp_path / "out", formats=["onnx"], int8=True, calibrate=40)
    figures = parity_of(folder)["model.int8.onnx"]
    assert min(figures["psnr_db"].values()) >= 35
    assert figures["calibrated_on"] == 40
    assert figures["frechet_distance"] == {"measured": False, "why": "no --feature-extractor was given"}
    import onnx

    made = {node.output[0]: node.op_type for node in onnx.load(folder / "model.int8.onnx").graph.node}
    weights = [made.get(n.input[1]) for n in onnx.load(folder / "model.int8.onnx").graph.node if n.op_type == "ConvTranspose"]
    assert weights == ["DequantizeLinear", "DequantizeLinear", None]  # what goes into the tanh has too wide a range
    sizes = [(folder / f"model{kind}.onnx").stat().st_size for kind in ("", ".int8")]
    assert sizes[1] < 0.5 * sizes[0]


def test_int8_tells_its_change_in_frechet_distance(monkeypatch, tmp_path):
    monkeypatch.setattr(exporter, "FRECHET_IMAGES", 150)
    folder = export("sample:dcgan-mnist", tmp_path / "out", formats=["onnx"], int8=True, calibrate=16, feature_extractor="digits")
    found = parity_of(folder)["model.int8.onnx"]["frechet_distance"]
    assert found["measured"]
    assert found["extractor"] == "digits"
    assert found["change"] == found["int8"] - found["float32"]
    assert math.isfinite(found["change"])
    assert found["int8"] != found["float32"] > 0


def test_int8_that_is_too_coarse_leaves_nothing_and_exits_with_6(monkeypatch, tiny_teacher, tmp_path):
    monkeypatch.setattr(exporter, "LEAST_PSNR", 300.0)
    with pytest.raises(ParityError, match=r"PSNR .* dB, less than 300") as caught:
        export(str(tiny_teacher), tmp_path / "out", formats=["safetensors", "onnx"], int8=True, calibrate=4)
    assert caught.value.exit_code == 6
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------------- refusals


def test_a_file_that_differs_leaves_nothing_and_exits_with_6(monkeypatch, tiny_teacher, tmp_path):
    def wrongly(path, names):
        run, runtime = RUNNER(path, names)
        return lambda tensors: run(tensors) + 1e-3 * (len(tensors[0]) == 7), runtime  # at one batch size alone

    RUNNER = onnx_export.runner
    monkeypatch.setattr(onnx_export, "runner", wrongly)
    result = CliRunner().invoke(app, ["export", str(tiny_teacher), "--format", "safetensors,pt2", "--out", str(tmp_path / "out")])
    assert result.exit_code == 6
    assert "as pt2 float32: pixels differ by up to 0.001" in result.stderr
    assert not list(tmp_path.iterdir())


def test_images_that_are_not_numbers_are_no_parity(monkeypatch, tiny_teacher, tmp_path):
    monkeypatch.setattr(onnx_export, "runner", lambda path, names: (lambda tensors: torch.full((len(tensors[0]), 1, 8, 8), float("nan")), "none"))
    with pytest.raises(ParityError):
        export(str(tiny_teacher), tmp_path / "out", formats=["pt2"])


def test_what_a_format_cannot_hold_is_said_with_the_formats_that_can(monkeypatch, tiny_teacher, tmp_path):
    def fails(*_args, **_kwargs):
        raise RuntimeError("Unsupported FX nodes: aten.fold\nmore")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(GanCompressError, match=r"this dcgan cannot be written as onnx: RuntimeError: Unsupported FX nodes: aten\.fold$") as caught:
        export(str(tiny_teacher), tmp_path / "out", formats=["onnx"])
    assert "--format safetensors works" in caught.value.hint
    assert "pt2" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "extra"), [("onnx", "onnx"), ("openvino", "openvino,onnx")])
def test_a_missing_extra_is_named_before_anything_is_read(name, extra, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export, "find_spec", lambda _module: None)
    with pytest.raises(MissingError, match=f"--format {name}: no module named") as caught:
        export("no-such-file.pt", tmp_path / "out", formats=[name])
    assert caught.value.exit_code == 4
    assert caught.value.hint == f'pip install "gancompress[{extra}]"'


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"formats": ["onxx"]}, "--format 'onxx'"),
        ({"formats": []}, "no format"),
        ({"formats": ["pt2"], "int8": True}, "--int8 with --format pt2"),
        ({"formats": ["onnx"], "int8": True, "dtype": "float16"}, "--dtype float16"),
        ({"noise": "none"}, "--noise none"),
        ({"noise": "input", "formats": ["onnx"]}, "a dcgan as onnx has no noise"),
        ({"calibrate": 0}, "--calibrate 0"),
        ({"feature_extractor": "digits"}, "--feature-extractor digits"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(wish, said, tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match=said):
        export(str(tiny_teacher), tmp_path / "out", **wish)
    assert not list(tmp_path.iterdir())


def test_int8_of_a_translator_is_refused(tmp_path):
    source = saved(small_gan("unet", SMALL["unet"][0]), tmp_path)
    with pytest.raises(UsageError, match="a translator follow from its images"):
        export(source, tmp_path / "out", formats=["onnx"], int8=True)


def test_an_export_leaves_no_file_of_the_one_before(tiny_teacher, tmp_path):
    export(str(tiny_teacher), tmp_path / "out", formats=["safetensors", "pt2"])
    folder = export(str(tiny_teacher), tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "parity.json"}


def test_the_command_takes_several_formats(tiny_teacher, tmp_path):
    words = ["export", str(tiny_teacher), "--format", "safetensors, pt2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert f'exported: {tmp_path / "out"}   load: gancompress.load("{tmp_path / "out"}")' in result.stdout
    assert set(parity_of(tmp_path / "out")) == {"model.safetensors", "model.pt2"}
    assert gancompress.load(str(tmp_path / "out"))


def test_openvino_gives_the_source_s_images(tiny_teacher, tmp_path):
    pytest.importorskip("openvino")
    folder = export(str(tiny_teacher), tmp_path / "out", formats=["openvino"])
    assert {p.name for p in folder.iterdir()} == {"model.xml", "model.bin", "config.json", "parity.json"}
    assert max(parity_of(folder)["model.xml"]["max_abs_difference"].values()) <= 1e-4


# ---------------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("family", "fields", "latent", "bounded"),
    [
        ("dcgan", {}, "standard normal", True),
        ("dcgan", {"output": "linear"}, "standard normal", False),
        ("biggan", {"truncation": 0.5}, "standard normal whose values beyond [-0.5, 0.5] are drawn again", True),
        ("biggan", {"truncation": 0.0}, "standard normal", True),
        ("biggan_deep", {"truncation": 0.4, "latents": "scaled"}, "0.4 times a standard normal whose values beyond [-2, 2] are drawn again", True),
        ("stylegan2", {"truncation": 0.7}, "standard normal", False),
        ("unet", {}, "images in [-1, 1]", True),
        ("pggan", {}, "standard normal", False),
    ],
)
def test_the_description_tells_latents_and_range_as_they_are(family, fields, latent, bounded):
    gan = small_gan(family, SMALL[family][0] | fields)
    found = describe(gan, {"recipe": "dgl", "licence": "MIT"})
    assert (found["latent"], found["output"]["bounded"]) == (latent, bounded)
    inputs, labels = gan.sample(64, torch.Generator().manual_seed(0))
    assert found["inputs"][0]["shape"] == ["batch", *inputs.shape[1:]]
    assert [i["name"] for i in found["inputs"][1:]] == ["labels"] * (labels is not None)
    assert (found["recipe"], found["licence"], found["class_names"]) == ("dgl", "MIT", None)
    if family == "stylegan2":
        assert found["mean_w"] == {"tensor": "generator.mapping.w_avg", "truncation": 0.7}
        assert found["mean_w"]["tensor"].removeprefix("generator.") in gan.generator.state_dict()


def test_the_safetensors_metadata_tell_what_config_json_tells(tmp_path):
    from safetensors import safe_open

    folder = export(saved(small_gan("dcgan", SMALL["dcgan"][1]), tmp_path), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["gancompress"])
    assert {k: v for k, v in config.items() if k not in ("formats", "noise", "parity_max_difference")} == told
    assert (told["teacher_sha256"], told["licence"]) == ("ab" * 32, None)
    assert Deployed(load_gan(str(folder))).names == [i["name"] for i in told["inputs"]]
