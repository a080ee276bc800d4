"""BigGAN: the published sizes, BigGAN-PyTorch's files against their forward pass written down once more, and every trap in them."""

import dataclasses
import math
import re

import pytest
import torch
from conftest import SMALL, small_gan
from torch.nn import functional as F

import gancompress
from gancompress.cost import generator_cost
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import FAMILIES, biggan
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan
from gancompress.scaling import _positions, _sizes, initialise_from

G_COUNTS = {96: 70_433_988, 48: 18_383_460, 32: 8_543_300, 24: 5_031_348}
D_COUNTS = {96: 87_982_370, 48: 22_383_698, 32: 10_120_802, 24: 5_789_978}
GIGAMACS = {96: 21.12, 48: 5.42, 32: 2.47, 24: 1.42}


# ------------------------------------------------------------------------------------- their file format and forward pass, once more


class Recorder:
    """A state dict that is made while it is first used, so that the forward pass below tells its keys and shapes too."""

    def __init__(self, seed=0):
        self.rng, self.state = torch.Generator().manual_seed(seed), {}

    def __call__(self, key, *shape, low=None):
        if key not in self.state:
            drawn = torch.rand(shape, generator=self.rng) + low if low is not None else torch.randn(shape, generator=self.rng) * 0.3
            self.state[key] = drawn
        return self.state[key]

    def weight(self, key, *shape):
        """Over its spectral norm after one more power step; sv0 is a log."""
        w, u = self(f"{key}.weight", *shape), self(f"{key}.u0", 1, shape[0])
        self(f"{key}.sv0", 1)
        v = F.normalize(u @ w.flatten(1))
        return w / (F.normalize(v @ w.flatten(1).T) @ w.flatten(1) @ v.T)

    def conv(self, key, x, n_out, size=3, bias=True):
        w = self.weight(key, n_out, x.shape[1], size, size)
        return F.conv2d(x, w, self(f"{key}.bias", n_out) if bias else None, padding=size // 2)

    def linear(self, key, x, n_out, bias=True):
        return F.linear(x, self.weight(key, n_out, x.shape[1]), self(f"{key}.bias", n_out) if bias else None)

    def norm(self, key, x, y, classes, eps):
        n = x.shape[1]
        if y.ndim == 2:
            gain, bias = self.linear(f"{key}.gain", y, n, bias=False), self.linear(f"{key}.bias", y, n, bias=False)
        else:
            gain, bias = self(f"{key}.gain.weight", classes, n)[y], self(f"{key}.bias.weight", classes, n)[y]
        x = F.batch_norm(x, self(f"{key}.stored_mean", n), self(f"{key}.stored_var", n, low=0.5), eps=eps)
        return x * (1 + gain)[..., None, None] + bias[..., None, None]

    def attention(self, key, x):
        n, size = x.shape[1], x.shape[2:]
        theta, phi, g = (self.conv(f"{key}.{name}", x, n // k, 1, bias=False) for name, k in (("theta", 8), ("phi", 8), ("g", 2)))
        phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
        beta = F.softmax(torch.einsum("nct,ncs->nts", theta.flatten(2), phi), -1)
        out = torch.einsum("ncs,nts->nct", g, beta).unflatten(2, size)
        return x + self(f"{key}.gamma") * self.conv(f"{key}.o", out, n, 1, bias=False)

    def output(self, x, nc=3):
        n = x.shape[1]
        stats = self("output_layer.0.stored_mean", n), self("output_layer.0.stored_var", n, low=0.5)
        x = F.batch_norm(x, *stats, self("output_layer.0.gain", n, low=0.5), self("output_layer.0.bias", n), eps=1e-5)
        return torch.tanh(self.conv("output_layer.2", F.relu(x), nc))


def theirs_g(make, z, y, widths, *, classes, shared=6, hier=True, attn=(), eps=1e-5):
    """G(z, G.shared(y)) of BigGAN.py in evaluation."""
    y = make("shared.weight", classes, shared)[y] if shared else y
    z, *chunks = z.chunk(len(widths), 1) if hier else [z]
    x = make.linear("linear", z, 16 * widths[0]).view(len(z), -1, 4, 4)
    for i, n in enumerate(widths[1:]):
        block = f"blocks.{i}.0"
        condition = torch.cat([y, chunks[i]], 1) if hier else y
        h = F.interpolate(F.relu(make.norm(f"{block}.bn1", x, condition, classes, eps)), scale_factor=2)
        h = make.conv(f"{block}.conv1", h, n)
        h = make.conv(f"{block}.conv2", F.relu(make.norm(f"{block}.bn2", h, condition, classes, eps)), n)
        x = h + make.conv(f"{block}.conv_sc", F.interpolate(x, scale_factor=2), n, 1)
        x = make.attention(f"blocks.{i}.1", x) if i in attn else x
    return make.output(x)


def theirs_d(make, x, y, widths, *, down, classes, attn=(), wide=True):
    """D(x, y) of BigGAN.py."""
    for i, n in enumerate(widths):
        block, n_in = f"blocks.{i}.0", x.shape[1]
        h = make.conv(f"{block}.conv1", F.relu(x) if i else x, n if wide else n_in)
        h = make.conv(f"{block}.conv2", F.relu(h), n)
        x = F.avg_pool2d(x, 2) if i == 0 and down else x
        x = make.conv(f"{block}.conv_sc", x, n, 1) if i < down or n != n_in else x
        x = F.avg_pool2d(x, 2) if 0 < i < down else x
        x = x + (F.avg_pool2d(h, 2) if i < down else h)
        x = make.attention(f"blocks.{i}.1", x) if i in attn else x
    return projection(make, x, y, classes)


def projection(make, x, y, classes):
    h = F.relu(x).sum([2, 3])
    return (make.linear("linear", h, 1) + (make.weight("embed", classes, h.shape[1])[y] * h).sum(1, keepdim=True)).flatten()


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


Z, Y = torch.randn(3, 12, generator=rng()), torch.tensor([0, 4, 2])
HIER = {"widths": (8, 8, 16), "classes": 5, "attn": (1,)}


def g_file(tmp_path, name="G_ema.pth", change=dict, seed=0, **config):
    """(file of a generator, its expected images)."""
    config = HIER | config
    make = Recorder(seed)
    images = theirs_g(make, Z, Y, **config)
    torch.save(change(make.state), tmp_path / name)
    return tmp_path / name, images


def same(found, expected, atol=2e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("ch", G_COUNTS)
def test_the_published_sizes_at_128_are_met_to_the_unit(ch):
    arch = biggan.scale(biggan.build_arch(None, {"resolution": 128}), ch / 96)
    assert arch == biggan.build_arch(None, {"width": ch})
    cost = generator_cost(biggan.FAMILY, arch)
    assert cost.parameters == G_COUNTS[ch]
    assert round(cost.macs_in / 1e9, 2) == round(cost.macs_out / 1e9, 2) == GIGAMACS[ch]
    with torch.device("meta"):
        assert sum(p.numel() for p in biggan.Discriminator(arch).parameters()) == D_COUNTS[ch]


@pytest.mark.parametrize(("resolution", "nz", "g", "d", "down"), [
    (32, 80, (4, 4, 4, 4), (4, 4, 4, 4), 2),
    (64, 100, (16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
    (256, 140, (16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6),
    (512, 128, (16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), 7),
])  # fmt: skip
def test_other_resolutions_have_the_paper_s_tables(resolution, nz, g, d, down):
    arch = biggan.build_arch(None, {"resolution": resolution, "width": 2, "d_width": 3})
    assert (arch.nz, arch.g_widths, arch.d_widths, arch.d_down) == (nz, tuple(2 * m for m in g), tuple(3 * m for m in d), down)
    if resolution > 64:  # attention where the image is 64x64
        assert 8 << arch.g_attn[0] == resolution >> arch.d_attn[0] + 1 == 64


def test_a_new_width_keeps_the_teacher_s_latent_and_attention():
    teacher = biggan.build_arch(None, {"resolution": 64, "width": 8, "nz": 50, "g_attn": "1", "d_attn": "2"})
    student = biggan.build_arch(teacher, {"width": 4})
    assert student == dataclasses.replace(teacher, g_widths=(64, 64, 32, 16, 8), d_widths=(4, 8, 16, 32, 64))
    with pytest.raises(UsageError, match="no widths are known"):
        biggan.build_arch(None, {"resolution": 1024})
    with pytest.raises(UsageError, match="6 equal chunks"):
        biggan.build_arch(None, {"nz": 100})
    with pytest.raises(UsageError, match="g_attn"):
        biggan.build_arch(None, {"g_attn": "5"})


# ---------------------------------------------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("config", [
    {},
    {"hier": False},
    {"hier": False, "attn": (0, 1)},
    {"hier": False, "shared": 0},
    {"shared": 1, "widths": (8, 4, 4), "attn": ()},
], ids=["hier", "shared", "attention twice", "embeddings of each norm", "narrow"])  # fmt: skip
def test_a_generator_s_file_gives_its_own_images(config, tmp_path):
    path, images = g_file(tmp_path, **config)
    net = gancompress.load(path)
    same(net(Z, Y), images)
    assert (net.arch.hier, net.arch.nz, net.arch.classes) == (config.get("hier", True), 12, 5)


@pytest.mark.parametrize(("widths", "down", "resolution", "wide", "attn"), [
    ((4, 8, 16, 32, 64), 4, 64, True, (1,)),
    ((8, 8, 8, 8), 2, 32, True, (0, 1, 2, 3)),
    ((8, 8, 8, 8), 2, 32, False, ()),
    ((4, 8, 16), 2, 16, True, ()),
])  # fmt: skip
def test_a_discriminator_s_file_gives_its_own_logits(widths, down, resolution, wide, attn, tmp_path):
    make = Recorder()
    x = torch.rand(3, 3, resolution, resolution, generator=rng()) * 2 - 1
    logits = theirs_d(make, x, Y, widths, down=down, classes=5, attn=attn, wide=wide)
    torch.save(make.state, tmp_path / "D.pth")
    net = gancompress.load(tmp_path / "D.pth", part="discriminator")
    torch.testing.assert_close(net(x, Y), logits, rtol=1e-5, atol=1e-4)
    assert (net.arch.resolution, net.arch.d_wide) == (resolution, wide)


def test_the_singular_value_in_the_file_is_a_log_and_not_used(tmp_path):
    path, images = g_file(tmp_path, change=lambda state: {k: t * 7 if k.endswith("sv0") else t for k, t in state.items()})
    same(gancompress.load(path)(Z, Y), images)


@pytest.mark.parametrize("counter", [0.0, 5.0])
def test_standing_statistics_are_sums_to_be_divided_by_their_count(counter, tmp_path):
    def mybn(state):
        out = {}
        for key, tensor in state.items():
            prefix, _, leaf = key.rpartition(".")
            if leaf.startswith("stored"):
                out[f"{prefix}.bn.{leaf}"] = tensor * (counter or 1)
                out[f"{prefix}.bn.accumulation_counter"] = torch.tensor([counter])
            else:
                out[key] = tensor
        return out

    path, images = g_file(tmp_path, change=mybn)
    same(gancompress.load(path)(Z, Y), images)


def test_cross_replica_statistics_are_read_and_their_gains_multiply(tmp_path):
    def cross(state):
        named = {re.sub(r"stored_(\w+)$", r"bn.running_\1", k): t for k, t in state.items()}
        return named | {k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in named if k.endswith("running_mean")}

    path, images = g_file(tmp_path, change=cross)
    same(gancompress.load(path)(Z, Y), images)
    assert any("gains multiply" in a for a in find(str(path)).assumptions)


def test_a_half_precision_file_is_computed_in_single_precision(tmp_path):
    path, images = g_file(tmp_path, change=lambda state: {k: t.half() for k, t in state.items()})
    found = gancompress.load(path)(Z, Y)
    assert found.dtype == torch.float32
    same(found, images, atol=0.05)


@pytest.mark.parametrize("source", ["G_ema.pth", "."])
def test_the_eps_of_the_run_is_found_beside_one_file_and_in_the_folder(source, tmp_path):
    path, images = g_file(tmp_path, eps=0.05)
    torch.save({"itr": 1, "best_IS": 0.0, "config": {"BN_eps": 0.05, "SN_eps": 1e-7, "G_activation": torch.nn.ReLU()}}, tmp_path / "state_dict_best0.pth")
    net = gancompress.load(tmp_path / source)
    same(net(Z, Y), images)
    assert (net.arch.bn_eps, net.arch.out_eps, net.arch.sn_eps) == (0.05, 1e-5, 1e-7)
    assert any("config beside it" in a for a in find(str(path)).assumptions)


@pytest.mark.parametrize("value", ["big", True, -1.0, float("nan"), [1], None, pytest.param(10**400, id="huge")])
def test_a_config_that_holds_nonsense_changes_nothing(value, tmp_path):
    path, images = g_file(tmp_path)
    torch.save({"config": {"BN_eps": value, "SN_eps": value}}, tmp_path / "state_dict.pth")
    same(gancompress.load(path)(Z, Y), images)


def test_a_damaged_config_beside_the_weights_is_passed_over(tmp_path):
    path, images = g_file(tmp_path)
    (tmp_path / "state_dict.pth").write_bytes(b"PK\x03\x04 and no more")
    same(gancompress.load(path)(Z, Y), images)


def test_a_conversion_from_tfhub_has_no_singular_values_and_tensorflow_s_eps(tmp_path):
    path, images = g_file(tmp_path, change=lambda state: {k: t for k, t in state.items() if not k.endswith("sv0")}, eps=1e-4)
    net = gancompress.load(path)
    assert net.arch.bn_eps == 1e-4
    same(net(Z, Y), images)


def test_the_average_is_preferred_and_knows_its_name_with_a_suffix(tmp_path):
    _, raw = g_file(tmp_path, "G_best0.pth", seed=3)
    _, images = g_file(tmp_path, "G_ema_best0.pth")
    same(gancompress.load(tmp_path)(Z, Y), images)
    same(gancompress.load(tmp_path, ema=False)(Z, Y), raw)


def test_the_optimizer_s_file_is_called_what_it_is(tmp_path):
    path, _ = g_file(tmp_path)
    net = gancompress.load(path).requires_grad_(True)
    torch.save(torch.optim.Adam(net.parameters()).state_dict(), tmp_path / "G_optim.pth")
    with pytest.raises(CheckpointError, match="optimizer's state"):
        gancompress.load(tmp_path / "G_optim.pth")
    assert load_gan(str(tmp_path)).family.name == "biggan"


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s.pop("blocks.1.0.conv2.bias"), r"blocks\.1\.0\.conv2\.bias is missing"),
    (lambda s: s.pop("blocks.1.0.bn2.stored_mean"), r"blocks\.1\.0\.bn2\.stored_mean is missing"),
    (lambda s: s.pop("blocks.0.0.conv_sc.weight"), r"blocks\.0\.0\.conv_sc\.weight is missing"),
    (lambda s: s.pop("blocks.1.1.theta.u0"), r"blocks\.1\.1\.theta\.weight is there without spectral norm"),
    (lambda s: s.update({"blocks.1.0.extra.weight": torch.ones(2)}), r"unexpected key blocks\.1\.0\.extra\.weight"),
    (lambda s: s.update({"blocks.0.0.bn2.gain.weight": torch.ones(8, 3)}), r"blocks\.0\.0\.bn2\.gain\.weight has shape \(8, 3\), expected \(8, 10\)"),
    (lambda s: s.update({"shared.weight": torch.ones(5)}), r"shared\.weight has shape \(5,\), expected 2 axes"),
    (lambda s: s.update({"linear.weight": torch.ones(1, 1).expand(1 << 30, 4)}), r"linear\.: a singular vector of shape \(1, 128\)"),
    (lambda s: s.update({"linear.weight": torch.ones(1, 1).expand(1 << 21, 4), "linear.u0": torch.ones(1, 1 << 21)}), r"linear\.weight has shape"),
    (lambda s: s.update({"linear.weight": torch.ones(128, 5)}), r"expected"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_told_by_its_key(change, said):
    make = Recorder()
    theirs_g(make, Z, Y, **HIER)
    change(make.state)
    with pytest.raises(Mismatch, match=said) as error:
        biggan.read(make.state, {})
    assert error.value.score >= 0.7


def test_other_families_files_are_far_from_it():
    for family in ("dcgan", "mlp"):
        gan = small_gan(family, SMALL[family][0])
        with pytest.raises(Mismatch) as error:
            biggan.read(dict(gan.generator.state_dict()), {})
        assert error.value.score < 0.1


def as_port(state, labels, attention):
    """The same weights as TFHub/biggan_v1.py names and orders them, of a size at which its additive eps does not show."""
    out = {}
    for key, tensor in state.items():
        if key.endswith(("sv0", "num_batches_tracked")):
            continue
        if re.search(r"bn\d\.(gain|bias)\.weight", key):
            tensor = torch.cat([tensor[:, labels:], tensor[:, :labels]], 1)
        if key.startswith("linear."):
            tensor = tensor.flatten() if key.endswith("u0") else tensor
            tensor = tensor.unflatten(0, (-1, 16)).transpose(0, 1).flatten(0, 1)
        if key == "shared.weight":
            out["linear.weight"] = tensor.T
            continue
        if f"{key.rpartition('.')[0]}.u0" in state:
            tensor = {"weight": tensor * 1000, "u0": tensor.flatten()}.get(key.rpartition(".")[2], tensor)
            key = re.sub(r"\.(\w+)$", lambda m: ".module." + {"weight": "weight_bar", "u0": "weight_u"}.get(m[1], m[1]), key)
        key = re.sub(r"^linear\.", "G_linear.", key).replace("output_layer.2", "colorize").replace("output_layer.0", "ScaledCrossReplicaBN")
        key = key.replace(f"blocks.{attention}.1.o.", "attention.o_conv.").replace(f"blocks.{attention}.1.", "attention.")
        key = re.sub(r"blocks\.(\d+)\.0\.", r"GBlock.\1.", key).replace("conv1", "conv0").replace("conv2", "conv1")
        key = key.replace("bn1.", "HyperBN.").replace("bn2.", "HyperBN_1.").replace("BNs", "BN.bn.s").replace("BN.gain.m", "BN.gamma_embed.m")
        key = re.sub(
            r"(HyperBN\w*)\.(stored)", r"\1.bn.\2", re.sub(r"(HyperBN\w*)\.gain", r"\1.gamma_embed", re.sub(r"(HyperBN\w*)\.bias", r"\1.beta_embed", key))
        )
        out[key.replace("stored_", "running_").replace("BN.gain", "BN.weight")] = tensor
    out["attention.gamma"] = out["attention.gamma"][None]
    return out


def test_the_first_tfhub_port_is_read_with_its_own_order_of_values(tmp_path):
    path, images = g_file(tmp_path, widths=(16, 8, 4), attn=(0,), eps=1e-4, change=lambda s: as_port(s, 6, 0))
    net = gancompress.load(path)
    same(net(Z, Y), images, atol=2e-3)
    assert net.arch.out_eps == 1e-4
    state = torch.load(path)
    for key, broken, said in (
        ("GBlock.1.conv1.module.weight_u", torch.ones(3), r"blocks\.1\.0\.conv2\.module\.weight_u is missing or does not fit"),
        ("GBlock.1.conv1.module.weight_bar", torch.ones(()), r"does not fit weight_bar of shape \(\)"),
        ("G_linear.module.bias", torch.ones(255), r"linear\.bias has shape \(255,\)"),
        ("GBlock.0.HyperBN.bn.running_var", torch.ones(2), r"bn1\.stored_var has shape"),
    ):
        with pytest.raises(Mismatch, match=said):
            biggan.read(state | {key: broken}, {})


@pytest.mark.assets
@pytest.mark.parametrize(("family", "title", "part", "expected"), [
    ("biggan", "G 128 official", "generator", {"resolution": 128, "nz": 120, "hier": True, "g_attn": (3,), "classes": 1000}),
    ("biggan", "D 128 official", "discriminator", {"resolution": 128, "d_attn": (0,), "d_down": 5}),
    ("biggan", "G C10", "generator", {"resolution": 32, "nz": 128, "hier": False, "shared_dim": 0, "classes": 10, "g_attn": ()}),
    ("biggan", "D C10", "discriminator", {"resolution": 32, "d_down": 2, "d_widths": (256,) * 4}),
    ("biggan", "G mybn", "generator", {"resolution": 32, "nz": 120, "shared_dim": 128}),
    ("biggan", "G crossreplica", "generator", {"resolution": 32, "nz": 120, "shared_dim": 128}),
    ("biggan_deep", "Gdeep 128", "generator", {"resolution": 128, "nz": 128, "g_attn": (7,), "g_widths": (2048, 2048, 1024, 512, 256, 128)}),
    ("biggan_deep", "Ddeep 32", "discriminator", {"resolution": 32, "d_down": 2, "d_depth": 2}),
])  # fmt: skip
def test_the_key_lists_of_real_files_are_recognised(family, title, part, expected, assets):
    section = (assets / "keys" / "biggan.txt").read_text().partition(f"## {title}")[2].partition("\n## ")[0]
    found = re.findall(r"^(\S+)\s+\(([\d, ]*)\)", section, re.MULTILINE)
    state = {key: torch.ones(()).expand([int(n) for n in shape.split(",") if n.strip()]) for key, shape in found}
    reading = FAMILIES[family].read(state, {})
    assert reading.part == part
    assert {k: reading.fields[k] for k in expected} == expected


# ------------------------------------------------------------------------------------------------------------- sampling, slicing


def test_truncation_draws_again_what_lies_beyond_it():
    arch = dataclasses.replace(biggan.Arch(), truncation=0.5)
    z, y = biggan.sample(arch, 2000, rng())
    assert z.abs().max() <= 0.5
    # the variance of N(0, 1) within [-t, t]: 1 - 2 t phi(t) / (2 Phi(t) - 1)
    expected = math.sqrt(1 - 2 * 0.5 * math.exp(-0.125) / math.sqrt(2 * math.pi) / math.erf(0.5 / math.sqrt(2)))
    assert abs(float(z.std()) - expected) < 0.003
    assert set(y.tolist()) <= set(range(1000))
    free, _ = biggan.sample(biggan.Arch(), 2000, rng())
    assert abs(float(free.std()) - 1) < 0.01
    assert free.abs().max() > 3


def test_truncation_is_a_setting_of_any_file(tmp_path):
    path, images = g_file(tmp_path)
    gan = load_gan(str(path), options={"truncation": "0.7"})
    assert gan.sample(50, rng())[0].abs().max() <= 0.7
    same(gan.generator(Z, Y), images)


@pytest.mark.parametrize("family", ["biggan", "biggan_deep"])
@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("how", ["slice", "top-magnitude"])
def test_at_full_width_the_discriminator_is_the_teacher_s(family, variant, how):
    teacher, student = (small_gan(family, SMALL[family][variant], seed=s) for s in (0, 7))
    x, y = torch.rand(3, 3, *[teacher.arch.resolution] * 2, generator=rng()), teacher.sample(3, rng())[1]
    initialise_from(teacher.discriminator, student.discriminator, teacher.family.axes(student.arch, "discriminator"), how)
    torch.testing.assert_close(student.discriminator(x, y), teacher.discriminator(x, y))


@pytest.mark.parametrize("family", ["biggan", "biggan_deep"])
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_channels_of_one_group_can_be_permuted_everywhere_at_once(family, part):
    """What a group claims: the same channels in every tensor. A wrong tie of two layers would change the output."""
    for fields in SMALL[family]:
        gan = small_gan(family, fields)
        net, axes = gan.networks[part], gan.family.axes(gan.arch, part)
        inputs, y = gan.sample(3, rng())
        x = inputs if part == "generator" else torch.rand(3, 3, *[gan.arch.resolution] * 2, generator=rng())
        before, state = net(x, y), net.state_dict()
        sizes = _sizes(state, axes)
        order = {group: torch.randperm(n, generator=rng(3)) for group, n in sizes.items()}
        assert any(not o.equal(torch.arange(len(o))) for o in order.values())
        for key, groups in axes.items():
            for axis, group in enumerate(groups):
                if group is not None:
                    state[key] = state[key].index_select(axis, _positions(group, sizes, order))
        net.load_state_dict(state)
        torch.testing.assert_close(net(x, y), before, rtol=1e-4, atol=1e-4)


def test_the_start_is_orthogonal_and_its_norm_known():
    torch.manual_seed(0)
    net = biggan.Generator(FAMILIES["biggan"].build_arch(None, SMALL["biggan"][0]))
    original = net.blocks[0][0].conv1.parametrizations.weight.original.flatten(1)
    torch.testing.assert_close(original @ original.T, torch.eye(len(original)), rtol=0, atol=1e-5)
    assert abs(torch.linalg.matrix_norm(net.linear.weight.detach(), 2).item() - 1) < 1e-3
