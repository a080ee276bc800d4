"""StyleGAN3: the alias-free generator as a teacher."""

import math

import numpy as np
import pytest
import torch
from conftest import SMALL, small_gan
from torch.nn import functional as F

from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families import FAMILIES, stylegan3
from gancompress.gan import Mismatch
from gancompress.layers import upfirdn
from gancompress.losses.gan import AdversarialWeights, Adversary

FAMILY = FAMILIES["stylegan3"]
#: NVlabs' constructor arguments of three small networks
T = {"img_resolution": 16, "conv_clamp": 256, "num_critical": 2, "margin_size": 10}
R = {
    "img_resolution": 32,
    "conv_clamp": None,
    "num_critical": 1,
    "margin_size": 6,
    "output_scale": 0.5,
    "mapping_kwargs": {"num_layers": 3, "lr_multiplier": 0.1},
}
ODD = {
    "img_resolution": 16,
    "margin_size": 3,
    "first_cutoff": 3,
    "first_stopband": 5.5,
    "last_stopband_rel": 1.4,
    "lrelu_upsampling": 4,
    "conv_clamp": 0.4,
    "num_critical": 3,
}
CASES = {
    "T": (T, {"resolution": 16, "nz": 5, "w_dim": 7, "widths": (6, 5, 5, 4)}),
    "R": (R, {"resolution": 32, "nz": 5, "nc": 1, "classes": 3, "w_dim": 7, "map_layers": 3, "map_lr": 0.1, "widths": (6, 5, 4), "kernel": 1, "radial": True}),
    "odd": (ODD, {"resolution": 16, "nz": 4, "w_dim": 4, "widths": (4, 3, 5, 6, 3), "taps": 4, "first_cutoff": 3, "lrelu_up": 4, "critical": 3}),
}
OURS = {"first_stopband": "first_stopband", "last_stopband_rel": "last_stopband", "margin_size": "margin", "num_critical": "critical"}


def written(case, seed=3):
    """(state dict under NVlabs' names, constructor arguments) of a random network: every tensor off its neutral value."""
    config, fields = CASES[case]
    fields = fields | {ours: config[theirs] for theirs, ours in OURS.items() if theirs in config}
    arch = FAMILY.build_arch(None, fields)
    torch.manual_seed(seed)
    net = FAMILY.generator(arch)
    state = {}
    for key, tensor in net.state_dict().items():
        if key.endswith(("bias", "w_avg", "affine.weight", "transform")):
            tensor += 0.3 * torch.randn(tensor.shape)
        if key.endswith("magnitude_ema"):
            tensor += torch.rand(())
        head, *rest = key.split(".")
        if head == "layers":
            band, width = stylegan3.bands(arch)[int(rest[0])], (*arch.widths, arch.nc)[int(rest[0])]
            key = f"synthesis.L{rest[0]}_{band.size}_{width}.{'.'.join(rest[1:])}"
        state[f"synthesis.{key}" if head == "input" else key.replace("mapping.fc.", "mapping.fc")] = tensor.clone()
    return state, config


def network(state, config, **settings):
    reading = FAMILY.read(state, {"config": config})
    net = FAMILY.generator(FAMILY.build_arch(None, reading.fields | settings)).eval().requires_grad_(False)
    net.load_state_dict(reading.state)
    return net


def zero_stuffed(x, kernel, up, down, padding, gain):
    """What upfirdn says, to the letter, in float64."""
    left, right, top, bottom = padding
    kernel = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    n, c, h, w = x.shape
    stuffed = x.new_zeros(n, c, h * up, w * up)
    stuffed[:, :, ::up, ::up] = x
    wide = F.pad(stuffed, (left, right, top, bottom)).reshape(n * c, 1, h * up + top + bottom, w * up + left + right)
    out = F.conv2d(wide, gain * kernel.flip(0, 1)[None, None])
    return out.reshape(n, c, *out.shape[2:])[:, :, ::down, ::down]


def reference(state, config, z, label, psi=1.0):
    """The paper's generator written anew from its equations: one image at a time, whole weights, zero-stuffing, float64."""
    s = {k: v.double() for k, v in state.items()}
    lr = config.get("mapping_kwargs", {}).get("lr_multiplier", 0.01)
    clamp, up_act = config.get("conv_clamp", 256), config.get("lrelu_upsampling", 2)

    def dense(x, name, rate=1.0):
        return s[f"{name}.weight"] @ x * rate / math.sqrt(len(x)) + s[f"{name}.bias"] * rate

    def unit(x):
        return x / (x.square().mean() + 1e-8).sqrt()

    names = sorted({k.rsplit(".", 1)[0].removesuffix(".affine") for k in s if ".L" in k}, key=lambda n: int(n.split(".L")[1].split("_")[0]))
    size = [int(n.split("_")[1]) for n in names]
    res, layers, critical = size[-1], len(names) - 1, config.get("num_critical", 2)
    cut0, stop0, rel = config.get("first_cutoff", 2), config.get("first_stopband", 2**2.1), config.get("last_stopband_rel", 2**0.3)
    share = [min(i / (layers - critical), 1) for i in range(layers + 1)]
    rate = [2 ** math.ceil(math.log2(min(2 * stop0 * (res / 2 * rel / stop0) ** e, res))) for e in share]
    images = []
    for i in range(len(z)):
        w = unit(z[i].double())
        if label is not None:
            w = torch.cat([w, unit(s["mapping.embed.weight"][:, label[i]] / math.sqrt(s["mapping.embed.weight"].shape[1]) + s["mapping.embed.bias"])])
        for j in range(sum("mapping.fc" in k for k in s) // 2):
            w = F.leaky_relu(dense(w, f"mapping.fc{j}", lr), 0.2) * math.sqrt(2)
        w = s["mapping.w_avg"] + psi * (w - s["mapping.w_avg"])
        c, d, tx, ty = (t := dense(w, "synthesis.input.affine")) / t[:2].norm()
        turn = torch.tensor([[c, -d, 0], [d, c, 0], [0, 0, 1]]).double()
        turn = turn @ torch.tensor([[1, 0, -tx], [0, 1, -ty], [0, 0, 1]]).double() @ s["synthesis.input.transform"]
        at = (torch.arange(size[0]).double() + 0.5 - size[0] / 2) / rate[0]
        places = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)  # (H, W, xy)
        freqs = s["synthesis.input.freqs"] @ turn[:2, :2]
        fade = (1 - (freqs.norm(dim=1) - cut0) / (rate[0] / 2 - cut0)).clamp(0, 1)
        waves = torch.sin(2 * math.pi * (places @ freqs.T + s["synthesis.input.phases"] + s["synthesis.input.freqs"] @ turn[:2, 2])) * fade
        x = (waves @ s["synthesis.input.weight"].T / math.sqrt(len(fade))).permute(2, 0, 1)[None]
        for j, name in enumerate(names):
            style, kernel = dense(w, f"{name}.affine"), s[f"{name}.weight"]
            x = x / s[f"{name}.magnitude_ema"].sqrt()
            if j == layers:
                x = F.conv2d(x, kernel * style[:, None, None] / math.sqrt(len(style)), s[f"{name}.bias"])
                images.append(x if clamp is None else x.clamp(-clamp, clamp))
                continue
            kernel = kernel / kernel.square().mean((1, 2, 3), keepdim=True).sqrt() * (style / style.square().mean().sqrt())[:, None, None]
            kernel = kernel / kernel.square().sum((1, 2, 3), keepdim=True).sqrt()
            x = F.conv2d(x, kernel, s[f"{name}.bias"], padding=kernel.shape[-1] - 1)
            up, down = rate[j] * up_act // rate[max(j - 1, 0)], up_act
            fu, fd = s[f"{name}.up_filter"], s[f"{name}.down_filter"]
            total = (size[j] - 1) * down + 1 - x.shape[-1] * up + len(fu) + len(fd) - 2
            low = (total + up) // 2
            x = F.leaky_relu(zero_stuffed(x, fu, up, 1, (low, total - low) * 2, up**2), 0.2) * math.sqrt(2)
            x = zero_stuffed(x if clamp is None else x.clamp(-clamp, clamp), fd, 1, down, (0, 0, 0, 0), 1)
            assert x.shape[-1] == size[j]
    return torch.cat(images) * config.get("output_scale", 0.25)


# ------------------------------------------------------------------------------------------------------------------ the forward pass


@pytest.mark.parametrize("psi", [1.0, 0.6])
@pytest.mark.parametrize("case", CASES)
def test_a_file_makes_the_images_the_paper_s_equations_say(case, psi):
    state, config = written(case)
    z, label = torch.randn(3, CASES[case][1]["nz"]), torch.tensor([2, 0, 1]) if "classes" in CASES[case][1] else None
    expected = reference(state, config, z, label, psi).float()
    found = network(state, config, truncation=psi)(z, label)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("key", ["magnitude_ema", "transform", "freqs", "phases", "up_filter", "down_filter"])
def test_every_buffer_of_the_file_counts(key):
    state, config = written("T")
    z = torch.randn(2, 5)
    before = network(state, config)(z)
    changed = next(k for k in state if k.endswith(key))
    state[changed] = state[changed] * 1.1
    assert (network(state, config)(z) - before).abs().max() > 1e-3


def test_truncation_draws_every_latent_to_the_mean_the_file_holds():
    state, config = written("T")
    z = torch.randn(4, 5)
    ends = network(state, config, truncation=0.0)(z)
    assert ends.allclose(ends[:1].expand_as(ends), atol=1e-6)
    state["mapping.w_avg"] += 1
    assert not network(state, config, truncation=0.0)(z).allclose(ends, atol=1e-3)
    assert network(state, config)(z).equal(network(written("T")[0], config)(z))


def test_config_r_turns_with_its_input():
    state, config = written("R")
    z, label = torch.randn(1, 5), torch.tensor([1])
    state["synthesis.input.transform"] = torch.eye(3)
    state["synthesis.input.affine.weight"] *= 0
    state["synthesis.input.affine.bias"] = torch.tensor([1.0, 0, 0, 0])
    upright = network(state, config)(z, label)
    state["synthesis.input.affine.bias"] = torch.tensor([0.0, 1, 0, 0])
    assert network(state, config)(z, label).allclose(torch.rot90(upright, 1, (2, 3)), atol=1e-5)
    assert not network(state, config)(z, label).allclose(upright, atol=1e-2)


def test_styles_are_normalised_for_each_image_alone():
    layer = small_gan("stylegan3", SMALL["stylegan3"][0]).generator.layers[0]
    x, w = torch.randn(2, 8, 20, 20), torch.randn(2, 8) * torch.tensor([[1.0], [1e6]])
    assert layer(x, w)[:1].allclose(layer(x[:1], w[:1]), rtol=1e-4, atol=1e-5)


def test_training_follows_the_running_means_and_evaluation_does_not():
    gan = small_gan("stylegan3", SMALL["stylegan3"][0])
    before = {k: v.clone() for k, v in gan.generator.named_buffers()}
    gan.generator(torch.randn(8, 6))
    assert all(v.equal(before[k]) for k, v in gan.generator.named_buffers())
    gan.generator.train()(torch.randn(8, 6))
    moved = {k for k, v in gan.generator.named_buffers() if not v.equal(before[k])}
    assert moved == {"mapping.w_avg", *(f"layers.{i}.magnitude_ema" for i in range(5))}


@pytest.mark.parametrize(
    ("up", "down", "padding"), [(1, 1, (1, 2, 0, 3)), (2, 1, (9, 8, 7, 6)), (4, 1, (-3, -6, 2, -1)), (1, 2, (-2, 0, 3, 1)), (3, 2, (20, 1, 0, 25))]
)
@pytest.mark.parametrize("shape", [(6,), (6, 6), (4, 5)])
def test_upfirdn_is_padding_zero_stuffing_convolution_and_thinning(up, down, padding, shape):
    x, kernel = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    expected = zero_stuffed(x, kernel, up, down, padding, 3.0)
    torch.testing.assert_close(upfirdn(x, kernel, up=up, down=down, padding=padding, gain=3.0), expected)


# ------------------------------------------------------------------------------------------------------------------------- the shapes


@pytest.mark.parametrize(("config", "millions", "exact"), [("T", 22.31, 22_313_167), ("R", 15.09, 15_093_151)])
def test_parameters_of_both_configs_at_1024_are_those_published(config, millions, exact):
    found = generator_cost(FAMILY, FAMILY.build_arch(None, {"config": config, "resolution": 1024})).parameters
    assert found == exact
    assert round(found / 1e6, 2) == millions  # DGL-GAN, Table 2


def test_sizes_and_widths_follow_the_paper_s_schedule():
    arch = FAMILY.build_arch(None, {"resolution": 1024})
    assert [b.size for b in stylegan3.bands(arch)] == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert arch.widths == (512, 512, 512, 512, 512, 512, 512, 323, 203, 128, 81, 51, 32, 32)
    assert FAMILY.build_arch(None, {}) == FAMILY.Arch()


@pytest.mark.parametrize(
    ("taps", "cutoff", "half_width", "rate", "half"),
    [  # scipy.signal.firwin(taps, cutoff, width=2 * half_width, fs=rate)
        (12, 2, 14, 64, [0.0006127704813, 0.0098872282821, 0.0391584754845, 0.0927976478726, 0.1566048551902, 0.2009390226893]),
        (12, 20, 2, 128, [-0.0493540666163, -0.0746745497271, -0.0291243561552, 0.0891084385689, 0.2329768176280, 0.3310677163018]),
        (8, 20, 12, 128, None),
    ],
)
def test_filters_are_kaiser_windowed_sinc(taps, cutoff, half_width, rate, half):
    found = stylegan3.lowpass(taps, cutoff, half_width, rate)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, found[::-1], atol=1e-15)
    if half:
        np.testing.assert_allclose(found[: taps // 2], half, atol=1e-12)


def test_radial_filters_are_a_windowed_jinc():
    found = stylegan3.lowpass(6, 10, 14, 64, radial=True)
    quarter = [  # outer Kaiser window times scipy.special.j1(2 pi cutoff r) / (pi r)
        [0.0002673110774, 0.0031240548028, 0.0073788849079],
        [0.0031240548028, 0.0233540116886, 0.0501952709730],
        [0.0073788849079, 0.0501952709730, 0.1049822558666],
    ]
    np.testing.assert_allclose(found[:3, :3], quarter, atol=1e-12)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-15)
    assert np.isfinite(stylegan3.lowpass(5, 10, 14, 64, radial=True)).all()  # a tap at the very centre


def test_a_fresh_network_starts_as_the_paper_says():
    torch.manual_seed(0)
    net = FAMILY.generator(FAMILY.build_arch(None, {"resolution": 16, "config": "R", "width": 64}))
    w = torch.randn(3, 512)
    assert net.input.affine(w).equal(torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4))  # neither turned nor shifted
    assert net.input.freqs.norm(dim=1).max() <= 2
    assert float(net.mapping.fc[0].weight.detach().std()) == pytest.approx(100, rel=0.05)
    assert net.layers[3].affine.bias.eq(1).all()
    assert 0.1 < net.eval()(torch.randn(4, 512)).std() * 4 < 10


def test_a_teacher_only_says_so_where_a_critic_is_asked_for():
    gan = small_gan("stylegan3", SMALL["stylegan3"][0])
    for ask in (lambda: FAMILY.discriminator(gan.arch), lambda: FAMILY.axes(gan.arch, "discriminator"), lambda: Adversary(gan, AdversarialWeights())):
        with pytest.raises(UsageError, match="stylegan3 is a teacher only") as caught:
            ask()
        assert "--student stylegan2" in caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"resolution": 48},
        {"widths": "8,8"},
        {"widths": "8,0,8"},
        {"critical": 14},
        {"first_cutoff": 200},
        {"last_stopband": 0.01},
        {"truncation": "nan"},
        {"truncation": "half"},
        {"clamp": -1},
        {"lrelu_up": 1},
        {"config": "S"},
        {"width": "wide"},
    ],
)
def test_impossible_architectures_are_refused(values):
    with pytest.raises(UsageError):
        FAMILY.build_arch(None, values)


# ------------------------------------------------------------------------------------------------------------------------- the reader


@pytest.mark.parametrize("case", CASES)
def test_a_file_tells_its_whole_architecture(case):
    state, config = written(case)
    fields = CASES[case][1]
    reading = FAMILY.read(state, {"config": config})
    arch = FAMILY.build_arch(None, reading.fields)
    assert {k: getattr(arch, k) for k in fields} == fields
    assert arch.clamp == (config["conv_clamp"] or 0)
    assert reading.part == "generator"
    assert not reading.assumptions
    if case == "T":  # the defaults are NVlabs': nothing else is lost without the constructor's arguments
        again = FAMILY.read(state, {})
        assert FAMILY.build_arch(None, again.fields) == arch
        assert "clamp 256" in again.assumptions[0]


def test_layers_are_found_by_index_whatever_width_their_names_carry_and_in_any_order():
    state, config = written("T")
    other = {k.replace("_6.", "_512.").replace("_5.", "_1."): v for k, v in reversed(state.items())}
    a, b = (FAMILY.read(s, {"config": config}) for s in (state, other))
    assert a.fields == b.fields
    assert all(a.state[k].equal(v) for k, v in b.state.items())


@pytest.mark.parametrize("value", ["two", None, [], {}, True, math.nan, math.inf, -1, 10**400, 2.5])
def test_a_hint_of_the_wrong_kind_says_nothing(value):
    state, _ = written("T")
    known = FAMILY.read(state, {})
    told = dict.fromkeys(["num_critical", "margin_size", "lrelu_upsampling"], value)
    assert FAMILY.read(state, {"config": {**told, "mapping_kwargs": value}}).fields == known.fields
    assert FAMILY.read(state, {"config": value}).fields == known.fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("synthesis.L2_36_5.magnitude_ema"), r"synthesis\.L2_36_5\.magnitude_ema is missing"),
        (lambda s: s.pop("mapping.w_avg"), r"mapping\.w_avg is missing"),
        (lambda s: s.pop("synthesis.input.freqs"), r"synthesis\.input\.freqs is missing"),
        (lambda s: [s.pop(k) for k in list(s) if ".L1_" in k], r"synthesis\.L1_\* is missing"),
        (lambda s: s.update({"synthesis.L1_52_9.weight": torch.zeros(1)}), "are one layer"),
        (lambda s: s.update({"synthesis.noise": torch.zeros(1)}), r"unexpected keys .*synthesis\.noise"),
        (lambda s: s.update({"synthesis.L1_36_5.bias": torch.zeros(9)}), r"synthesis\.L1_36_5\.bias has shape \(9,\), expected \(5,\)"),
        (lambda s: s.update({"synthesis.L0_36_6.up_filter": torch.zeros(100_000)}), "taps up to 64"),
        (lambda s: s.update({"synthesis.L0_36_6.down_filter": torch.zeros(3, 4)}), r"L1_36_5\.down_filter|L0_36_6\.down_filter has shape \(3, 4\)"),
        (lambda s: [s.update({k.replace("_36_", "_40_"): s.pop(k)}) for k in list(s) if ".L1_" in k], r"synthesis\.L1_40_5: its size is 36"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state, config = written("T")
    change(state)
    with pytest.raises(Mismatch, match=message) as caught:
        FAMILY.read(state, {"config": config})
    assert caught.value.score >= 0.5


def test_hints_that_no_network_could_have_are_a_mismatch():
    state, config = written("T")
    for hint in ({"lrelu_upsampling": 0}, {"num_critical": 0}, {"num_critical": 999}, {"first_cutoff": 0}, {"first_stopband": 1e-30}, {"margin_size": 9}):
        with pytest.raises(Mismatch):
            FAMILY.read(state, {"config": config | hint})


def test_the_files_of_others_are_far_from_it():
    for state in ({"main.0.weight": torch.zeros(4, 4, 4, 4)}, {"synthesis.b4.const": torch.zeros(4, 4, 4), "mapping.w_avg": torch.zeros(4)}, {}):
        with pytest.raises(Mismatch) as caught:
            FAMILY.read(state, {})
        assert caught.value.score == 0


@pytest.mark.assets
@pytest.mark.parametrize(("title", "kernel", "radial"), [("G3-T", 3, False), ("G3-R", 1, True)])
def test_keys_of_nvlabs_own_networks_are_read_to_the_last(assets, title, kernel, radial):
    section = (assets / "keys" / "sg3.txt").read_text().split(f"## {title}\n")[1].split("##")[0]
    state = {}
    for line in section.splitlines():
        key, shape = line.split(" ", 1)
        state[key] = torch.zeros([int(n) for n in shape[shape.index("(") + 1 : shape.index(")")].split(",") if n.strip()])
    arch = FAMILY.build_arch(None, FAMILY.read(state, {}).fields)
    assert (arch.resolution, arch.kernel, arch.radial, arch.nz, arch.w_dim) == (64, kernel, radial, 512, 512)
    assert arch.widths == (256,) * 10 + (203, 161, 128, 128)
