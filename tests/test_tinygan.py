"""TinyGAN: published counts, its start, and the authors' checkpoints against a re-implementation of their arithmetic."""

import pytest
import torch
from torch.nn import functional as F

from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families import tinygan
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan

FAMILY = tinygan.FAMILY
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.mark.parametrize(
    ("fields", "parameters", "giga_macs"),
    [
        ({}, 3_070_659, 0.429),
        ({"convolution": "standard"}, 9_329_283, 2.281),
        ({"convolution": "standard", "ch": 16}, 2_852_419, 0.574),
        ({"width": 16}, 1_293_923, 0.118),
    ],
)
def test_the_paper_s_generators_have_their_published_size(fields, parameters, giga_macs):
    cost = generator_cost(FAMILY, FAMILY.build_arch(None, fields))
    assert cost.parameters == parameters
    assert cost.macs_in == cost.macs_out
    assert round(cost.macs_in / 1e9, 3) == giga_macs


def test_the_discriminator_has_its_published_size():
    with torch.device("meta"):
        net = tinygan.Discriminator(tinygan.Arch())
    assert sum(p.numel() for p in net.parameters()) == 3_300_321


def test_half_the_width_of_the_standard_generator_is_the_paper_s_smaller_one():
    half = FAMILY.scale(FAMILY.build_arch(None, {"convolution": "standard"}), 0.5)
    assert (half.ch, half.d_ch, half.embedding, half.nz) == (16, 16, 128, 128)
    assert generator_cost(FAMILY, half).parameters == 2_852_419


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
@pytest.mark.parametrize("classes", [0, 5])
def test_every_resolution_starts_at_4x4_and_ends_at_ch_channels(resolution, classes):
    arch = FAMILY.build_arch(None, {"resolution": resolution, "classes": classes, "ch": 3, "d_ch": 2})
    assert arch.g_widths[0] == arch.g_widths[1] == 3 * resolution // 8
    assert arch.g_widths[-1] == 3
    with torch.device("meta"):
        generator, critic = tinygan.Generator(arch).eval(), tinygan.Discriminator(arch).eval()
        y = torch.zeros(2, dtype=torch.long) if classes else None
        x = generator(torch.zeros(2, 128), y)
        assert x.shape == (2, 3, resolution, resolution)
        found = critic.features(x, y)
    assert [tuple(f.shape[1:]) for f in found[:-1]] == [(2 << i, resolution >> (i + 1), resolution >> (i + 1)) for i in range(arch.depth)]
    assert found[-1].shape == (2,)


def test_conditional_batchnorm_starts_at_scale_one_and_shift_zero_for_every_class():
    net = tinygan.Generator(FAMILY.build_arch(None, {"resolution": 32, "classes": 7, "ch": 4}))
    norms = [m for m in net.modules() if isinstance(m, tinygan.Norm)]
    assert len(norms) == 2 * 3
    for norm in norms:
        scale, shift = norm.affine(net.embedding.weight).chunk(2, 1)
        assert scale.equal(torch.ones_like(scale))
        assert shift.equal(torch.zeros_like(shift))
    assert 0.8 < net.embedding.weight.norm(dim=1).mean() < 1.2


def test_convolutions_start_as_the_authors_draw_them():
    net = tinygan.Generator(FAMILY.build_arch(None, {"resolution": 32, "classes": 0, "ch": 16}))
    depthwise, pointwise = net.blocks[0].conv0
    bounds = ((depthwise, 2**0.5 * (6 / (9 + 9 * 64)) ** 0.5), (pointwise, (6 / 128) ** 0.5), (net.blocks[0].shortcut, (6 / 128) ** 0.5))
    for conv, bound in bounds:  # Xavier uniform
        assert 0.9 * bound < conv.weight.abs().max() <= bound


# ----------------------------------------------------------------------------------------------- the authors' code, re-implemented


def their_generator_state(depth=3, ch=3, nz=5, classes=4, embedding=6, seed=0):
    rng, state = torch.Generator().manual_seed(seed), {}

    def put(name, *shape):
        state[name] = torch.randn(shape, generator=rng) * 0.3

    def conv(name, n_out, n_in, k):
        put(f"{name}.weight", n_out, n_in, k, k)
        put(f"{name}.bias", n_out)

    def statistics(name, width):
        put(f"{name}.running_mean", width)
        state[f"{name}.running_var"] = torch.rand(width, generator=rng) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    width = ch << (depth - 1)
    put("embeding.weight", classes, embedding)
    put("fc.weight", 16 * width, nz)
    put("fc.bias", 16 * width)
    for i in range(depth):
        out = width if i == 0 else width // 2
        block = f"blocks.{i}"
        conv(f"{block}.dw_conv1", width, 1, 3)
        conv(f"{block}.dw_conv2", out, 1, 3)
        conv(f"{block}.pw_conv1", out, width, 1)
        conv(f"{block}.pw_conv2", out, out, 1)
        conv(f"{block}.c_sc", out, width, 1)
        for j, size in ((0, width), (1, out)):
            statistics(f"{block}.cbn{j}.bn", size)
            put(f"{block}.cbn{j}.embed.weight", 2 * size, embedding)
            put(f"{block}.cbn{j}.embed.bias", 2 * size)
        width = out
    put("bn.weight", width)
    put("bn.bias", width)
    statistics("bn", width)
    conv("colorize", 3, width, 3)
    return state


def their_generator(state, z, labels):
    def conv(name, x):
        w = state[f"{name}.weight"]
        return F.conv2d(x, w, state[f"{name}.bias"], padding=w.shape[-1] // 2, groups=x.shape[1] if "dw" in name else 1)

    def normalised(name, x):
        mean, var = (state[f"{name}.running_{s}"][:, None, None] for s in ("mean", "var"))
        return (x - mean) / (var + 1e-5).sqrt()

    def cbn(name, x):
        gamma, beta = F.linear(state["embeding.weight"][labels], state[f"{name}.embed.weight"], state[f"{name}.embed.bias"]).chunk(2, 1)
        return gamma[:, :, None, None] * normalised(f"{name}.bn", x) + beta[:, :, None, None]

    def up(x):
        return F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear")

    x = F.linear(z, state["fc.weight"], state["fc.bias"]).view(len(z), -1, 4, 4)
    i = 0
    while f"blocks.{i}.c_sc.weight" in state:
        b = f"blocks.{i}"
        h = up(cbn(f"{b}.cbn0", x).relu())
        h = cbn(f"{b}.cbn1", conv(f"{b}.pw_conv1", conv(f"{b}.dw_conv1", h))).relu()
        x = conv(f"{b}.pw_conv2", conv(f"{b}.dw_conv2", h)) + conv(f"{b}.c_sc", up(x))
        i += 1
    x = normalised("bn", x) * state["bn.weight"][:, None, None] + state["bn.bias"][:, None, None]
    return conv("colorize", x.relu()).tanh()


def their_discriminator_state(depth=3, ch=3, classes=4, seed=0):
    rng, state = torch.Generator().manual_seed(seed), {}

    def spectral(name, *shape, bias=True):
        state[f"{name}.weight_orig"] = torch.randn(shape, generator=rng)
        state[f"{name}.weight_u"] = F.normalize(torch.randn(shape[0], generator=rng), dim=0)
        state[f"{name}.weight_v"] = F.normalize(torch.randn(state[f"{name}.weight_orig"][0].numel(), generator=rng), dim=0)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=rng)

    spectral("embeding", classes, ch << (depth - 1), bias=False)
    for i in range(depth):
        spectral(f"layers.{2 * i}", ch << i, ch << (i - 1) if i else 3, 4, 4)
    spectral("fc_src", 1, ch << (depth - 1))
    return state


def their_discriminator(state, x, labels):
    def weight(name):
        w = state[f"{name}.weight_orig"]
        return w / (state[f"{name}.weight_u"] @ w.flatten(1) @ state[f"{name}.weight_v"])

    maps, i = [], 0
    while f"layers.{i}.bias" in state:
        x = F.leaky_relu(F.conv2d(x, weight(f"layers.{i}"), state[f"layers.{i}.bias"], 2, 1), 0.01)
        maps.append(x)
        i += 2
    h = x.sum((2, 3))
    return maps, F.linear(h, weight("fc_src"), state["fc_src.bias"])[:, 0] + (h * weight("embeding")[labels]).sum(1)


@pytest.mark.parametrize("kw", [{}, {"depth": 4, "ch": 2, "classes": 3}])
def test_a_checkpoint_of_the_authors_is_read_with_both_networks(tmp_path, kw):
    g, d = their_generator_state(**kw), their_discriminator_state(**kw)
    optimizer = {"state": {}, "param_groups": [{"lr": 2e-4}]}
    torch.save({"G": g, "D": d, "g_optimizer": optimizer, "d_optimizer": optimizer}, tmp_path / "model_30.tar")
    gan = load_gan(str(tmp_path / "model_30.tar"))
    assert gan.family is FAMILY
    assert gan.arch.convolution == "depthwise"
    z, labels = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(gan.generator(z, labels), their_generator(g, z, labels), **CLOSE)
    x = torch.rand(4, 3, gan.arch.resolution, gan.arch.resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1
    maps, logits = their_discriminator(d, x, labels)
    *found, last = gan.discriminator.features(x, labels)
    torch.testing.assert_close(last, logits, **CLOSE)
    assert len(found) == len(maps)
    for ours, theirs in zip(found, maps, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert any("optimizer" in o for o in find(str(tmp_path / "model_30.tar")).others)


@pytest.mark.parametrize("state", [their_generator_state(depth=1), their_discriminator_state(depth=2)], ids=["generator", "discriminator"])
def test_each_missing_misshapen_or_unexpected_key_is_named(state):
    for key in state:
        with pytest.raises(Mismatch) as caught:
            FAMILY.read({k: t for k, t in state.items() if k != key}, {})
        assert str(caught.value) == f"{key} is missing"
        assert caught.value.score > 0.7
        with pytest.raises(Mismatch) as caught:
            FAMILY.read(state | {key: state[key][..., None]}, {})
        assert key in str(caught.value)
    with pytest.raises(Mismatch, match=r"unexpected key blocks\.0\.extra"):
        FAMILY.read(their_generator_state() | {"blocks.0.extra": torch.ones(2)}, {})


def test_files_of_others_score_nothing():
    for state in ({"blocks.0.0.conv1.weight": torch.ones(2, 2, 3, 3)}, {"layers.0.weight": torch.ones(2, 2)}, {}):
        with pytest.raises(Mismatch) as caught:
            FAMILY.read(state, {})
        assert caught.value.score == 0


def test_a_tower_of_a_thousand_blocks_is_refused_at_once():
    state = their_generator_state() | {f"blocks.{i}.c_sc.weight": torch.ones(1) for i in range(1000)}
    with pytest.raises(Mismatch, match="1000 blocks"):
        FAMILY.read(state, {})


def test_the_discriminator_of_a_conditional_tinygan_needs_labels():
    arch = FAMILY.build_arch(None, {"resolution": 8, "classes": 3, "ch": 2, "d_ch": 2})
    critic, x = tinygan.Discriminator(arch).eval(), torch.rand(2, 3, 8, 8)
    assert arch.d_classes == 3
    one, two = critic(x[:1].expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert one != two
    with pytest.raises(ValueError, match="conditional"):
        critic(x)
    with pytest.raises(ValueError, match="labels have shape"):
        critic(x, torch.tensor([0]))


@pytest.mark.parametrize("values", [{"resolution": 48}, {"resolution": 4}, {"ch": 0}, {"classes": -1}, {"convolution": "dilated"}, {"width": "wide"}])
def test_impossible_architectures_are_refused(values):
    with pytest.raises(UsageError):
        FAMILY.build_arch(None, values)
