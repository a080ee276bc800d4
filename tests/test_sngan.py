"""SNGAN and its relatives: published sizes, mimicry's files, and what those files do not tell."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import gancompress
from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families.sngan import FAMILY, Arch, Discriminator, Generator, build_arch, read
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan

# ------------------------------------------------------------------------------- mimicry's networks once more, from its keys alone


class Upstream:
    """A state dict under mimicry's keys with random values, and the outputs its code computes from it."""

    def __init__(self, seed, bilinear=True, rectified=True, pooling="sum"):
        self.rng, self.state = torch.Generator().manual_seed(seed), {}
        self.bilinear, self.rectified, self.pooling = bilinear, rectified, pooling

    def add(self, name, *shape, spectral=False, bias=True):
        """A layer under ``name``: made on its first use; (weight as used, bias or None)."""
        if f"{name}.bias" not in self.state and f"{name}.weight" not in self.state and f"{name}.weight_orig" not in self.state:
            weight = torch.randn(shape, generator=self.rng) / math.sqrt(math.prod(shape[1:]))
            if spectral:
                u, v = (torch.randn(n, generator=self.rng) for n in (shape[0], math.prod(shape[1:])))
                v = F.normalize(F.normalize(u, dim=0) @ weight.flatten(1), dim=0)  # one step away from converged
                u = F.normalize(weight.flatten(1) @ v, dim=0)
                self.state |= {f"{name}.weight_orig": weight, f"{name}.weight_u": u, f"{name}.weight_v": v}
            else:
                self.state[f"{name}.weight"] = weight
            if bias:
                self.state[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=self.rng)
        weight = self.state.get(f"{name}.weight")
        if weight is None:
            weight, u, v = (self.state[f"{name}.weight{end}"] for end in ("_orig", "_u", "_v"))
            weight = weight / (u @ weight.flatten(1) @ v)
        return weight, self.state.get(f"{name}.bias")

    def conv(self, name, x, n_out, kernel, **kwargs):
        return F.conv2d(x, *self.add(name, n_out, x.shape[1], kernel, kernel, **kwargs), padding=kernel // 2)

    def norm(self, name, x, labels=None, classes=0):
        width, prefix = x.shape[1], f"{name}.bn" if classes else name
        if f"{prefix}.running_mean" not in self.state:
            self.state |= {f"{prefix}.running_{k}": 0.5 + torch.rand(width, generator=self.rng) for k in ("mean", "var")}
            self.state[f"{prefix}.num_batches_tracked"] = torch.tensor(7)
        x = F.batch_norm(x, self.state[f"{prefix}.running_mean"], self.state[f"{prefix}.running_var"])
        if classes:
            table, _ = self.add(f"{name}.embed", classes, 2 * width, bias=False)
            return x * table[labels, :width, None, None] + table[labels, width:, None, None]
        scale, shift = self.add(name, width)
        return x * scale[:, None, None] + shift[:, None, None]

    def attention(self, x, spectral):
        width = x.shape[1]
        self.state.setdefault("attn_block.gamma", torch.tensor(1.7))
        query, key, value = (self.conv(f"attn_block.{n}", x, width // d, 1, spectral=spectral, bias=False) for n, d in (("theta", 8), ("phi", 8), ("g", 2)))
        key, value = F.max_pool2d(key, 2).flatten(2), F.max_pool2d(value, 2).flatten(2)
        weights = torch.einsum("ncq,nck->nqk", query.flatten(2), key).softmax(2)
        seen = torch.einsum("nck,nqk->ncq", value, weights).reshape(len(x), -1, *x.shape[2:])
        return x + self.state["attn_block.gamma"] * self.conv("attn_block.o", seen, width, 1, spectral=spectral, bias=False)

    def up(self, x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if self.bilinear else F.interpolate(x, scale_factor=2)

    def generate(self, z, labels, widths, bottom, classes=0, spectral=False, attention=0, identity=()):
        weight, bias = self.add("l1", widths[0] * bottom**2, z.shape[1], spectral=spectral)
        x = F.linear(z, weight, bias).reshape(len(z), widths[0], bottom, bottom)
        for i, width in enumerate(widths[1:]):
            name = f"block{i + 2}"
            h = self.conv(f"{name}.c1", self.up(self.norm(f"{name}.b1", x, labels, classes).relu()), width, 3, spectral=spectral)
            h = self.conv(f"{name}.c2", self.norm(f"{name}.b2", h, labels, classes).relu(), width, 3, spectral=spectral)
            x = h + (self.up(x) if i in identity else self.conv(f"{name}.c_sc", self.up(x), width, 1, spectral=spectral))
            x = self.attention(x, spectral) if i + 1 == attention else x
        last = len(widths) + 1
        return torch.tanh(self.conv(f"c{last}", self.norm(f"b{last}", x).relu(), 3, 3, spectral=spectral))

    def judge(self, x, labels, widths, down, head, names, classes=0, spectral=True, attention=False):
        for i, (name, width) in enumerate(zip(names, widths, strict=True)):
            inner = x.shape[1] if i else width
            rectified = x.relu() if i else x
            h = self.conv(f"{name}.c1", rectified, inner, 3, spectral=spectral).relu()
            h = self.conv(f"{name}.c2", h, width, 3, spectral=spectral)
            short = rectified if self.rectified else x
            if i == 0:
                short, h = self.conv(f"{name}.c_sc", F.avg_pool2d(short, 2), width, 1, spectral=spectral), F.avg_pool2d(h, 2)
            elif i < down or width != x.shape[1]:
                short = self.conv(f"{name}.c_sc", short, width, 1, spectral=spectral)
                short, h = (F.avg_pool2d(t, 2) if i < down else t for t in (short, h))
            x = h + short
            x = self.attention(x, spectral) if attention and i == 1 else x
        x = x.relu().sum((2, 3)) if self.pooling == "sum" else x.relu().mean((2, 3))
        logits = F.linear(x, *self.add(head, 1, x.shape[1], spectral=spectral))[:, 0]
        if classes:
            logits = logits + (self.add("l_y", classes, x.shape[1], spectral=spectral, bias=False)[0][labels] * x).sum(1)
        return logits


def numbered(n):
    return [f"block{i}" for i in range(1, n + 1)]


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1])
GENERATORS = {
    "sngan32": {"widths": (8, 8, 8, 8), "bottom": 4},
    "sngan48": {"widths": (16, 8, 4, 2), "bottom": 6},
    "identity": {"widths": (8, 8, 4), "bottom": 4, "identity": (0,)},
    "cgan-pd": {"widths": (6, 4, 4, 2), "bottom": 4, "classes": 3},
    "sagan": {"widths": (16, 16, 8, 8), "bottom": 2, "classes": 3, "spectral": True, "attention": 2},
    "sagan, five blocks": {"widths": (8, 8, 8, 8, 8, 8), "bottom": 1, "classes": 3, "spectral": True, "attention": 3},
}
FOUR, FIVE, SIX = (4, 4, 4, 4), (2, 4, 6, 8, 10), (2, 4, 4, 8, 8, 8)
INFOMAX = ["local_feat_blocks.0", "local_feat_blocks.1", "local_feat_blocks.2", "local_feat_blocks.3", "global_feat_blocks.0"]
#: name -> (resolution, how upstream judges, reader options)
CRITICS = {
    "sngan32": (32, {"widths": FOUR, "down": 2, "head": "l5", "names": numbered(4)}, {}),
    "sngan48": (48, {"widths": FIVE, "down": 4, "head": "l5", "names": numbered(5)}, {}),
    "sngan64": (64, {"widths": FIVE, "down": 5, "head": "l6", "names": numbered(5)}, {}),
    "sngan128": (128, {"widths": SIX, "down": 5, "head": "l7", "names": numbered(6)}, {}),
    "cgan-pd32": (32, {"widths": FOUR, "down": 2, "head": "l5", "names": numbered(4), "classes": 3}, {}),
    "sagan32": (32, {"widths": (8,) * 4, "down": 2, "head": "l5", "names": numbered(4), "classes": 3, "attention": True}, {}),
    "infomax48": (48, {"widths": FIVE, "down": 4, "head": "linear", "names": INFOMAX}, {"resolution": "48"}),
    "infomax64": (64, {"widths": FIVE, "down": 5, "head": "linear", "names": INFOMAX}, {}),
    "dcgan64": (64, {"widths": FIVE, "down": 5, "head": "l6", "names": numbered(5), "spectral": False}, {}),
}


def upstream_generator(name, seed=0, **kwargs):
    config = GENERATORS[name]
    theirs = Upstream(seed, **kwargs)
    z, labels = normal(3, 5), LABELS if config.get("classes") else None
    return theirs, z, labels, theirs.generate(z, labels, **config)


def upstream_critic(name, seed=0, **kwargs):
    side, config, options = CRITICS[name]
    theirs = Upstream(seed, **kwargs)
    x, labels = normal(3, 3, side, side), LABELS if config.get("classes") else None
    return theirs, x, labels, theirs.judge(x, labels, **config), options


def built(reading, **settings):
    """The network of a reading with its weights."""
    arch = build_arch(None, {**reading.fields, **settings})
    net = Generator(arch) if reading.part == "generator" else Discriminator(arch)
    net.load_state_dict(reading.state)
    return net.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 4_276_739),
        ({"resolution": 48}, 4_878_083),
        ({"resolution": 64}, 12_220_675),
        ({"resolution": 128}, 32_150_787),
        ({"classes": 10}, 4_304_387),
        ({"g_identity": (0, 1, 2)}, 4_079_363),  # AKDG's teacher: "4.1M"
        ({"resolution": 128, "classes": 1000}, 41_996_931),  # TinyGAN's table: "42.0M"
    ],
)
def test_generators_have_the_published_sizes(fields, count):
    assert generator_cost(FAMILY, build_arch(None, fields)).parameters == count


def test_the_cost_of_the_convolutions_is_what_was_published():
    teacher = generator_cost(FAMILY, build_arch(None, {"g_identity": (0, 1, 2)}))
    assert teacher.macs_in == pytest.approx(2 * 793e6, rel=0.01)  # AKDG's table has half of it
    wide = build_arch(None, {"resolution": 128, "classes": 1000})
    widths = wide.g_widths
    shortcuts = sum(a * b * (4 << i) ** 2 for i, (a, b) in enumerate(pairwise(widths)))
    assert generator_cost(FAMILY, wide).macs_in + 3 * shortcuts == pytest.approx(9.10e9, rel=0.002)  # TinyGAN's table, shortcuts behind the upsampling


@pytest.mark.parametrize("resolution", [32, 48, 64, 128])
def test_discriminators_have_mimicry_s_sizes(resolution):
    with torch.device("meta"):
        net = Discriminator(build_arch(None, {"resolution": resolution}))
    assert sum(p.numel() for p in net.parameters()) == {32: 1_053_825, 48: 10_141_441, 64: 10_141_441, 128: 29_017_857}[resolution]


@pytest.mark.assets
def test_every_layout_in_mimicry_s_key_lists_is_read_as_the_architecture_of_its_name(assets):
    dumps = re.split(r"^## ", (assets / "keys" / "mimicry.txt").read_text(), flags=re.M)[1:]
    assert len(dumps) == 11
    for dump in dumps:
        title, *lines = dump.strip().splitlines()
        entries = [re.fullmatch(r"(\S+)\s+\(([\d, ]*)\) \w+", line) for line in lines]
        state = {m[1]: torch.empty([int(n) for n in m[2].split(",") if n.strip()], device="meta") for m in entries}
        resolution = int((re.search(r"(?:Generator|Discriminator)(\d+)", title) or [0, 32])[1])
        kind = title.split("Generator")[0].split("Discriminator")[0]
        classes = {"CGANPD": 10, "SAGAN": 10}.get(kind, 0)
        usual = build_arch(None, {"resolution": resolution, "classes": classes})
        found = build_arch(None, read(state, {}).fields)
        part = "g_" if "Generator" in title else "d_"
        for field in ("resolution", "nz", "nc", "classes", f"{part}widths", f"{part}identity", "d_down", "d_classes"):
            assert getattr(found, field) == getattr(usual, field), (title, field)
        assert (found.g_attention, found.g_spectral) == ((2, True) if kind == "SAGAN" else (0, False))
        assert found.d_spectral == (title.split()[0] != "DCGANDiscriminatorCIFAR")


# ---------------------------------------------------------------------------------------------------------------- mimicry's files


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_s_images_are_those_of_its_code(name):
    theirs, z, labels, images = upstream_generator(name)
    net = built(read(theirs.state, {}))
    torch.testing.assert_close(net(z, labels), images, rtol=1e-4, atol=1e-5)
    assert images.std() > 0.02


@pytest.mark.parametrize("name", CRITICS)
def test_a_discriminator_s_logits_are_those_of_its_code(name):
    theirs, x, labels, logits, options = upstream_critic(name)
    reading = read(theirs.state, options)
    assert reading.fields["resolution"] == CRITICS[name][0]
    torch.testing.assert_close(built(reading)(x, labels), logits, rtol=1e-4, atol=1e-5)
    assert logits.std() > 1e-3


def test_upsampling_is_bilinear_with_corners_not_aligned():
    theirs, z, _, _ = upstream_generator("sngan32")
    nearest, _, _, images = upstream_generator("sngan32", bilinear=False)
    assert all(t.equal(nearest.state[k]) for k, t in theirs.state.items())
    assert (built(read(theirs.state, {}))(z) - images).abs().max() > 0.1


def test_the_shortcut_of_every_block_but_the_first_sees_a_rectified_input():
    theirs, x, _, _, _ = upstream_critic("sngan32")
    logits = upstream_critic("sngan32", rectified=False)[3]
    assert (built(read(theirs.state, {}))(x) - logits).abs().max() > 0.1


def test_pooling_is_a_sum_unless_the_mean_is_asked_for():
    theirs, x, _, _, _ = upstream_critic("dcgan64")
    reading = read(theirs.state, {})
    assert any("d_pooling=mean" in a for a in reading.assumptions)
    mean = upstream_critic("dcgan64", pooling="mean")[3]
    torch.testing.assert_close(built(reading, d_pooling="mean")(x), mean, rtol=1e-4, atol=1e-5)
    assert (built(reading)(x) - mean).abs().max() > 1e-3


def test_the_head_s_number_tells_48_from_64_pixels():
    theirs = upstream_critic("sngan64")[0]
    assert read(theirs.state, {}).fields["d_down"] == 5
    renamed = {k.replace("l6.", "l5."): t for k, t in theirs.state.items()}
    assert read(renamed, {}).fields == {**read(theirs.state, {}).fields, "resolution": 48, "d_down": 4}


def test_where_nothing_tells_48_from_64_pixels_the_reader_says_so_and_takes_what_it_is_told():
    infomax, wgan = upstream_critic("infomax64")[0].state, upstream_critic("dcgan64")[0].state
    for state in (infomax, wgan):
        assert any("resolution=48" in a for a in read(state, {}).assumptions)
        assert read(state, {"resolution": "48"}).fields["d_down"] == 4
        assert not any("resolution=48" in a for a in read(state, {"resolution": "48"}).assumptions)
    with pytest.raises(UsageError, match="32"):
        read(upstream_critic("sngan32")[0].state, {"resolution": "64"})
    with pytest.raises(UsageError, match="resolution=big"):
        read(infomax, {"resolution": "big"})


@pytest.mark.parametrize(
    ("critic", "extra"), [("sngan32", {"l_y": (4, 4)}), ("infomax64", {f"{a}_nrkhs_{b}": (9, 8) for a in ("local", "global") for b in ("a", "b", "sc")})]
)
def test_heads_that_ssgan_and_infomax_train_beside_the_logit_are_left_aside_and_said(critic, extra):
    theirs, x, _, logits, _ = upstream_critic(critic)
    for name, shape in extra.items():
        theirs.add(name, *shape, spectral=True)
    reading = read(theirs.state, {})
    assert reading.fields["d_classes"] == 0
    assert any("left aside" in a and all(name in a for name in extra) for a in reading.assumptions)
    torch.testing.assert_close(built(reading)(x), logits, rtol=1e-4, atol=1e-5)


def test_the_projection_s_spectral_norm_has_one_value_for_each_class():
    reading = read(upstream_critic("cgan-pd32")[0].state, {})
    assert reading.fields["classes"] == reading.fields["d_classes"] == 3
    net = built(reading)
    assert net.embed.parametrizations.weight[0].u.shape == (3,)
    assert net.embed.parametrizations.weight[0].v.shape == (4,)


def test_the_first_half_of_a_class_s_embedding_scales_and_the_second_shifts():
    net = Generator(build_arch(None, {"resolution": 8, "nz": 4, "classes": 2, "g_widths": (4, 4)})).eval()
    norm = net.blocks[0].norm1
    x = normal(2, 4, 2, 2)
    with torch.no_grad():
        norm.embed.weight.copy_(torch.tensor([[3.0] * 4 + [5.0] * 4, [1.0] * 4 + [0.0] * 4]))
        found = norm(x, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.stack([3 * x[0] + 5, x[1]]), rtol=1e-4, atol=1e-4)


def test_pixels_between_0_and_1_are_made_and_judged_between_minus_1_and_1():
    theirs, z, _, images = upstream_generator("sngan32")
    found = built(read(theirs.state, {}), unit_pixels=True)(z)
    torch.testing.assert_close((found + 1) / 2, images.atanh().sigmoid(), rtol=1e-4, atol=1e-4)
    critic, x, _, _, _ = upstream_critic("sngan32")
    reading = read(critic.state, {})
    torch.testing.assert_close(built(reading, unit_pixels=True)(2 * x - 1), built(reading)(x), rtol=1e-4, atol=1e-4)


def test_a_directory_of_mimicry_s_two_files_is_one_gan_with_labels_and_attention(tmp_path):
    generator, z, labels, images = upstream_generator("sagan")
    config = GENERATORS["sagan"]
    critic = Upstream(1)
    side = config["bottom"] << 3
    assert side == 16  # not 32: the two do not fit, as the message says
    critic.judge(normal(3, 3, 32, 32), labels, **CRITICS["sagan32"][1])
    for part, theirs in (("G", generator), ("D", critic)):
        torch.save({"model_state_dict": theirs.state, "optimizer_state_dict": None, "global_step": 5}, tmp_path / f"net{part}_5_steps.pth")
    with pytest.raises(UsageError, match="resolution 16"):
        find(str(tmp_path))
    torch.testing.assert_close(gancompress.load(str(tmp_path / "netG_5_steps.pth"))(z, labels), images, rtol=1e-4, atol=1e-5)
    generator = Upstream(0)
    generator.generate(z, labels, **{**config, "bottom": 4})
    torch.save({"model_state_dict": generator.state, "optimizer_state_dict": None, "global_step": 5}, tmp_path / "netG_5_steps.pth")
    gan = load_gan(str(tmp_path))
    assert (gan.arch.resolution, gan.arch.classes, gan.arch.d_classes, gan.arch.g_attention, gan.arch.d_attention) == (32, 3, 3, 2, 2)


def test_batch_counts_that_old_files_lack_do_not_matter():
    theirs, z, _, images = upstream_generator("sngan32")
    state = {k: t for k, t in theirs.state.items() if not k.endswith("num_batches_tracked")}
    torch.testing.assert_close(built(read(state, {}))(z), images, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("sngan32", "l1.weight"),
        ("sngan32", "l1.bias"),
        ("sngan32", "block3.c1.weight"),
        ("sngan32", "block2.b1.running_var"),
        ("sngan32", "c5.bias"),
        ("cgan-pd", "block4.b2.embed.weight"),
        ("sagan", "attn_block.gamma"),
        ("sagan", "block2.c2.weight_u"),
        ("identity", "block3.c_sc.weight"),
    ],
)
def test_a_key_that_is_missing_from_a_generator_is_named(source, key):
    state = upstream_generator(source)[0].state
    del state[key]
    with pytest.raises(Mismatch, match=rf"^{re.escape(key.replace('_u', ''))}\S* is missing") as caught:
        read(state, {})
    assert caught.value.score >= 0.6


@pytest.mark.parametrize(
    ("source", "key"), [("sngan32", "l5.bias"), ("sngan32", "block2.c_sc.weight_orig"), ("cgan-pd32", "l_y.weight_v"), ("infomax64", "linear.bias")]
)
def test_a_key_that_is_missing_from_a_discriminator_is_named(source, key):
    state = upstream_critic(source)[0].state
    del state[key]
    with pytest.raises(Mismatch, match=rf"^{re.escape(key.split('.weight')[0])}\S* is missing"):
        read(state, {})


@pytest.mark.parametrize("key", ["l1.bias", "block3.c2.weight", "block3.b2.bias", "b5.running_mean", "c5.weight", "l1.weight"])
def test_a_wrong_shape_is_named(key):
    state = upstream_generator("sngan32")[0].state
    state[key] = state[key][:-1]
    with pytest.raises(Mismatch, match=r"\S+ has shape \("):
        read(state, {})


@pytest.mark.parametrize("key", ["block2.b3.weight", "extra.weight", "block2.c1.weight_g"])
def test_an_unexpected_key_is_named(key):
    state = upstream_generator("sngan32")[0].state
    with pytest.raises(Mismatch, match=f"unexpected keys: {re.escape(key)}"):
        read({**state, key: torch.zeros(3)}, {})


def test_sizes_no_network_has_and_vectors_that_do_not_fit_are_refused():
    state = upstream_generator("sngan32")[0].state
    with pytest.raises(Mismatch, match="no square map"):
        read({**state, "block2.c1.weight": torch.zeros(8, 0, 3, 3)}, {})
    with pytest.raises(Mismatch, match="no such network"):
        read({**state, "l1.weight": torch.zeros(128, 0)}, {})
    with pytest.raises(Mismatch, match="20 residual blocks"):
        read({f"block{i}.c1.weight": torch.zeros(2, 2, 3, 3) for i in (1, 20)}, {})
    with pytest.raises(Mismatch, match="expected 4 dimensions"):
        read({**state, "block3.c2.weight": torch.zeros(3)}, {})
    with pytest.raises(Mismatch, match="spectral norm"):
        read({**state, "block2.c1.sn_u": torch.zeros(1, 5), "block2.c1.sn_sigma": torch.zeros(1)}, {})


def test_files_of_other_families_are_far_from_it():
    for state in ({"main.0.weight": torch.zeros(4, 4, 4, 4)}, {"blocks.0.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, {}, {"b4.fc.weight": torch.zeros(4, 4)}):
        with pytest.raises(Mismatch) as caught:
            read(state, {})
        assert caught.value.score < 0.1


# ------------------------------------------------------------------------------------------------------------------ the family


def test_a_conditional_discriminator_asks_for_one_label_for_each_image():
    net = built(read(upstream_critic("cgan-pd32")[0].state, {}))
    x = normal(2, 3, 32, 32)
    with pytest.raises(ValueError, match="conditional"):
        net(x)
    with pytest.raises(ValueError, match="labels have shape"):
        net(x, torch.tensor([[0], [1]]))


def test_networks_begin_as_the_papers_begin():
    torch.manual_seed(0)
    arch = build_arch(None, {"classes": 4, "g_spectral": True, "g_attention": 2, "g_widths": (64,) * 4})
    net = Generator(arch)
    assert net.attention.gamma.item() == 0
    scale, shift = net.blocks[0].norm1.embed.weight.chunk(2, 1)
    assert (scale == 1).all()
    assert (shift == 0).all()
    assert all((p == 0).all() for n, p in net.named_parameters() if n.endswith("bias"))
    for conv, gain in ((net.blocks[1].conv1, math.sqrt(2)), (net.blocks[1].shortcut, 1), (net.conv, 1)):
        weight = conv.parametrizations.weight.original
        bound = gain * math.sqrt(6 / (weight[0].numel() + weight[:, 0].numel()))
        assert 0.98 * bound < weight.abs().max().item() <= bound


def test_width_and_d_width_are_mimicry_s_ngf_and_ndf():
    arch = build_arch(None, {"resolution": 64, "width": "512", "d_width": 256})
    assert arch.g_widths == (512, 256, 128, 64, 32)
    assert arch.d_widths == (16, 32, 64, 128, 256)
    assert build_arch(arch, {"width": 1024}) == build_arch(None, {"resolution": 64, "d_width": 256})
    with pytest.raises(UsageError, match="whole number"):
        build_arch(None, {"width": "wide"})


@pytest.mark.parametrize(
    "fields",
    [
        {"nz": 0},
        {"resolution": 36, "g_widths": (4, 4, 4, 4)},
        {"d_down": 5},
        {"d_down": 0},
        {"g_widths": (8, 4, 4, 4), "g_identity": (0,)},
        {"d_identity": (0,)},
        {"classes": 3, "d_classes": 2},
        {"g_attention": 4},
        {"resolution": 8, "g_widths": (4, 4), "d_widths": (4, 4, 4, 4), "d_down": 3, "d_attention": 3},
        {"g_widths": (0, 0, 0, 0)},
        {"width": 0},
    ],
)
def test_impossible_architectures_are_refused(fields):
    with pytest.raises(UsageError):
        build_arch(None, fields)


def test_the_default_architecture_is_the_32_pixel_network():
    assert Arch() == build_arch(None, {}) == build_arch(None, {"resolution": 32})
