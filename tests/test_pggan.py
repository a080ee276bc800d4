"""Progressive GANs: both foreign formats against re-implementations of their own arithmetic, and every trap of reading them."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gancompress
from gancompress.cost import generator_cost
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import pggan
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan

FAMILY = pggan.FAMILY
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # pixel norm of random weights enlarges rounding; a wrong reading shows in the first digit


def rebuilt(state, **options):
    """The network that the reader makes of a foreign state dict, and the Reading."""
    reading = FAMILY.read(state, options)
    net = getattr(FAMILY, reading.part)(FAMILY.build_arch(None, reading.fields))
    net.load_state_dict(reading.state)
    return net.eval().requires_grad_(False), reading


def one_hot(labels, classes):
    return F.one_hot(labels, classes).float()


def latents(n, nz):
    return torch.randn(n, nz, generator=torch.Generator().manual_seed(nz))


def images(n, resolution, nc=3):
    return torch.rand(n, nc, resolution, resolution, generator=torch.Generator().manual_seed(n)) * 2 - 1


# --------------------------------------------------------------------------------------------------- pytorch_GAN_zoo, re-implemented


def zoo_state(part, widths, inputs, rows=1, nc=3, stddev=True, seed=0):
    """A random state dict under the zoo's names; widths from 4x4 upwards."""
    rng, state = torch.Generator().manual_seed(seed), {}

    def layer(name, *shape):
        state[f"{name}.module.weight"], state[f"{name}.module.bias"] = torch.randn(shape, generator=rng), torch.randn(shape[0], generator=rng)

    first = widths[0]
    for i, (a, b) in enumerate(pairwise(widths)):
        down, up = (b, b, a, b), (b, a, b, b)
        for j, (n_out, n_in) in enumerate(np.array(up if part == "generator" else down).reshape(2, 2).tolist()):
            layer(f"scaleLayers.{i}.{j}", n_out, n_in, 3, 3)
    for i, width in enumerate(widths):
        layer(f"toRGBLayers.{i}", nc, width, 1, 1) if part == "generator" else layer(f"fromRGBLayers.{i}", width, nc, 1, 1)
    if part == "generator":
        layer("formatLayer", 16 * first, inputs)
        layer("groupScale0.0", first, first, 3, 3)
    else:
        layer("decisionLayer", rows, first)
        layer("groupScaleZero.0", first, first + stddev, 3, 3)
        layer("groupScaleZero.1", first, 16 * first)
    return state


def zoo_layer(state, name, x, equalized=True):
    weight, bias = state[f"{name}.module.weight"], state[f"{name}.module.bias"]
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2) if weight.ndim == 4 else F.linear(x, weight, bias)
    return y * math.sqrt(2 / weight[0].numel()) if equalized else y


def unit(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def zoo_generator(state, z, leak, output, equalized):
    scales = sum(k.startswith("toRGBLayers") for k in state) // 2
    x = F.leaky_relu(zoo_layer(state, "formatLayer", unit(z), equalized), leak)
    x = unit(x.view(len(z), -1, 4, 4))
    x = unit(F.leaky_relu(zoo_layer(state, "groupScale0.0", x, equalized), leak))
    for i in range(scales - 1):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for j in range(2):
            x = unit(F.leaky_relu(zoo_layer(state, f"scaleLayers.{i}.{j}", x, equalized), leak))
    x = zoo_layer(state, f"toRGBLayers.{scales - 1}", x, equalized)
    return x.tanh() if output == "tanh" else x


def zoo_deviation(x):
    size = 4 if len(x) % 4 == 0 else len(x)
    if len(x) == 1:
        return torch.zeros(1, 1, 4, 4)
    maps = []
    for group in x.split(size):
        mean = group.mean(0)
        variance = (group - mean).square().sum(0) / (size - 1)
        maps += [(variance + 1e-8).sqrt().mean().expand(1, 4, 4)] * size
    return torch.stack(maps)


def zoo_discriminator(state, x, leak, equalized, stddev):
    scales = sum(k.startswith("fromRGBLayers") for k in state) // 2

    def act(name, x):
        return F.leaky_relu(zoo_layer(state, name, x, equalized), leak)

    x = act(f"fromRGBLayers.{scales - 1}", x)
    for i in reversed(range(scales - 1)):
        x = F.avg_pool2d(act(f"scaleLayers.{i}.1", act(f"scaleLayers.{i}.0", x)), 2)
    x = act("groupScaleZero.0", torch.cat([x, zoo_deviation(x)], 1) if stddev else x)
    return zoo_layer(state, "decisionLayer", act("groupScaleZero.1", x.flatten(1)), equalized)


ZOO = [  # widths, nz, classes, leak, lossCriterion, equalized, stddev
    ((6,), 4, 0, 0.2, "WGANGP", True, True),
    ((8, 6, 5), 7, 3, 0.1, "DCGAN", True, True),
    ((6, 5, 4, 3), 5, 0, 0.2, "Logistic", False, False),
    ((8, 8, 4), 6, 2, 0.3, "MSE", False, True),
]


@pytest.mark.parametrize(("widths", "nz", "classes", "leak", "loss", "equalized", "stddev"), ZOO)
def test_networks_of_the_zoo_do_what_its_arithmetic_does(widths, nz, classes, leak, loss, equalized, stddev):
    config = {"leakyReluLeak": leak, "lossCriterion": loss, "equalizedlR": equalized, "categoryVectorDim": classes}
    state = zoo_state("generator", widths, nz + classes)
    net, reading = rebuilt(state, config=config)
    output = "tanh" if loss in ("DCGAN", "MSE") else "linear"
    assert (net.arch.output, net.arch.nz, net.arch.classes, net.arch.g_widths) == (output, nz, classes, widths)
    assert not reading.assumptions
    z, labels = latents(5, nz), torch.arange(5) % max(classes, 1)
    given = torch.cat([z, one_hot(labels, classes)], 1) if classes else z
    torch.testing.assert_close(net(z, labels if classes else None), zoo_generator(state, given, leak, output, equalized), **CLOSE)

    state = zoo_state("discriminator", widths, 0, rows=1 + classes, stddev=stddev)
    net, _ = rebuilt(state, config=config)
    for n in (1, 4, 6, 8):
        x = images(n, 4 << (len(widths) - 1))
        torch.testing.assert_close(net(x), zoo_discriminator(state, x, leak, equalized, stddev)[:, 0], **CLOSE)


def test_the_zoo_s_runtime_factor_is_taken_out_of_biases_too():
    state = zoo_state("generator", (6, 4), 5)
    found = FAMILY.read(state, {}).state
    torch.testing.assert_close(found["latent.bias"], state["formatLayer.module.bias"] * math.sqrt(2 / 5))
    torch.testing.assert_close(found["to_rgb.weight"], state["toRGBLayers.1.module.weight"] * math.sqrt(2))


def test_zoo_keys_without_the_inner_module_are_the_same_network():
    for part in ("generator", "discriminator"):
        state = zoo_state(part, (6, 4), 5)
        old = {k.replace(".module.", "."): t for k, t in state.items()}
        ours, theirs = FAMILY.read(state, {}), FAMILY.read(old, {})
        assert ours.fields == theirs.fields
        assert all(ours.state[k].equal(theirs.state[k]) for k in ours.state)


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_zoo_network_saved_while_it_grew_is_refused(part):
    state = zoo_state(part, (6, 4), 5)
    with pytest.raises(CheckpointError, match=r"alpha is 0\.25"):
        FAMILY.read(state, {"config": {"alpha": 0.25}})
    assert FAMILY.read(state, {"config": {"alpha": 0}}).fields["resolution"] == 8


def test_image_layers_of_lower_resolutions_do_not_matter():
    state = zoo_state("generator", (6, 5, 4), 5)
    ours = FAMILY.read({k: t for k, t in state.items() if not k.startswith(("toRGBLayers.0", "toRGBLayers.1"))}, {})
    assert all(t.equal(FAMILY.read(state, {}).state[k]) for k, t in ours.state.items())
    with pytest.raises(Mismatch, match=r"unexpected key toRGBLayers\.7\.module\.weight"):
        FAMILY.read(state | {"toRGBLayers.7.module.weight": torch.ones(3, 4, 1, 1)}, {})


def test_the_decision_layer_tells_the_classes_where_nothing_else_does(tmp_path):
    torch.save({"netG": zoo_state("generator", (6, 4), 8), "netD": zoo_state("discriminator", (6, 4), 0, rows=4)}, tmp_path / "pgan.pth")
    gan = load_gan(str(tmp_path / "pgan.pth"))
    assert (gan.arch.classes, gan.arch.nz, gan.arch.d_outputs) == (3, 5, 4)
    labels = torch.tensor([0, 2])
    assert gan.discriminator(gan.generator(latents(2, 5), labels), labels).shape == (2,)


def test_classes_may_be_given_but_not_more_than_there_are_inputs():
    state = zoo_state("generator", (6, 4), 8)
    assert FAMILY.build_arch(None, FAMILY.read(state, {"classes": "3"}).fields).nz == 5
    with pytest.raises(UsageError, match="only 8 inputs"):
        FAMILY.read(state, {"classes": "8"})


def test_labels_of_several_attributes_are_refused():
    config = {"categoryVectorDim": 4, "attribKeysOrder": {"hair": {"order": 0}, "age": {"order": 1}}}
    with pytest.raises(CheckpointError, match="2 attributes"):
        FAMILY.read(zoo_state("generator", (6, 4), 8), {"config": config})


def test_the_average_of_a_zoo_file_is_preferred_and_the_raw_one_can_be_had(tmp_path):
    raw, average = (zoo_state("generator", (6, 4), 5, seed=s) for s in (1, 2))
    saved = {"config": {"equalizedlR": True, "lossCriterion": "DCGAN"}, "netG": raw, "avgG": average}
    torch.save(saved, tmp_path / "celebaHQ_s1_i10.pth")
    z = latents(2, 5)
    for ema, state in ((True, average), (False, raw)):
        net = gancompress.load(tmp_path / "celebaHQ_s1_i10.pth", ema=ema)
        torch.testing.assert_close(net(z), zoo_generator(state, z, 0.2, "tanh", True), **CLOSE)
    assert gancompress.load(tmp_path / "celebaHQ_s1_i10.pth", output="linear").arch.output == "linear"


def test_without_settings_the_reader_says_what_it_took():
    reading = FAMILY.read(zoo_state("generator", (6, 4), 5), {})
    assert "equalized" in reading.assumptions[0]
    assert reading.fields["output"] == "linear"


@pytest.mark.parametrize("value", [None, "yes", [1], {"a": 1}, float("nan"), float("inf"), -3, 10**30])
def test_settings_of_a_wrong_kind_are_as_good_as_none(value):
    keys = ("alpha", "leakyReluLeak", "lossCriterion", "categoryVectorDim", "attribKeysOrder", "mbstd_group_size", "label_size", "pixelnorm_epsilon")
    for state in (zoo_state("generator", (6, 4), 5), zoo_state("discriminator", (6, 4), 5), tf_state("generator", (6, 4), 5)):
        odd = FAMILY.read(state, {"config": dict.fromkeys(keys, value)})
        assert FAMILY.build_arch(None, odd.fields) == FAMILY.build_arch(None, FAMILY.read(state, {}).fields)


# ----------------------------------------------------------------------------------------- the paper's TensorFlow code, re-implemented
# There is no file of it here. What TensorFlow computes is written out over numpy arrays: SAME padding, a transposed convolution as
# the transpose of the convolution of stride 2, and the four shifted copies of a 3x3 kernel that make its fused 4x4 kernel.


def tf_state(part, widths, inputs, rows=1, nc=3, stddev=True, fused=False, seed=0):
    """Random variables under TensorFlow's names and layouts; widths from 4x4 upwards, D's Linear one narrower."""
    rng, state = np.random.default_rng(seed), {"lod": np.float32(0)}

    def layer(name, *shape, bias):
        state[f"{name}/weight"], state[f"{name}/bias"] = rng.standard_normal(shape, np.float32), rng.standard_normal(bias, np.float32)

    first, levels = widths[0], len(widths)
    if part == "generator":
        layer("4x4/Dense", inputs, 16 * first, bias=first)
        layer("4x4/Conv", 3, 3, first, first, bias=first)
    else:
        layer("4x4/Conv", 3, 3, first + stddev, first, bias=first)
        layer("4x4/Dense0", 16 * first, first - 1, bias=first - 1)
        layer("4x4/Dense1", first - 1, rows, bias=rows)
    for i, (low, high) in enumerate(pairwise(widths)):
        scope = f"{8 << i}x{8 << i}"
        if part == "generator":
            layer(f"{scope}/Conv0_up", 3, 3, high, low, bias=high) if fused else layer(f"{scope}/Conv0", 3, 3, low, high, bias=high)
            layer(f"{scope}/Conv1", 3, 3, high, high, bias=high)
        else:
            layer(f"{scope}/Conv0", 3, 3, high, high, bias=high)
            layer(f"{scope}/Conv1_down" if fused else f"{scope}/Conv1", 3, 3, high, low, bias=low)
    for i, width in enumerate(widths):
        name = f"{'ToRGB' if part == 'generator' else 'FromRGB'}_lod{levels - 1 - i}"
        layer(name, 1, 1, *((width, nc) if part == "generator" else (nc, width)), bias=nc if part == "generator" else width)
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}


HE = math.sqrt(2)


class Tf:
    """Layers of networks.py over float64 arrays NCHW."""

    def __init__(self, state, wscale=True):
        self.state, self.wscale = {k: v.numpy().astype(float) for k, v in state.items()}, wscale

    def weight(self, name, gain=HE, fan_in=None):
        w = self.state[f"{name}/weight"]
        return w * gain / math.sqrt(fan_in or math.prod(w.shape[:-1])) if self.wscale else w

    def bias(self, name, x):
        return x + self.state[f"{name}/bias"].reshape(1, -1, *[1] * (x.ndim - 2))

    def conv(self, name, x, gain=HE):
        w = self.weight(name, gain)
        pad, side = w.shape[0] // 2, x.shape[2]
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        return sum(np.einsum("nchw,co->nohw", padded[:, :, a : a + side, b : b + side], w[a, b]) for a in range(len(w)) for b in range(len(w)))

    @staticmethod
    def shifted_sum(w):
        w = np.pad(w, ((1, 1), (1, 1), (0, 0), (0, 0)))
        return w[1:, 1:] + w[:-1, 1:] + w[1:, :-1] + w[:-1, :-1]

    def up_conv(self, name, x):
        raw = self.state[f"{name}/weight"]
        w = self.shifted_sum(self.weight(name, fan_in=9 * raw.shape[3]))  # (4, 4, out, in)
        n, _, side, _ = x.shape
        out = np.zeros((n, w.shape[2], 2 * side + 2, 2 * side + 2))
        for a in range(4):
            for b in range(4):  # each input value is spread over the outputs its kernel reaches
                out[:, :, a : a + 2 * side : 2, b : b + 2 * side : 2] += np.einsum("nchw,oc->nohw", x, w[a, b])
        return out[:, :, 1:-1, 1:-1]

    def conv_down(self, name, x):
        w = self.shifted_sum(self.weight(name)) / 4
        side, padded = x.shape[2], np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        return sum(np.einsum("nchw,co->nohw", padded[:, :, a : a + side : 2, b : b + side : 2], w[a, b]) for a in range(4) for b in range(4))

    def dense(self, name, x, gain=HE):
        return x.reshape(len(x), -1) @ self.weight(name, gain)


def np_unit(x):
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)


def pool(x):
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))


def tf_generator(state, latents, wscale=True, use_pixelnorm=True, normalize_latents=True, use_leakyrelu=True):
    net, leak = Tf(state, wscale), 0.2 if use_leakyrelu else 0.0

    def done(name, x):
        x = net.bias(name, x)
        x = np.maximum(x * leak, x)
        return np_unit(x) if use_pixelnorm else x

    x = latents.numpy().astype(float)
    x = net.dense("4x4/Dense", np_unit(x) if normalize_latents else x, math.sqrt(2) / 4)
    x = done("4x4/Dense", x.reshape(len(x), -1, 4, 4))
    x = done("4x4/Conv", net.conv("4x4/Conv", x))
    side = 8
    while f"{side}x{side}/Conv1/weight" in state:
        scope = f"{side}x{side}"
        if f"{scope}/Conv0_up/weight" in state:
            x = done(f"{scope}/Conv0_up", net.up_conv(f"{scope}/Conv0_up", x))
        else:
            x = done(f"{scope}/Conv0", net.conv(f"{scope}/Conv0", x.repeat(2, 2).repeat(2, 3)))
        x = done(f"{scope}/Conv1", net.conv(f"{scope}/Conv1", x))
        side *= 2
    return torch.from_numpy(net.bias("ToRGB_lod0", net.conv("ToRGB_lod0", x, 1.0))).float()


def tf_discriminator(state, x, group=4, wscale=True):
    net, side = Tf(state, wscale), x.shape[2]

    def done(name, x):
        x = net.bias(name, x)
        return np.maximum(x * 0.2, x)

    x = done("FromRGB_lod0", net.conv("FromRGB_lod0", x.numpy().astype(float)))
    while side > 4:
        scope = f"{side}x{side}"
        x = done(f"{scope}/Conv0", net.conv(f"{scope}/Conv0", x))
        if f"{scope}/Conv1_down/weight" in state:
            x = done(f"{scope}/Conv1_down", net.conv_down(f"{scope}/Conv1_down", x))
        else:
            x = pool(done(f"{scope}/Conv1", net.conv(f"{scope}/Conv1", x)))
        side //= 2
    if group > 1:
        size = min(group, len(x))
        y = x.reshape(size, -1, *x.shape[1:])
        y = np.sqrt(((y - y.mean(0)) ** 2).mean(0) + 1e-8).mean((1, 2, 3), keepdims=True)
        x = np.concatenate([x, np.tile(y, (size, 1, 4, 4))], 1)
    x = done("4x4/Conv", net.conv("4x4/Conv", x))
    x = done("4x4/Dense0", net.dense("4x4/Dense0", x))
    return torch.from_numpy(net.bias("4x4/Dense1", net.dense("4x4/Dense1", x, 1.0))[:, 0]).float()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("widths", "settings"),
    [
        ((6,), {}),
        ((8, 6, 4), {}),
        ((6, 5), {"use_pixelnorm": False}),
        ((6, 5), {"normalize_latents": False}),
        ((6, 5), {"use_leakyrelu": False}),
        ((6, 5), {"use_wscale": False}),
    ],
)
def test_a_tensorflow_generator_does_what_its_arithmetic_does(widths, settings, fused):
    state = tf_state("generator", widths, 5, fused=fused)
    net, _ = rebuilt(state, config={"fmap_base": 8, **settings})
    z = latents(3, 5)
    expected = tf_generator(state, z, settings.get("use_wscale", True), **{k: v for k, v in settings.items() if k != "use_wscale"})
    torch.testing.assert_close(net(z), expected, **CLOSE)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("widths", "group", "wscale"), [((6,), 4, True), ((8, 6, 4), 4, True), ((6, 5), 2, True), ((6, 5), 16, True), ((6, 5), 0, True), ((6, 5), 4, False)]
)
def test_a_tensorflow_discriminator_does_what_its_arithmetic_does(widths, group, wscale, fused):
    state = tf_state("discriminator", widths, 0, stddev=group > 1, fused=fused)
    net, _ = rebuilt(state, config={"use_wscale": wscale, **({} if group == 4 else {"mbstd_group_size": group})})
    for n in (1, 4, 8):
        x = images(n, 4 << (len(widths) - 1))
        torch.testing.assert_close(net(x), tf_discriminator(state, x, group, wscale), **CLOSE)


def test_a_tensorflow_generator_s_label_stands_behind_its_latent():
    state = tf_state("generator", (6, 4), 8)
    net, _ = rebuilt(state, config={"label_size": 3})
    assert (net.arch.nz, net.arch.classes) == (5, 3)
    z, labels = latents(4, 5), torch.tensor([0, 1, 2, 1])
    torch.testing.assert_close(net(z, labels), tf_generator(state, torch.cat([z, one_hot(labels, 3)], 1)), **CLOSE)


def test_only_the_fused_upscaling_kernel_has_outputs_first_and_is_mirrored():
    state = tf_state("generator", (6, 4), 5)
    fused = {k: t for k, t in state.items() if "Conv0" not in k}
    fused["8x8/Conv0_up/weight"] = state["8x8/Conv0/weight"].flip(0, 1).transpose(2, 3).contiguous()
    fused["8x8/Conv0_up/bias"] = state["8x8/Conv0/bias"]
    assert all(t.equal(FAMILY.read(fused, {}).state[k]) for k, t in FAMILY.read(state, {}).state.items())


def test_lod0_is_the_highest_resolution():
    reading = FAMILY.read(tf_state("generator", (8, 6, 4), 5), {})
    assert reading.state["to_rgb.weight"].shape == (3, 4, 1, 1)
    assert reading.fields["resolution"] == 16


class Network:
    """Pickles as tfutil.Network does."""

    def __init__(self, state, function, **kwargs):
        self.saved = {"version": 2, "name": "x", "static_kwargs": kwargs, "build_module_src": "raise SystemExit", "build_func_name": function}
        # TensorFlow hands a variable of no dimensions over as a numpy scalar
        self.saved["variables"] = [(k, v.numpy() if v.numel() > 1 or k != "lod" else np.float32(v.item())) for k, v in state.items()]

    def __getstate__(self):
        return self.saved


def tf_pickle(path, lod=0.0, d_function="D_paper"):
    states = [tf_state(part, (6, 4), 5, seed=i) for i, part in enumerate(("generator", "discriminator", "generator"))]
    for state in states:
        state["lod"] = torch.tensor(lod)
    functions = ("G_paper", d_function, "G_paper")
    path.write_bytes(pickle.dumps(tuple(Network(s, f, mbstd_group_size=2) for s, f in zip(states, functions, strict=True)), protocol=4))
    return states


def test_a_tensorflow_pickle_gives_its_average_its_raw_generator_and_its_discriminator(tmp_path):
    raw, critic, average = tf_pickle(tmp_path / "network-final.pkl")
    z, x = latents(2, 5), images(4, 8)
    torch.testing.assert_close(gancompress.load(tmp_path / "network-final.pkl")(z), tf_generator(average, z), **CLOSE)
    torch.testing.assert_close(gancompress.load(tmp_path / "network-final.pkl", ema=False)(z), tf_generator(raw, z), **CLOSE)
    net = gancompress.load(tmp_path / "network-final.pkl", part="discriminator")
    torch.testing.assert_close(net(x), tf_discriminator(critic, x, group=2), **CLOSE)


def test_a_tensorflow_pickle_saved_while_it_grew_is_refused(tmp_path):
    tf_pickle(tmp_path / "network-snapshot-004000.pkl", lod=1.5)
    with pytest.raises(CheckpointError, match=r"lod is \[1\.5\]"):
        find(str(tmp_path / "network-snapshot-004000.pkl"))


def test_a_discriminator_of_stylegan_is_not_taken_for_one_though_its_variables_have_the_same_names(tmp_path):
    tf_pickle(tmp_path / "network.pkl", d_function="D_basic")
    found = find(str(tmp_path / "network.pkl"))
    assert found.network("discriminator") is None
    assert found.network("generator") is not None


# ----------------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("part", ["generator", "discriminator"])
@pytest.mark.parametrize("make", [zoo_state, tf_state])
def test_each_missing_misshapen_or_unexpected_key_is_named(part, make):
    state = make(part, (6, 5, 4), 5)
    used = [k for k in state if k != "lod" and not any(f"RGBLayers.{i}." in k or f"RGB_lod{i + 1}" in k for i in (0, 1))]
    for key in used:
        with pytest.raises(Mismatch) as caught:
            FAMILY.read({k: t for k, t in state.items() if k != key}, {})
        assert str(caught.value) == f"{key.replace('.module', '')} is missing"
        assert caught.value.score > 0.7
        for wrong in (state[key][..., None], state[key][:0], torch.ones(1, 2, 3, 4, 5)):
            with pytest.raises(Mismatch) as caught:
                FAMILY.read(state | {key: wrong}, {})
            assert key in str(caught.value)
    for extra in ("noise.weight", "16x16/Noise/weight"):
        with pytest.raises(Mismatch, match=f"unexpected key {extra}"):
            FAMILY.read(state | {extra: torch.ones(2, 2)}, {})


def test_a_duplicate_with_and_without_the_inner_module_is_unexpected():
    state = zoo_state("generator", (6, 4), 5)
    with pytest.raises(Mismatch, match="unexpected key formatLayer"):
        FAMILY.read(state | {"formatLayer.weight": state["formatLayer.module.weight"]}, {})


def test_an_endless_tower_of_resolutions_is_refused_at_once():
    state = {f"scaleLayers.{i}.{j}.{leaf}": torch.ones(1) for i in range(3000) for j in range(2) for leaf in ("weight", "bias")}
    with pytest.raises(Mismatch, match="3000 resolutions"):
        FAMILY.read(state, {})


def test_files_of_others_score_near_nothing():
    others = {"main.0.weight": torch.ones(4, 4, 4, 4), "formatLayer.weight": torch.ones(4, 4, 4, 4), "main.batchNorm0.weight": torch.ones(4)}
    with pytest.raises(Mismatch) as caught:
        FAMILY.read(others, {})
    assert caught.value.score < 0.2


# ------------------------------------------------------------------------------------------------------------ widths and counts


def test_the_paper_s_networks_for_1024_have_23_1_million_parameters_each():
    arch = FAMILY.build_arch(None, {"resolution": 1024})
    assert arch.g_widths == (512, 512, 512, 512, 256, 128, 64, 32, 16)
    with torch.device("meta"):
        critic = pggan.Discriminator(arch)
        assert sum(p.numel() for p in pggan.Generator(arch).to_rgb.parameters()) == 51  # Table 2
    assert generator_cost(FAMILY, arch).parameters == 23_071_507
    assert sum(p.numel() for p in critic.parameters()) == 23_077_137


def test_a_zoo_network_for_64_has_the_zoo_s_parameters_less_the_outgrown_image_layers():
    widths = (512, 512, 512, 512, 256)
    arch = FAMILY.build_arch(None, {"resolution": 64, "g_widths": widths, "d_widths": widths[::-1], "g_bias": "position"})
    with torch.device("meta"):
        critic = pggan.Discriminator(arch)
    assert generator_cost(FAMILY, arch).parameters + 4 * (3 * 512 + 3) == 22_498_063
    assert sum(p.numel() for p in critic.parameters()) + 4 * (3 * 512 + 512) == 22_498_049


def test_weights_start_at_unit_variance_and_biases_at_zero():
    net = pggan.Generator(FAMILY.build_arch(None, {"resolution": 8, "width": 32}))
    for name, tensor in net.state_dict().items():
        assert not tensor.any() if name.endswith("bias") else 0.7 < tensor.std() < 1.3


def test_the_statistic_of_the_paper_and_of_the_zoo_differ_in_groups_and_in_divisor():
    x = torch.zeros(8, 1, 4, 4)
    x[:4] = torch.tensor([0.0, 0.0, 2.0, 2.0])[:, None, None, None]
    zoo, paper = (pggan.minibatch_stddev(x, 4, kind)[:, 1, 0, 0] for kind in ("zoo", "paper"))
    torch.testing.assert_close(zoo, torch.tensor([math.sqrt(4 / 3)] * 4 + [1e-4] * 4))
    # images 0, 2, 4, 6 and 1, 3, 5, 7: one 2 among four
    torch.testing.assert_close(paper, torch.full((8,), math.sqrt(0.75)))


@pytest.mark.parametrize(
    "values",
    [{"resolution": 24}, {"resolution": 2}, {"g_widths": (4,)}, {"nz": 0}, {"d_outputs": 0}, {"width": 0}, {"width": "x"}, {"inputs": 3, "classes": 3}],
)
def test_impossible_architectures_are_refused(values):
    with pytest.raises(UsageError):
        FAMILY.build_arch(None, values)
