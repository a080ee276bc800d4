"""StyleGAN2: published sizes, its arithmetic written out once more, and what a reader of its checkpoints can get wrong.

The arithmetic is that of NVlabs' TensorFlow code, on variables under its names: zeros between the pixels, one filter for each image.
"""

import math
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
from conftest import SMALL, small_gan
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import gancompress
from gancompress.cost import generator_cost
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import FAMILIES, stylegan2
from gancompress.gan import Mismatch
from gancompress.layers import upfirdn
from gancompress.loading import find

FAMILY = FAMILIES["stylegan2"]
SKIP = {"resolution": 16, "nc": 3, "nz": 6, "w_dim": 6, "map_layers": 2, "const_width": 10, "g_widths": (8, 8, 4), "d_widths": (4, 6, 8)}
CONDITIONAL = {"resolution": 8, "nc": 1, "nz": 4, "w_dim": 6, "map_width": 5, "map_layers": 2, "classes": 3, "label_width": 7, "g_widths": (8, 4)}


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------- the published tables

SIZES = [
    (1024, 1.0, 30_370_060, 29_012_513),
    (1024, 0.5, 11_064_988, 7_256_081),
    (1024, 0.25, 5_392_036, 1_815_497),
    (1024, 0.125, 3_550_456, 454_613),
    (256, 1.0, 30_034_338, 28_864_129),
    (256, 0.5, 10_931_682, 7_219_009),
    (256, 0.25, 5_334_018, 1_806_241),
    (256, 0.125, 3_523_602, 452_305),
]


@pytest.mark.parametrize(("resolution", "ch_mul", "g_size", "d_size"), SIZES)
def test_sizes_are_those_of_dgl_gan_to_the_unit(resolution, ch_mul, g_size, d_size):
    arch = FAMILY.scale(FAMILY.build_arch(None, {"resolution": resolution}), ch_mul)
    with torch.device("meta"):
        critic = FAMILY.discriminator(arch)
    assert generator_cost(FAMILY, arch).parameters == g_size
    assert sum(p.numel() for p in critic.parameters()) == d_size


@pytest.mark.parametrize(
    ("resolution", "ch_mul", "at_input", "at_output"),
    [(1024, 1.0, 74.27, 141.87), (1024, 0.5, 18.63, 35.53), (1024, 0.25, 4.69, 8.91), (1024, 0.125, 1.19, 2.24), (256, 1.0, 45.12, 83.74)],
)
def test_products_of_convolutions_and_dense_layers_are_the_published_ones(resolution, ch_mul, at_input, at_output):
    arch = FAMILY.scale(FAMILY.build_arch(None, {"resolution": resolution}), ch_mul)
    counts = {"at_input": 0, "at_output": 0}

    def count(x, w, *args, out_shape=None, **_):
        if args[-1] == 1:  # not the filters, one group for each channel, which no paper counts
            counts["at_input"] += math.prod(w) * math.prod(x[2:] if args[4] else out_shape[2:])
            counts["at_output"] += math.prod(w) * math.prod(x[2:]) * (4 if args[4] else math.prod(out_shape[2:]) / math.prod(x[2:]))
        return 0

    with torch.device("meta"):
        net = FAMILY.generator(arch).eval()
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: count}):
            net(torch.empty(1, 512))
    dense = sum(p.numel() for p in net.parameters() if p.ndim == 2)
    assert (counts["at_input"] + dense) / 1e9 == pytest.approx(at_input, abs=0.005)
    assert counts["at_output"] / 1e9 == pytest.approx(at_output, abs=0.005)  # convolutions alone
    if ch_mul == 1:
        assert counts["at_input"] + dense == {1024: 74_266_894_336, 256: 45_124_673_536}[resolution]  # as CAGAN's code has them
    # what we print has the filters too: 1 to 2 % more, and up to 12 % at an eighth of the width
    assert 1 < generator_cost(FAMILY, arch).macs_in / (counts["at_input"] + dense) < 1.13


def test_the_mapping_network_w_and_the_constant_keep_their_width():
    arch = FAMILY.scale(FAMILY.build_arch(None, {"resolution": 32}), 0.25)
    assert (arch.const_width, arch.w_dim, arch.map_width, arch.nz) == (512, 512, 512, 512)
    assert set(arch.g_widths) == set(arch.d_widths) == {128}


# ---------------------------------------------------------------------------------------------------- the arithmetic once more


def lrelu(x, bias):
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def normalised(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def dense(v, name, x, lr=1.0, active=False):
    x = x @ v[f"{name}/weight"] * (lr / math.sqrt(x.shape[1]))
    return lrelu(x, v[f"{name}/bias"] * lr) if active else x + v[f"{name}/bias"] * lr


def stuffed(x):
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def blurred(x, pad, gain=1.0):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 64 * gain
    x = F.pad(x, pad)
    return F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


def styled(v, name, x, w, up=False, demodulate=True, noise=None, clamp=None, gain=1.0):
    """One image after the other, each with weights of its own."""
    style = w @ v[f"{name}/mod_weight"] / math.sqrt(w.shape[1]) + v[f"{name}/mod_bias"] + 1
    weight = v[f"{name}/weight"].permute(3, 2, 0, 1)
    out = []
    for image, s in zip(x.split(1), style, strict=True):
        own = weight / math.sqrt(weight[0].numel()) * s[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            out.append(blurred(F.conv2d(F.pad(stuffed(image), (2, 1, 2, 1)), own), (1, 1, 1, 1), 4))
        else:
            out.append(F.conv2d(image, own, padding=weight.shape[-1] // 2))
    y = torch.cat(out)
    bias = v[f"{name}/bias"]
    y = lrelu(y + v[f"synthesis/{noise}"] * v[f"{name}/noise_strength"], bias) * gain if demodulate else y + bias.view(1, -1, 1, 1)
    return y if clamp is None else y.clamp(-clamp * gain, clamp * gain)


def tf_mapping(v, z, labels, arch):
    x = normalised(z)
    if arch.classes:
        x = torch.cat([x, normalised(dense(v, "mapping/LabelEmbed", F.one_hot(labels, arch.classes).float()))], 1)
    for i in range(arch.map_layers):
        x = dense(v, f"mapping/Dense{i}", x, arch.map_lr, active=True)
    return (v["dlatent_avg"] + (x - v["dlatent_avg"]) * arch.truncation)[:, None].repeat(1, arch.num_ws, 1)


def tf_synthesis(v, ws, arch):
    """Layer i has w number i; the image of a resolution that of the layer to come."""
    clamp = arch.g_clamp or None
    x = v["synthesis/4x4/Const/const"].repeat(len(ws), 1, 1, 1)
    x, image, number = styled(v, "synthesis/4x4/Conv", x, ws[:, 0], noise="noise0", clamp=clamp), None, 0
    if arch.g_kind == "skip":
        image = styled(v, "synthesis/4x4/ToRGB", x, ws[:, 1], demodulate=False, clamp=clamp)
    for r in (8 << i for i in range(len(arch.g_widths) - 1)):
        at, before, number = f"synthesis/{r}x{r}", x, number + 2
        gain = math.sqrt(0.5) if arch.g_kind == "resnet" else 1.0
        x = styled(v, f"{at}/Conv0_up", x, ws[:, number - 1], up=True, noise=f"noise{number - 1}", clamp=clamp)
        x = styled(v, f"{at}/Conv1", x, ws[:, number], noise=f"noise{number}", clamp=clamp, gain=gain)
        if arch.g_kind == "resnet":
            skip = v[f"{at}/Skip/weight"].permute(3, 2, 0, 1)
            x = x + blurred(stuffed(F.conv2d(before, skip / math.sqrt(skip.shape[1]))), (2, 1, 2, 1), 4) * gain
        if image is not None:
            image = blurred(stuffed(image), (2, 1, 2, 1), 4)
        if arch.g_kind == "skip" or r == arch.resolution:
            image = styled(v, f"{at}/ToRGB", x, ws[:, number + 1], demodulate=False, clamp=clamp) + (0 if image is None else image)
    return image


def convolved(v, name, x, stride=1, pad=0, active=True, clamp=math.inf):
    weight = v[f"{name}/weight"].permute(3, 2, 0, 1)
    x = F.conv2d(x, weight / math.sqrt(weight[0].numel()), stride=stride, padding=pad)
    return lrelu(x, v[f"{name}/bias"]).clamp(-clamp, clamp) if active else x


def tf_discriminator(v, image, labels, arch):
    x, clamp = None, arch.d_clamp or math.inf
    for r in (arch.resolution >> i for i in range(len(arch.d_widths) - 1)):
        at = f"{r}x{r}"
        if arch.d_kind == "skip" or x is None:
            x = convolved(v, f"{at}/FromRGB", image, clamp=clamp) + (0 if x is None else x)
        before = x
        x = convolved(v, f"{at}/Conv0", x, pad=1, clamp=clamp)
        x = convolved(v, f"{at}/Conv1_down", blurred(x, (2, 2, 2, 2)), stride=2, clamp=clamp)
        if arch.d_kind == "resnet":
            x = (x + convolved(v, f"{at}/Skip", blurred(before, (1, 1, 1, 1)), stride=2, active=False)) / math.sqrt(2)
        if arch.d_kind == "skip":
            image = blurred(image, (1, 1, 1, 1))[:, :, ::2, ::2]
    if arch.d_kind == "skip":
        x = x + convolved(v, "4x4/FromRGB", image)
    groups = len(x) // min(4, len(x))
    spread = torch.stack([x[i::groups].std(0, unbiased=False).mean() for i in range(groups)])
    x = torch.cat([x, spread[torch.arange(len(x)) % groups].view(-1, 1, 1, 1).expand(-1, 1, 4, 4)], 1)
    x = dense(v, "4x4/Dense0", convolved(v, "4x4/Conv", x, pad=1, clamp=clamp).flatten(1), active=True)
    x = dense(v, "Output", x)
    if arch.d_map_width:
        y = normalised(dense(v, "LabelEmbed", F.one_hot(labels, arch.classes).float()))
        for i in range(arch.d_map_layers):
            y = dense(v, f"Mapping{i}", y, arch.d_map_lr, active=True)
        x = (x * y).sum(1, keepdim=True) / math.sqrt(arch.d_map_width)
    return x.flatten()


# --------------------------------------------------------------------------------------- our state dict under each project's names


def as_tensorflow(state, part):
    """{variable: tensor} of a network of ours."""
    names = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}
    if part == "discriminator":
        names |= {"conv0": "Conv0", "conv1": "Conv1_down", "fromrgb": "FromRGB", "conv": "Conv", "fc": "Dense0"}
    out = {}
    for key, tensor in state.items():
        words = key.split(".")
        if key == "mapping.w_avg":
            out["dlatent_avg"] = tensor
            continue
        if words[0] == "mapping":
            place = words[1].replace("embed", "LabelEmbed").replace("fc", "Dense" if part == "generator" else "Mapping")
            place = f"mapping/{place}" if part == "generator" else place
            out[f"{place}/{words[2]}"] = tensor.T if tensor.ndim == 2 else tensor
            continue
        words = words[1:] if words[0] == "synthesis" else words
        r, layer = int(words[0][1:]), words[1]
        at = f"synthesis/{r}x{r}" if part == "generator" else f"{r}x{r}"
        if layer == "const":
            out[f"{at}/Const/const"] = tensor[None]
            continue
        name = "Conv" if layer == "conv1" and r == 4 else names.get(layer)
        place = "Output" if layer == "out" else f"{at}/{name}"
        if words[2] == "noise_const":
            out[f"synthesis/noise{0 if r == 4 else 2 * int(math.log2(r)) - (5 if layer == 'conv0' else 4)}"] = tensor[None, None]
        elif words[2] == "affine":
            out[f"{place}/mod_{words[3]}"] = tensor.T if words[3] == "weight" else tensor - 1
        elif tensor.ndim == 4:
            turned = tensor.permute(2, 3, 1, 0)
            out[f"{place}/weight"] = turned.flip(0, 1) if name == "Conv0_up" else turned
        else:
            out[f"{place}/{words[2]}"] = tensor.T if tensor.ndim == 2 else tensor
    return {k: t.contiguous() for k, t in out.items()}


def as_rosinality(state, part, noise=True):
    """{key: tensor} of a network of ours, filters included."""
    taps = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    top = max(int(r) for k in state for r in re.findall(r"\bb(\d+)\.", k))
    out = {}
    for key, tensor in state.items():
        words = key.split(".")
        if words[0] == "mapping":
            if words[1] != "w_avg":
                out[f"style.{int(words[1][2:]) + 1}.{words[2]}"] = tensor
            continue
        words = words[1:] if words[0] == "synthesis" else words
        r, layer, leaf = int(words[0][1:]), words[1], ".".join(words[2:])
        if part == "discriminator":
            j = 1 + int(math.log2(top // r))
            place, at = {
                "fromrgb": ("convs.0", 0),
                "conv0": (f"convs.{j}.conv1", 0),
                "conv1": (f"convs.{j}.conv2", 1),
                "skip": (f"convs.{j}.skip", 1),
                "conv": ("final_conv", 0),
                "fc": ("final_linear.0", None),
                "out": ("final_linear.1", None),
            }[layer]
            if at is None:
                out[f"{place}.{leaf}"] = tensor
            else:
                out[f"{place}.{at if leaf == 'weight' else at + 1}.{leaf}"] = tensor
            if at == 1:
                out[f"{place}.0.kernel"] = taps
            continue
        k = int(math.log2(r)) - 3
        if layer == "const":
            out["input.input"] = tensor[None]
        elif layer == "torgb":
            place = "to_rgb1" if r == 4 else f"to_rgbs.{k}"
            name = {"weight": "conv.weight"}.get(leaf, leaf.replace("affine", "conv.modulation"))
            out[f"{place}.{name}"] = tensor[None] if leaf == "weight" else tensor.view(1, -1, 1, 1) if leaf == "bias" else tensor
            if r > 4:
                out[f"{place}.upsample.kernel"] = taps * 4
        elif leaf == "noise_const":
            if noise:
                out[f"noises.noise_{2 * k + 1 + (layer == 'conv1')}"] = tensor[None, None]
        else:
            place = "conv1" if r == 4 else f"convs.{2 * k + (layer == 'conv1')}"
            name = {"weight": "conv.weight", "bias": "activate.bias", "noise_strength": "noise.weight"}.get(leaf, leaf.replace("affine", "conv.modulation"))
            out[f"{place}.{name}"] = tensor[None] if leaf in ("weight", "noise_strength") else tensor
            if layer == "conv0":
                out[f"{place}.conv.blur.kernel"] = taps * 4
    return out


def tf_pickle(path, gan, **static):
    """(G, D, Gs) as NVlabs' TensorFlow code pickles them: sub-networks as components, numbers of no dimension as numpy scalars."""

    class Network:
        def __init__(self, state):
            self.state = state

        def __getstate__(self):
            return self.state

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    numpy = {
        part: [(k, t.numpy() if t.ndim else np.float32(t)) for k, t in as_tensorflow(net.state_dict(), part).items()] for part, net in gan.networks.items()
    }

    def network(name, variables, **components):
        told = {"version": 4, "name": name, "static_kwargs": {"resolution": gan.arch.resolution, **static}, "components": components}
        return Network({**told, "build_module_src": "raise SystemExit('it ran')", "build_func_name": name, "variables": variables})

    def generator():
        inner = {p: [(k.removeprefix(f"{p}/"), a) for k, a in numpy["generator"] if k.startswith(f"{p}/")] for p in ("synthesis", "mapping")}
        own = [("lod", np.float32(0)), *((k, a) for k, a in numpy["generator"] if "/" not in k)]
        return network("G_main", own, **{p: network(f"G_{p}", v) for p, v in inner.items()})

    modules = {"dnnlib": None, "dnnlib.tflib": None, "dnnlib.tflib.network": types.SimpleNamespace(Network=Network)}
    try:
        sys.modules.update({k: v or types.ModuleType(k) for k, v in modules.items()})
        path.write_bytes(pickle.dumps((generator(), network("D_main", [("lod", np.float32(0)), *numpy["discriminator"]]), generator())))
    finally:
        for name in modules:
            del sys.modules[name]
    return str(path)


KINDS = [
    SKIP,
    CONDITIONAL,
    {**SKIP, "g_kind": "resnet", "d_kind": "skip", "g_clamp": 0.8, "d_clamp": 0.7},
    {**CONDITIONAL, "g_kind": "orig", "d_kind": "orig", "map_lr": 0.1, "d_map_lr": 0.1, "d_map_layers": 0},
]


@pytest.mark.parametrize("fields", KINDS)
def test_images_and_logits_are_those_of_the_arithmetic_written_out(fields):
    gan = small_gan("stylegan2", fields)
    z, y = gan.sample(3, rng())
    variables = as_tensorflow(gan.generator.state_dict(), "generator")
    expected = tf_synthesis(variables, tf_mapping(variables, z, y, gan.arch), gan.arch)
    torch.testing.assert_close(gan.generator(z, y), expected, rtol=1e-4, atol=1e-5)
    ws = torch.randn(2, gan.arch.num_ws, gan.arch.w_dim, generator=rng())
    torch.testing.assert_close(gan.generator(ws), tf_synthesis(variables, ws, gan.arch), rtol=1e-4, atol=1e-5)
    x, y = torch.randn(8, gan.arch.nc, gan.arch.resolution, gan.arch.resolution, generator=rng()), gan.sample(8, rng())[1]
    variables = as_tensorflow(gan.discriminator.state_dict(), "discriminator")
    torch.testing.assert_close(gan.discriminator(x, y), tf_discriminator(variables, x, y, gan.arch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", KINDS)
def test_a_tensorflow_pickle_is_read_without_running_it(fields, tmp_path):
    gan = small_gan("stylegan2", fields)
    told = {"mapping_lrmul": gan.arch.map_lr, "conv_clamp": gan.arch.g_clamp or None, "mbstd_group_size": 4, "resample_kernel": [1, 3, 3, 1]}
    path = tf_pickle(tmp_path / "network.pkl", gan, **told)
    z, y = gan.sample(3, rng())
    assert gancompress.load(path)(z, y).equal(gan.generator(z, y))
    found = find(path)
    assert found.network("generator").where.endswith(":Gs")
    if gan.arch.g_clamp == gan.arch.d_clamp:  # the one static_kwargs of this file are both networks'
        x = torch.randn(4, gan.arch.nc, gan.arch.resolution, gan.arch.resolution, generator=rng())
        y = gan.sample(4, rng())[1]
        critic = gancompress.load(path, part="discriminator")
        torch.testing.assert_close(critic(x, y), gan.discriminator(x, y))


def save_rosinality(path, gan, ema=None, noise=True, **beside):
    states = {part[0]: as_rosinality(net.state_dict(), part, noise) for part, net in gan.networks.items()}
    torch.save({**states, "g_ema": as_rosinality((ema or gan).generator.state_dict(), "generator", noise), **beside}, path)
    return str(path)


# ----------------------------------------------------------------------------------------------------------- rosinality's traps


def test_a_training_file_has_all_three_networks_and_the_average_is_preferred(tmp_path):
    gan, ema = small_gan("stylegan2", SKIP), small_gan("stylegan2", SKIP, seed=3)
    path = save_rosinality(tmp_path / "550000.pt", gan, ema, args={"size": 16}, g_optim={"state": {}, "param_groups": []})
    z = gan.sample(2, rng())[0]
    assert gancompress.load(path)(z).equal(ema.generator(z))
    assert gancompress.load(path, ema=False)(z).equal(gan.generator(z))
    x = torch.randn(4, 3, 16, 16, generator=rng())
    torch.testing.assert_close(gancompress.load(path, part="discriminator")(x), gan.discriminator(x))


def test_without_latent_avg_the_mean_w_is_that_of_many_latents(tmp_path):
    gan = small_gan("stylegan2", SKIP)
    path = save_rosinality(tmp_path / "000100.pt", gan)
    assert any("no mean w" in a for a in find(path).assumptions)
    mapping = gan.generator.mapping
    expected = mapping(torch.randn(20_000, 6, generator=rng()), torch.empty(20_000, 0)).mean(0)
    found = gancompress.load(path).mapping.w_avg
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * mapping(torch.randn(500, 6), torch.empty(500, 0)).std().item())
    assert found.equal(gancompress.load(path).mapping.w_avg)
    assert not found.allclose(mapping.w_avg)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_latent_avg_beside_the_weights_is_the_centre_of_truncation(shape, tmp_path):
    gan, mean = small_gan("stylegan2", SKIP), torch.linspace(-1, 1, 6)
    path = save_rosinality(tmp_path / "converted.pt", gan, latent_avg=mean.view(shape))
    assert not any("mean w" in a for a in find(path).assumptions)
    z = gan.sample(2, rng())[0]
    w = gan.generator.mapping(z, z[:, :0])
    expected = gan.generator((mean + 0.6 * (w - mean))[:, None])
    torch.testing.assert_close(gancompress.load(path, truncation=0.6)(z), expected)
    assert not gancompress.load(path)(z).allclose(expected, atol=1e-3)


@pytest.mark.parametrize("mean", [torch.ones(7), torch.full((6,), float("nan")), torch.ones(6, dtype=torch.int64), "512 numbers"])
def test_a_latent_avg_that_cannot_be_one_is_passed_over(mean):
    state = as_rosinality(small_gan("stylegan2", SKIP).generator.state_dict(), "generator")
    found = stylegan2.read(state, {"config": {"latent_avg": mean}})
    assert any("no mean w" in a for a in found.assumptions)
    assert found.state["mapping.w_avg"].isfinite().all()


def test_a_file_without_stored_noise_gets_the_same_noise_every_time(tmp_path):
    gan = small_gan("stylegan2", SKIP)
    path = save_rosinality(tmp_path / "550000.pt", gan, noise=False)
    assert any("no stored noise" in a for a in find(path).assumptions)
    z = gan.sample(2, rng())[0]
    one, two = gancompress.load(path), gancompress.load(path)
    assert one(z).equal(two(z))
    assert 0.5 < one.synthesis["b16"].conv1.noise_const.std() < 1.5
    without = gancompress.load(path, noise="none")
    torch.testing.assert_close(without(z), gancompress.load(save_rosinality(tmp_path / "whole.pt", gan), noise="none")(z))


def test_widths_are_read_from_shapes_whatever_the_channel_multiplier(tmp_path):
    wide = {**SKIP, "g_widths": (8, 6, 5), "d_widths": (3, 7, 9), "const_width": 8}
    found = find(save_rosinality(tmp_path / "e.pt", small_gan("stylegan2", wide)))
    assert (found.arch.g_widths, found.arch.d_widths, found.arch.resolution) == ((8, 6, 5), (3, 7, 9), 16)


def test_swagan_is_refused_by_what_it_has_besides():
    state = as_rosinality(small_gan("stylegan2", {**SKIP, "nc": 12}).generator.state_dict(), "generator")
    state["to_rgbs.0.iwt.ll"] = torch.ones(2, 2)
    with pytest.raises(Mismatch, match=r"unexpected key to_rgbs\.0\.iwt\.ll") as caught:
        stylegan2.read(state, {})
    assert caught.value.score > 0.7


def test_another_filter_is_refused():
    state = as_rosinality(small_gan("stylegan2", SKIP).generator.state_dict(), "generator")
    state["convs.0.conv.blur.kernel"] = torch.outer(torch.tensor([1.0, 2, 2, 1]), torch.tensor([1.0, 2, 2, 1])) / 9
    with pytest.raises(Mismatch, match=r"convs\.0\.conv\.blur\.kernel is another filter"):
        stylegan2.read(state, {})


# --------------------------------------------------------------------------------------------------------------- NVlabs' traps


def told(part="generator", nested=False, **kwargs):
    """Constructor arguments as a pickle of stylegan2-ada-pytorch (nested) or stylegan3 (flat) holds them."""
    base = {"img_resolution": 8, "c_dim": 3}
    return {"config": {**base, "synthesis_kwargs": kwargs} if nested and part == "generator" else {**base, **kwargs}}


@pytest.mark.parametrize(
    ("options", "clamp"),
    [
        (told(conv_clamp=256), 256),
        (told(conv_clamp=None), 0),
        (told(), 256),  # stylegan3's code clamps where nothing is said
        (told(nested=True), 0),  # stylegan2-ada's does not
        (told(nested=True, conv_clamp=0.5), 0.5),
        ({}, 256),  # no settings: every train.py clamps
    ],
)
def test_the_clamp_is_that_of_the_settings(options, clamp):
    found = stylegan2.read(small_gan("stylegan2", CONDITIONAL).generator.state_dict(), options)
    assert found.fields["g_clamp"] == clamp
    assert any("no settings" in a for a in found.assumptions) == (not options)


def test_a_clamp_bounds_every_activation_and_images_with_it():
    z, y = small_gan("stylegan2", CONDITIONAL).sample(2, rng())
    free, bound = (small_gan("stylegan2", {**CONDITIONAL, "g_clamp": c}).generator for c in (0.0, 0.3))
    assert free(z, y).abs().max() > 1
    assert bound(z, y).abs().max() <= 0.3 * 3  # an image for each of 4x4 and 8x8, the first through a filter of sum 4 / 4


def test_the_mapping_rate_and_the_groups_are_those_of_the_settings():
    gan = small_gan("stylegan2", CONDITIONAL)
    assert stylegan2.read(gan.generator.state_dict(), {"config": {"mapping_kwargs": {"lr_multiplier": 0.1}}}).fields["map_lr"] == 0.1
    state = gan.discriminator.state_dict()
    for size, group in ((None, 0), (8, 8), ("many", 0)):
        assert stylegan2.read(state, {"config": {"epilogue_kwargs": {"mbstd_group_size": size}}}).fields["d_std_group"] == group
    assert stylegan2.read(state, {}).fields["d_std_group"] == 4
    tensorflow = stylegan2.read(as_tensorflow(state, "discriminator"), {"config": {"resolution": 8}})
    assert (tensorflow.fields["d_map_lr"], tensorflow.fields["d_std_group"]) == (0.1, 4)


def test_a_conditional_pickle_is_read_with_its_label_sizes():
    gan = small_gan("stylegan2", CONDITIONAL)
    found = stylegan2.read(gan.generator.state_dict(), {})
    assert {k: found.fields[k] for k in ("classes", "label_width", "nz", "map_width")} == {"classes": 3, "label_width": 7, "nz": 4, "map_width": 5}
    critic = stylegan2.read(gan.discriminator.state_dict(), {})
    assert {k: critic.fields[k] for k in ("classes", "d_map_width", "d_map_layers")} == {"classes": 3, "d_map_width": 8, "d_map_layers": 8}


def test_order_and_memory_format_of_the_tensors_do_not_matter():
    """fp16 blocks are channels_last; frozen layers keep their weights as buffers, which come last."""
    gan = small_gan("stylegan2", SKIP)
    for net, part in ((gan.generator, "generator"), (gan.discriminator, "discriminator")):
        state = {k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in reversed(net.state_dict().items())}
        found = stylegan2.read(state, {})
        assert found.part == part
        assert all(found.state[k].equal(t) for k, t in net.state_dict().items())


def test_filters_in_a_pickle_are_set_aside_and_others_refused():
    state = small_gan("stylegan2", SKIP).generator.state_dict()
    taps = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    state["synthesis.b8.resample_filter"] = state["synthesis.b8.conv0.resample_filter"] = taps
    assert "synthesis.b8.resample_filter" not in stylegan2.read(state, {}).state
    state["synthesis.b8.conv0.resample_filter"] = torch.ones(4, 4) / 16
    with pytest.raises(Mismatch, match="another filter"):
        stylegan2.read(state, {})


@pytest.mark.parametrize(
    "config",
    [
        {"synthesis_kwargs": {"activation": "relu"}},
        {"mapping_kwargs": {"activation": "swish"}},
        {"synthesis_kwargs": {"resample_filter": [1, 2, 1]}},
        {"activation": torch.ones(3)},
    ],
)
def test_settings_of_another_arithmetic_are_refused(config):
    with pytest.raises(Mismatch, match="its settings say"):
        stylegan2.read(small_gan("stylegan2", SKIP).generator.state_dict(), {"config": config})


def test_hints_of_any_type_are_survived():
    gan = small_gan("stylegan2", CONDITIONAL)
    for junk in (None, True, "x", [1], torch.ones(3), {"a": None}, float("nan"), -1, object()):
        config = dict.fromkeys(("synthesis_kwargs", "epilogue_kwargs", "block_kwargs", "conv_clamp", "c_dim", "img_resolution", "latent_avg"), junk)
        config["mapping_kwargs"] = {"lr_multiplier": junk, "num_layers": junk}
        for net in gan.networks.values():
            found = stylegan2.read(net.state_dict(), {"config": config})
            assert found.fields.get("map_lr", 0.01) == found.fields.get("d_map_lr", 0.01) == 0.01
            FAMILY.build_arch(None, found.fields)
    assert stylegan2.read(gan.generator.state_dict(), {"config": "none"}).fields["classes"] == 3


# --------------------------------------------------------------------------------------------------- wrong keys and shapes, by name


def spelled(project, part):
    state = small_gan("stylegan2", SKIP).networks[part].state_dict()
    return dict({"nvlabs": lambda s, p: s, "rosinality": as_rosinality, "tensorflow": as_tensorflow}[project](state, part))


@pytest.mark.parametrize(
    ("project", "part", "key"),
    [
        ("nvlabs", "generator", "synthesis.b8.conv0.affine.weight"),
        ("nvlabs", "discriminator", "b16.conv1.bias"),
        ("rosinality", "generator", "convs.1.activate.bias"),
        ("rosinality", "generator", "to_rgbs.0.conv.modulation.weight"),
        ("rosinality", "discriminator", "convs.2.conv2.1.weight"),
        ("tensorflow", "generator", "synthesis/8x8/Conv0_up/mod_bias"),
        ("tensorflow", "discriminator", "4x4/Dense0/weight"),
    ],
)
def test_a_missing_key_and_a_wrong_shape_are_named_as_the_file_has_them(project, part, key):
    state = spelled(project, part)
    assert stylegan2.read(state, {}).part == part
    name = key.replace(".", r"\.")
    with pytest.raises(Mismatch, match=f"^{name} is missing") as caught:
        stylegan2.read({k: t for k, t in state.items() if k != key}, {})
    assert caught.value.score > 0.8
    with pytest.raises(Mismatch, match=rf"^{name} has shape \(.*2, ") as caught:
        stylegan2.read({**state, key: torch.ones(2, 2, 2, 3)}, {})
    with pytest.raises(Mismatch, match=r"^unexpected key stray$"):
        stylegan2.read({**state, "stray": torch.ones(1)}, {})


def test_a_file_is_told_of_as_the_nearest_family_with_the_key_at_fault(tmp_path):
    state = spelled("rosinality", "generator")
    del state["input.input"]
    torch.save({"g_ema": state}, tmp_path / "g.pt")
    with pytest.raises(CheckpointError, match=r"nearest family stylegan2: input\.input is missing"):
        find(str(tmp_path / "g.pt"))


@pytest.mark.parametrize("top", [12, 1 << 13, 99_999])
def test_impossible_resolutions_are_refused_before_anything_is_built(top):
    state = {f"synthesis.b{top}.conv1.weight": torch.ones(1, 1, 3, 3), "mapping.fc0.weight": torch.ones(1, 1)}
    with pytest.raises(Mismatch, match="doubling resolution"):
        stylegan2.read(state, {})


def test_files_of_other_families_score_low():
    for family in sorted(set(SMALL) - {"stylegan2", "stylegan3", "sngan24"}):  # sngan24 calls its layers convs, as rosinality does
        for net in small_gan(family, SMALL[family][0]).networks.values():
            with pytest.raises(Mismatch) as caught:
                stylegan2.read(net.state_dict(), {})
            assert caught.value.score < 0.5, family


# ---------------------------------------------------------------------------------------------------------- what a forward pass means


def test_w_and_w_plus_are_taken_as_they_are():
    gan = small_gan("stylegan2", {**SKIP, "truncation": 0.3})
    z = gan.sample(2, rng())[0]
    w = gan.generator.mapping(z, z[:, :0])
    assert not gan.generator(w[:, None]).allclose(gan.generator(z), atol=1e-3)
    torch.testing.assert_close(gan.generator(w[:, None].repeat(1, 6, 1)), gan.generator(w[:, None]))
    mixed = torch.cat([w[:, None].repeat(1, 3, 1), w.flip(0)[:, None].repeat(1, 3, 1)], 1)
    assert not gan.generator(mixed).allclose(gan.generator(w[:, None]), atol=1e-3)
    for wrong in (torch.ones(2, 5, 6), torch.ones(2, 1, 7)):
        with pytest.raises(ValueError, match="w has shape"):
            gan.generator(wrong)


def test_truncation_moves_w_towards_its_mean():
    full, none, half = (small_gan("stylegan2", {**SKIP, "truncation": t}).generator for t in (1.0, 0.0, 0.5))
    z = torch.randn(2, 6, generator=rng())
    torch.testing.assert_close(none(z)[0], none(z)[1])
    w = full.mapping(z, z[:, :0])
    expected = full(((w + full.mapping.w_avg) / 2)[:, None])
    torch.testing.assert_close(half(z), expected)
    torch.testing.assert_close(half.train()(z), expected, rtol=0, atol=0.02 * expected.std().item())  # but for the step of the mean


def test_noise_is_the_stored_one_in_training_too_unless_asked_otherwise():
    const, none, random = (small_gan("stylegan2", {**SKIP, "noise": n}).generator for n in ("const", "none", "random"))
    z = torch.randn(2, 6, generator=rng())
    assert const.train()(z).equal(const.eval()(z))
    assert not const(z).allclose(none(z), atol=1e-3)
    assert not random(z).allclose(random(z), atol=1e-3)
    assert not random(z[:1].expand(2, -1))[0].allclose(random(z[:1].expand(2, -1))[1], atol=1e-3)


def test_training_follows_the_mean_of_w_and_evaluation_does_not():
    net = small_gan("stylegan2", SKIP).generator
    z, before = torch.randn(4, 6, generator=rng()), net.mapping.w_avg.clone()
    net.eval()(z)
    assert net.mapping.w_avg.equal(before)
    net.train()(z)
    torch.testing.assert_close(net.mapping.w_avg, before + 0.005 * (net.mapping(z, z[:, :0]).mean(0) - before))


def test_gradients_reach_every_parameter_of_both_networks():
    for fields in KINDS[:2]:
        gan = small_gan("stylegan2", fields)
        z, y = gan.sample(4, rng())
        for net in gan.networks.values():
            net.requires_grad_(True)
        gan.discriminator(gan.generator(z, y), y).sum().backward()
        for net in gan.networks.values():
            assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize(("n", "group", "size"), [(8, 4, 4), (6, 4, 3), (5, 4, 1), (3, 4, 3), (6, 0, 6), (1, 4, 1)])
def test_the_batch_s_deviation_is_taken_over_groups_that_divide_it(n, group, size):
    epilogue = small_gan("stylegan2", {**SKIP, "d_std_group": group}).discriminator.b4
    x = torch.randn(n, 8, 4, 4, generator=rng())
    expected = torch.stack([x[i % (n // size) :: n // size].std(0, unbiased=False).mean() for i in range(n)])
    torch.testing.assert_close(epilogue._deviation(x)[:, 0, 0, 0], expected, rtol=1e-3, atol=2e-4)


def test_a_fresh_network_starts_as_the_paper_s():
    torch.manual_seed(0)
    net = FAMILY.generator(FAMILY.build_arch(None, {"resolution": 8, "width": 64, "w_dim": 64, "nz": 64}))
    conv = net.synthesis["b8"].conv0
    assert conv.noise_strength == 0
    assert conv.affine.bias.equal(torch.ones(64))
    assert abs(conv.weight.std() - 1) < 0.02
    assert abs(net.mapping.fc0.weight.std() - 100) < 3
    assert net.mapping.fc0.bias.equal(torch.zeros(64))
    z = torch.randn(64, 64, generator=rng())
    assert 0.5 < net.mapping(z, z[:, :0]).std() < 1.5


# ------------------------------------------------------------------------------------------------------------------- Arch


def test_build_arch_fills_in_what_follows_from_the_rest():
    arch = FAMILY.build_arch(None, {"resolution": 1024})
    assert arch.g_widths == arch.d_widths[::-1] == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    assert FAMILY.build_arch(None, {"resolution": 256, "width": 256}).g_widths == (256, 256, 256, 256, 256, 128, 64)
    labelled = FAMILY.build_arch(None, {"resolution": 32, "classes": 10, "w_dim": 64})
    assert (labelled.label_width, labelled.d_map_width, labelled.map_width) == (64, 512, 64)
    assert FAMILY.build_arch(arch, {"d_width": 64}).g_widths == arch.g_widths
    assert FAMILY.build_arch(arch, {"truncation": "0.7", "noise": "none"}) == FAMILY.build_arch(arch, {"truncation": 0.7, "noise": "none"})
    assert FAMILY.build_arch(arch, {"resolution": 64}).const_width == 512


@pytest.mark.parametrize(
    "fields",
    [
        {"resolution": 24},
        {"resolution": 4},
        {"resolution": 1 << 20},
        {"g_widths": (8,)},
        {"g_widths": ()},
        {"classes": 3, "label_width": 0},
        {"map_lr": 0.0},
        {"truncation": "nan"},
        {"noise": "pink"},
        {"g_clamp": -1.0},
        {"nz": 0},
        {"width": "wide"},
        {"width": 0},
    ],
)
def test_impossible_fields_are_refused(fields):
    with pytest.raises(UsageError):
        FAMILY.build_arch(None, {"resolution": 16, **fields})


# ------------------------------------------------------------------------------------------------------------------- upfirdn


def slow_upfirdn(x, kernel, up, down, padding, gain):
    kernel = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    y = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    y[:, :, ::up, ::up] = x
    y = F.pad(y, padding)
    out = [F.conv2d(y[:, c : c + 1], (kernel * gain).flip(0, 1)[None, None]) for c in range(x.shape[1])]
    return torch.cat(out, 1)[:, :, ::down, ::down]


@pytest.mark.parametrize("shape", [(4, 4), (3,), (12,), (2, 5)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 2, 1), (1, 1, 1, 1), (-1, 3, 5, -2), (12, 0, 12, 12)])
def test_upfirdn_is_zeros_padding_filter_and_every_nth_pixel(shape, up, down, padding):
    x, kernel = torch.rand(2, 3, 13, 14, generator=rng()), torch.rand(shape, generator=rng(2))
    found = upfirdn(x, kernel, up, down, padding, 2.5)
    torch.testing.assert_close(found, slow_upfirdn(x, kernel, up, down, padding, 2.5), rtol=1e-4, atol=1e-4)


def test_upfirdn_has_gradients_of_second_order():
    x, kernel = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True), torch.rand(4, 4, dtype=torch.float64)
    for up, down, padding in ((2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1))):
        assert torch.autograd.gradgradcheck(lambda t, u=up, d=down, p=padding: upfirdn(t, kernel, u, d, p).square(), x)
