"""BigGAN-deep: BigGAN-PyTorch's files against their forward pass, and the traps of pytorch-pretrained-BigGAN's."""

import json
import math
import re

import pytest
import torch
from conftest import SMALL, small_gan
from test_biggan import Recorder, projection, rng, same
from torch.nn import functional as F

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.cost import generator_cost
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import biggan_deep
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan
from gancompress.scaling import initialise_from

Z, Y = torch.randn(3, 5, generator=rng()), torch.tensor([0, 3, 2])


def theirs_g(make, z, y, widths, *, classes, depth, attn=()):
    """G(z, G.shared(y)) of BigGANdeep.py in evaluation."""
    y = torch.cat([make("shared.weight", classes, 6)[y], z], 1)
    x = make.linear("linear", y, 16 * widths[0]).view(len(z), -1, 4, 4)
    for i in range(depth * (len(widths) - 1)):
        stage, place = divmod(i, depth)
        block, n, hidden, last = f"blocks.{i}.0", widths[stage + (place == depth - 1)], x.shape[1] // 4, place == depth - 1
        h = make.conv(f"{block}.conv1", F.relu(make.norm(f"{block}.bn1", x, y, classes, 1e-5)), hidden, 1)
        h = F.relu(make.norm(f"{block}.bn2", h, y, classes, 1e-5))
        x = x[:, :n]
        h, x = (F.interpolate(t, scale_factor=2) if last else t for t in (h, x))
        h = make.conv(f"{block}.conv2", h, hidden)
        h = make.conv(f"{block}.conv3", F.relu(make.norm(f"{block}.bn3", h, y, classes, 1e-5)), hidden)
        x = x + make.conv(f"{block}.conv4", F.relu(make.norm(f"{block}.bn4", h, y, classes, 1e-5)), n, 1)
        x = make.attention(f"blocks.{i}.1", x) if i in attn else x
    return make.output(x)


def theirs_d(make, x, y, widths, *, depth, down, classes, attn=()):
    """D(x, y) of BigGANdeep.py."""
    x = make.conv("input_conv", x, widths[0])
    for i, n in enumerate(widths[1:]):
        for j in range(depth):
            block = f"blocks.{i}.{j}"
            h = make.conv(f"{block}.conv1", F.relu(x), n // 4, 1)
            h = make.conv(f"{block}.conv3", F.relu(make.conv(f"{block}.conv2", F.relu(h), n // 4)), n // 4)
            h = F.relu(h)
            h, x = (F.avg_pool2d(t, 2) if j == 0 and i < down else t for t in (h, x))
            h = make.conv(f"{block}.conv4", h, n, 1)
            x = h + (torch.cat([x, make.conv(f"{block}.conv_sc", x, n - x.shape[1], 1)], 1) if n > x.shape[1] else x)
        x = make.attention(f"blocks.{i}.{depth}", x) if i in attn else x
    return projection(make, x, y, classes)


@pytest.mark.parametrize(("depth", "attn"), [(2, (1,)), (1, ()), (3, (2, 5))])
def test_a_generator_s_file_gives_its_own_images(depth, attn, tmp_path):
    make = Recorder()
    images = theirs_g(make, Z, Y, (16, 16, 8), classes=4, depth=depth, attn=attn)
    torch.save(make.state, tmp_path / "G_ema.pth")
    torch.save({"config": {"G_depth": depth}}, tmp_path / "state_dict.pth")
    net = gancompress.load(tmp_path / "G_ema.pth")
    same(net(Z, Y), images)
    assert (net.arch.resolution, net.arch.g_depth, net.arch.g_attn, net.arch.nz) == (16, depth, attn, 5)


@pytest.mark.parametrize(("widths", "depth", "down", "resolution"), [
    ((4, 8, 16, 16), 2, 3, 32),
    ((8, 8, 8, 8), 1, 2, 32),
    ((4, 8, 8, 16, 16), 3, 4, 64),
])  # fmt: skip
def test_a_discriminator_s_file_gives_its_own_logits(widths, depth, down, resolution, tmp_path):
    make = Recorder()
    x = torch.rand(3, 3, resolution, resolution, generator=rng()) * 2 - 1
    logits = theirs_d(make, x, Y, widths, depth=depth, down=down, classes=4, attn=(0,))
    torch.save(make.state, tmp_path / "D.pth")
    net = gancompress.load(tmp_path / "D.pth", part="discriminator")
    torch.testing.assert_close(net(x, Y), logits, rtol=1e-5, atol=1e-4)
    assert (net.arch.resolution, net.arch.d_down) == (resolution, down)


@pytest.mark.assets
def test_the_generator_at_128_has_the_reference_s_parameters_to_the_unit(assets):
    """The reference's own list of keys, less statistics and singular vectors."""
    section = (assets / "keys" / "biggan.txt").read_text().partition("## Gdeep 128")[2].partition("\n## ")[0]
    found = re.findall(r"^(\S+)\s+\(([\d, ]*)\)", section, re.MULTILINE)
    learned = {k: math.prod(int(n) for n in shape.split(",") if n.strip()) for k, shape in found if not re.search(r"stored_|\.u0|\.sv0", k)}
    arch = biggan_deep.build_arch(None, {"width": 128})
    assert arch == biggan_deep.Arch()
    assert generator_cost(biggan_deep.FAMILY, arch).parameters == sum(learned.values()) == 50_244_484


def test_a_missing_key_is_named_as_the_file_would_have_it():
    make = Recorder()
    theirs_g(make, Z, Y, (8, 8), classes=4, depth=2)
    del make.state["blocks.1.0.bn3.stored_var"]
    with pytest.raises(Mismatch, match=r"blocks\.1\.0\.bn3\.stored_var is missing"):
        biggan_deep.read(make.state, {})


# ------------------------------------------------------------------------------------------------- pytorch-pretrained-BigGAN

#: rows of statistics: truncation 0.2, 0.4, ... is row 1, 2, ... of 6
ROWS = 6


def as_hugging_face(net, row, wide=8, seed=5):
    """(state dict of theirs whose images are ``net``'s where its last convolution is divided by ``norm``, norm)."""
    make, ours, out = torch.Generator().manual_seed(seed), net.state_dict(), {}
    labels, attention = net.arch.shared_dim, net.arch.g_attn
    for key, tensor in ours.items():
        if key.endswith("num_batches_tracked"):
            continue
        leaf = {"original": "_orig", "0.u": "_u", "0.v": "_v"}.get(key.partition("parametrizations.weight.")[2])
        key = re.sub(r"parametrizations\.weight\..*", f"weight{leaf}", key) if leaf else key
        if re.search(r"(linear|gain|bias)\.weight_(orig|v)", key):
            tensor = torch.cat([tensor[..., labels:], tensor[..., :labels]], -1)
        if key.startswith("linear.") and not key.endswith("_v"):
            tensor = tensor.view(-1, 4, 4, *tensor.shape[1:]).movedim(0, 2).reshape(tensor.shape)  # height, width, channels
        if "running_" in key:
            rows = torch.rand(ROWS, len(tensor), generator=make) * 3
            rows[row] = tensor
            key, tensor = key + "s", rows
        tensor = tensor.T if key == "shared.weight" else tensor
        place = re.match(r"blocks\.(\d+)\.(\d)\.", key)
        if place:
            i = int(place[1])
            layer = i + sum(a < i for a in attention) + int(place[2])
            key = f"generator.layers.{layer}." + key[place.end() :]
            key = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".{m[1]}_{int(m[2]) - 1}.", key)
            key = key.replace(".bn.running", ".running").replace(".gain.", ".scale.")
            key = re.sub(r"(bn_\d)\.bias\.", r"\1.offset.", key)
            key = re.sub(r"\.(theta|phi|g|o)\.weight", lambda m: f".snconv1x1_{m[1] if m[1] != 'o' else 'o_conv'}.weight", key)
            tensor = tensor[None] if key.endswith("gamma") else tensor
        for mine, theirs in {
            "shared.": "embeddings.",
            "linear.": "generator.gen_z.",
            "output_layer.0.": "generator.bn.",
            "output_layer.2.": "generator.conv_to_rgb.",
        }.items():
            key = theirs + key.removeprefix(mine) if key.startswith(mine) else key
        out[key] = tensor
    prefix = "generator.conv_to_rgb."
    more = torch.rand(wide - 3, *out[f"{prefix}weight_orig"].shape[1:], generator=make)
    whole = torch.cat([out[f"{prefix}weight_orig"], more])
    u, v = torch.rand(wide, generator=make), torch.rand(whole[0].numel(), generator=make)
    out |= {
        f"{prefix}weight_orig": whole,
        f"{prefix}weight_u": u,
        f"{prefix}weight_v": v,
        f"{prefix}bias": torch.cat([out[f"{prefix}bias"], torch.ones(wide - 3)]),
    }
    return out, u @ whole.flatten(1) @ v


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(folder of a small model, latents, labels, its images at truncation 0.4)."""
    fields = {"resolution": 16, "nz": 4, "classes": 3, "shared_dim": 4, "g_widths": (16, 8, 8), "g_attn": (1,), "bn_eps": 1e-4, "out_eps": 1e-4}
    gan = small_gan("biggan_deep", fields)
    state, norm = as_hugging_face(gan.generator, row=2)
    folder = tmp_path_factory.mktemp("pretrained")
    torch.save(state, folder / "pytorch_model.bin")
    config = {"eps": 1e-4, "n_stats": ROWS, "z_dim": 4, "num_classes": 3, "layers": [[False, 2, 2], [True, 2, 2], [False, 2, 2], [True, 2, 1]]}
    (folder / "config.json").write_text(json.dumps(config))
    (z, y), last = gan.sample(3, rng()), gan.generator.output_layer[2]
    seen = []
    last.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    gan.generator(z, y)
    weight = last.parametrizations.weight.original / norm
    return folder, z, y, torch.tanh(F.conv2d(seen[0], weight, last.bias, padding=1))


def test_truncation_picks_the_row_of_the_statistics_and_bakes_it_in(pretrained, tmp_path):
    folder, z, y, images = pretrained
    net = gancompress.load(folder, truncation=0.4)
    same(net(z, y), images)
    for other in (0.2, 0.6, 1.0):
        assert not gancompress.load(folder, truncation=other)(z, y).allclose(images, atol=1e-2)
    assert not any("running_means" in k for k in net.state_dict())


def test_without_a_truncation_it_is_1_and_said_so(pretrained):
    folder, z, y, _ = pretrained
    assert gancompress.load(folder)(z, y).equal(gancompress.load(folder, truncation=1)(z, y))
    assert any("truncation 1 (row 5 of 6" in a for a in find(str(folder)).assumptions)


@pytest.mark.parametrize("value", [0.41, 0, -0.4, 1.2, "nan", "some"])
def test_a_truncation_without_statistics_is_refused(value, pretrained):
    with pytest.raises(UsageError, match="truncation"):
        gancompress.load(pretrained[0], truncation=value)


def test_a_row_is_found_where_floating_point_falls_just_short_of_it():
    assert [biggan_deep._row(51, t)[0] for t in (0.58, "0.4", 0.02, 1)] == [29, 20, 1, 50]


def test_latents_belong_to_the_truncation_of_the_statistics(pretrained, tmp_path):
    gan = load_gan(str(pretrained[0]), options={"truncation": 0.4})
    z, y = gan.sample(4000, rng())
    assert z.abs().max() <= 0.8
    assert abs(float(z.std()) / 0.4 - 0.8796) < 0.01  # of N(0, 1) within 2
    assert set(y.tolist()) == {0, 1, 2}
    save_networks(tmp_path / "own.safetensors", gan.family, gan.arch, gan.networks, {})
    assert load_gan(str(tmp_path / "own.safetensors")).arch == gan.arch
    with pytest.raises(UsageError, match=r"statistics here are those of 0\.4"):
        load_gan(str(tmp_path / "own.safetensors"), options={"truncation": 0.6})


def test_only_three_channels_of_the_last_convolution_are_kept(pretrained):
    net = gancompress.load(pretrained[0])
    assert net.output_layer[2].weight.shape == (3, 8, 3, 3)
    assert net.arch.nc == 3


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s.pop("generator.layers.3.conv_2.bias"), r"generator\.layers\.3\.conv_2\.bias is missing"),
    (lambda s: s.pop("generator.layers.2.snconv1x1_phi.weight_orig"), r"generator\.layers\.2\.snconv1x1_phi\.weight is missing"),
    (lambda s: s.pop("generator.conv_to_rgb.weight_u"), r"generator\.conv_to_rgb"),
    (lambda s: s.pop("generator.bn.running_vars"), r"generator\.bn\.running_vars is missing"),
    (lambda s: s.pop("embeddings.weight"), r"embeddings\.weight is missing"),
    (lambda s: s.update({"generator.layers.0.bn_1.running_means": torch.ones(7, 4)}), r"bn_1\.running_means has shape \(7, 4\), expected \(6, channels\)"),
    (lambda s: s.update({"generator.gen_z.bias": torch.ones(255)}), r"gen_z\.bias has shape \(255,\), expected \(256,\)"),
    (lambda s: s.update({"generator.layers.0.bn_1.scale.weight_v": torch.ones(())}), r"bn_1\.scale\.weight's singular vector v has shape \(\)"),
    (lambda s: s.update({"generator.layers.0.conv_9.bias": torch.ones(4)}), r"unexpected key generator\.layers\.0\.conv_9\.bias"),
    (lambda s: [s.pop(k) for k in list(s) if k.startswith("generator.layers.4.")], r"3 blocks are no stages of 2"),
])  # fmt: skip
def test_a_pretrained_file_that_does_not_fit_is_told_by_its_key(change, said, pretrained):
    state = torch.load(pretrained[0] / "pytorch_model.bin")
    change(state)
    with pytest.raises(Mismatch, match=said):
        biggan_deep.read(state, {})


def test_a_config_whose_layers_are_others_is_refused(pretrained, tmp_path):
    folder, *_ = pretrained
    (tmp_path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"layers": [[True, 2, 2], [True, 2, 2], [False, 2, 2], [True, 2, 1]]}))
    with pytest.raises(CheckpointError, match="layers double the image elsewhere"):
        gancompress.load(tmp_path)
    for nonsense in ("yes", 7, None, {"a": 1}):
        (tmp_path / "config.json").write_text(json.dumps({"layers": nonsense, "eps": "small", "n_stats": -1}))
        gancompress.load(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------ slicing


def test_a_student_s_skips_keep_handing_on_the_same_channels():
    """A block drops the last channels of its input: those kept at its output must be the first of those kept at its input."""
    teacher, student = small_gan("biggan_deep", SMALL["biggan_deep"][0]), small_gan("biggan_deep", SMALL["biggan_deep"][0], seed=7, ch_mul=0.5)
    state = teacher.generator.state_dict()
    for key, tensor in state.items():
        if key.endswith("bn1.bn.running_mean") or key == "output_layer.0.running_mean":
            tensor.copy_(torch.arange(len(tensor)))
    initialise_from(teacher.generator, student.generator, teacher.family.axes(student.arch, "generator"), "top-magnitude")
    kept = student.generator.state_dict()
    wide, narrow = kept["blocks.0.0.bn1.bn.running_mean"], kept["output_layer.0.running_mean"]
    assert (len(wide), len(narrow)) == (8, 4)
    assert wide[:4].equal(narrow)
    assert kept["blocks.1.0.bn1.bn.running_mean"].equal(wide)
    assert wide[4:].min() >= 8
    assert wide.unique().equal(wide)
