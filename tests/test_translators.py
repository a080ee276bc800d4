"""pix2pix and CycleGAN: what junyanz, eriklindernoren and GAN Compression write, read back, and what no file tells."""

import re
from functools import partial

import pytest
import torch
from conftest import SMALL, randomise, small_gan
from torch import nn
from torch.nn import functional as F

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.cost import generator_cost
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan

UNET, RESNET = FAMILIES["unet"], FAMILIES["resnet"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TRACKED = partial(nn.InstanceNorm2d, track_running_stats=True)
AFFINE = partial(nn.InstanceNorm2d, affine=True)


def no_norm(width):
    return nn.Identity()


#: norm -> (layer, whether a convolution before it has a bias)
NORMS = {"batch": (nn.BatchNorm2d, False), "instance": (nn.InstanceNorm2d, True), "tracked": (TRACKED, True), "affine": (AFFINE, True)}
NORMS["none"] = (no_norm, False)


def own_statistics(net):
    """InstanceNorms that keep statistics take each image's own, as those of the projects do after they drop the stored ones."""
    for module in net.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.train()
    return net


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ----------------------------------------------------------------------------------------------- the same networks, their own way


class Around(nn.Module):
    """``join(x, inside(x))`` under the name a project gives the inside."""

    def __init__(self, name, inside, join):
        super().__init__()
        self.add_module(name, inside)
        self.name, self.join = name, join

    def forward(self, x):
        return self.join(x, getattr(self, self.name)(x))


def their_resnet(w=4, blocks=2, norm="instance", *, nc_in=3, nc=3, name="conv_block", dropout=False, up="transposed", separable=False, halvings=2, edge=3):
    layer, bias = NORMS[norm]

    def conv(width):
        if not separable:
            return nn.Conv2d(width, width, 3, bias=bias)
        parts = nn.Sequential(nn.Conv2d(width, width, 3, groups=width, bias=bias), layer(width), nn.Conv2d(width, width, 1, bias=bias))
        return Around("conv", parts, lambda x, y: y)

    net = [nn.ReflectionPad2d(edge), nn.Conv2d(nc_in, w, 7, bias=bias), layer(w), nn.ReLU()]
    for _ in range(halvings):
        net += [nn.Conv2d(w, 2 * w, 3, 2, 1, bias=bias), layer(2 * w), nn.ReLU()]
        w *= 2
    for _ in range(blocks):
        drop = [nn.Dropout(0.5)] if dropout else []
        inside = [nn.ReflectionPad2d(1), conv(w), layer(w), nn.ReLU(), *drop, nn.ReflectionPad2d(1), conv(w), layer(w)]
        net.append(Around(name, nn.Sequential(*inside), torch.add))
    for _ in range(halvings):
        ways = {
            "transposed": [nn.ConvTranspose2d(w, w // 2, 3, 2, 1, 1, bias=bias)],
            "nearest": [nn.Upsample(scale_factor=2), nn.Conv2d(w, w // 2, 3, 1, 1, bias=bias)],
            "bilinear": [nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReflectionPad2d(1), nn.Conv2d(w, w // 2, 3, bias=bias)],
        }
        w //= 2
        net += [*ways[up], layer(w), nn.ReLU()]
    net += [nn.ReflectionPad2d(edge), nn.Conv2d(w, nc, 7), nn.Tanh()]
    return randomise(Around("model", nn.Sequential(*net), lambda x, y: y), 3)


def their_unet(widths=(4, 6, 8, 8), norm="batch", *, nc_in=3, nc=3, dropout=False):
    """Nested as junyanz nests it, his in-place activations included."""
    layer, bias = NORMS[norm]
    beside = partial(Around, "model", join=lambda x, y: torch.cat([x, y], 1))
    inner = None
    for i in reversed(range(1, len(widths))):
        n_in, n_out = widths[i - 1], widths[i]
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(n_in, n_out, 4, 2, 1, bias=bias)]
        rise = nn.ConvTranspose2d(n_out if inner is None else 2 * n_out, n_in, 4, 2, 1, bias=bias)
        middle = [] if inner is None else [layer(n_out), inner]
        drop = [nn.Dropout(0.5)] if dropout and inner is not None else []
        inner = beside(nn.Sequential(*down, *middle, nn.ReLU(True), rise, layer(n_in), *drop))
    ends = nn.Conv2d(nc_in, widths[0], 4, 2, 1, bias=bias), nn.ConvTranspose2d(2 * widths[0], nc, 4, 2, 1)
    outer = Around("model", nn.Sequential(ends[0], inner, nn.ReLU(True), ends[1], nn.Tanh()), lambda x, y: y)
    return randomise(Around("model", outer, lambda x, y: y), 4)


class LindernorenUnet(nn.Module):
    def __init__(self, widths, nc_in, nc):
        super().__init__()
        n = len(widths)
        for i, (n_in, n_out) in enumerate(zip((nc_in, *widths), widths, strict=False)):
            norm = [nn.InstanceNorm2d(n_out)] if 0 < i < n - 1 else []
            layers = [nn.Conv2d(n_in, n_out, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2)]
            self.add_module(f"down{i + 1}", Around("model", nn.Sequential(*layers), lambda x, y: y))
        for k in range(1, n):
            wide = widths[n - 1] if k == 1 else 2 * widths[n - k]
            layers = [nn.ConvTranspose2d(wide, widths[n - k - 1], 4, 2, 1, bias=False), nn.InstanceNorm2d(widths[n - k - 1]), nn.ReLU()]
            self.add_module(f"up{k}", Around("model", nn.Sequential(*layers), lambda x, y: y))
        self.final = nn.Sequential(nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(2 * widths[0], nc, 4, padding=1), nn.Tanh())
        self.n = n

    def forward(self, x):
        skips = []
        for i in range(self.n):
            x = getattr(self, f"down{i + 1}")(x)
            skips.append(x)
        skips.pop()
        for k in range(1, self.n):
            x = torch.cat([getattr(self, f"up{k}")(x), skips.pop()], 1)
        return self.final(x)


def their_patchgan(n_layers=3, norm="instance", nc=3, w=4):
    layer, bias = NORMS[norm]
    net, width = [nn.Conv2d(nc, w, 4, 2, 1), nn.LeakyReLU(0.2)], w
    for n in range(1, n_layers + 1):
        wide = w * min(2**n, 8)
        net += [nn.Conv2d(width, wide, 4, 2 if n < n_layers else 1, 1, bias=bias), layer(wide), nn.LeakyReLU(0.2)]
        width = wide
    return randomise(Around("model", nn.Sequential(*net, nn.Conv2d(width, 1, 4, 1, 1)), lambda x, y: y), 5)


def their_pixelgan(norm="instance", nc=3, w=4):
    layer, bias = NORMS[norm]
    net = [nn.Conv2d(nc, w, 1), nn.LeakyReLU(0.2), nn.Conv2d(w, 2 * w, 1, bias=bias), layer(2 * w), nn.LeakyReLU(0.2), nn.Conv2d(2 * w, 1, 1, bias=bias)]
    return randomise(Around("net", nn.Sequential(*net), lambda x, y: y), 6)


def lindernoren_critic(nc=3, last_bias=True, w=4):
    net, width = [nn.Conv2d(nc, w, 4, 2, 1), nn.LeakyReLU(0.2)], w
    for _ in range(3):
        net += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    net += [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(width, 1, 4, padding=1, bias=last_bias)]
    return randomise(Around("model", nn.Sequential(*net), lambda x, y: y), 7)


@pytest.fixture
def reads(tmp_path):
    """Saves a network as its project does, reads it, holds the outputs against each other; gives what was found."""

    def check(net, images, part="generator", **options):
        path = tmp_path / "latest_net_G.pth"
        torch.save(net.state_dict(), path)
        ours = gancompress.load(str(path), part=part, **options)
        want = own_statistics(net)(images.clone())
        torch.testing.assert_close(ours(images), want.flatten(1) if part == "discriminator" else want, **CLOSE)
        return find(str(path), options=options)

    return check


# --------------------------------------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("family", "fields", "parameters", "g_macs"),
    [
        ("unet", {"width": 64}, 54_413_955, 18.14),
        ("unet", {"width": 32}, 13_608_259, 4.65),
        ("unet", {"width": 16}, 3_404_451, 1.22),
        ("unet", {"width": 64, "resolution": 128}, 41_828_995, 4.51),
        ("resnet", {"width": 64}, 11_378_179, 56.80),
        ("resnet", {"width": 32}, 2_850_563, 14.51),
        ("resnet", {"width": 16}, 715_651, 3.78),
    ],
)
def test_published_parameters_and_macs_at_output_positions(family, fields, parameters, g_macs):
    record = FAMILIES[family]
    cost = generator_cost(record, record.build_arch(None, fields))
    assert cost.parameters == parameters
    assert cost.macs_out / 1e9 == pytest.approx(g_macs, abs=0.005)


@pytest.mark.parametrize(("family", "counts"), [("unet", (13_608_259, 3_404_451)), ("resnet", (2_850_563, 715_651))])
def test_half_and_quarter_width_are_the_published_students(family, counts):
    record = FAMILIES[family]
    full = record.build_arch(None, {})
    assert tuple(generator_cost(record, record.scale(full, m)).parameters for m in (0.5, 0.25)) == counts


@pytest.mark.parametrize(
    ("record", "fields", "parameters"), [(RESNET, {}, 2_764_737), (UNET, {"d_nc": 6}, 2_768_705), (RESNET, {"d_form": "pixel"}, 64 * 4 + 128 * 65 + 129)]
)
def test_published_sizes_of_discriminators(record, fields, parameters):
    with torch.device("meta"):
        critic = record.discriminator(record.build_arch(None, fields))
    assert sum(p.numel() for p in critic.parameters()) == parameters


# ------------------------------------------------------------------------------------------------------------------ resnet files


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_resnet_of_every_norm_is_read_with_and_without_dropout(reads, norm, dropout):
    """Trap: the second convolution of a block is conv_block.5, or .6 behind a dropout."""
    net = their_resnet(norm=norm, dropout=dropout)
    assert ("model.10.conv_block.6.weight" in net.state_dict() and net.state_dict()["model.10.conv_block.6.weight"].ndim == 4) == dropout
    found = reads(net, pictures(2, 3, 16, 24))
    assert (found.family.name, found.arch.dropout) == ("resnet", dropout)
    assert found.arch.g_norm == {"tracked": "instance", "affine": "instance-affine"}.get(norm, norm)
    assert any("dropout=false" in a for a in found.assumptions) == dropout


@pytest.mark.parametrize(
    "fields",
    [
        {"blocks": 6, "nc_in": 1, "nc": 2},
        {"halvings": 1},
        {"halvings": 3},
        {"name": "block", "norm": "affine"},
        {"up": "nearest"},
        {"up": "nearest", "name": "block"},
        {"up": "bilinear"},
        {"up": "bilinear", "norm": "batch"},
    ],
    ids=str,
)
def test_resnets_of_other_shapes_and_forks_are_read(reads, fields):
    """Trap: forks that put nn.Upsample in place of transposed convolutions shift the indices behind the blocks."""
    net = their_resnet(**fields)
    arch = reads(net, pictures(2, fields.get("nc_in", 3), 16, 32)).arch
    assert (arch.nc_in, arch.nc, arch.blocks, arch.up) == tuple(fields.get(k, v) for k, v in (("nc_in", 3), ("nc", 3), ("blocks", 2), ("up", "transposed")))


def test_eriklindernoren_pads_the_edge_by_the_channels(reads):
    """Trap: with one channel his 7x7 convolutions are padded by one, and images shrink."""
    net = their_resnet(name="block", up="nearest", nc_in=1, nc=1, edge=1)
    found = reads(net, pictures(2, 1, 32, 32))
    assert found.arch.edge == 1
    assert any("edge=3" in a for a in found.assumptions)
    assert reads(their_resnet(name="block", up="nearest", nc_in=1, nc=1), pictures(2, 1, 16, 16), edge=3).arch.edge == 3


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_mobile_teachers_have_separable_blocks_and_a_dropout_of_rate_zero(reads, norm):
    """Trap: GAN Compression writes conv_block.6 though it does not drop."""
    net = their_resnet(norm=norm, separable=True, dropout=True)
    assert "model.10.conv_block.6.conv.0.weight" in net.state_dict()
    arch = reads(net, pictures(2, 3, 16, 16)).arch
    assert (arch.separable, arch.dropout) == (True, False)


def test_instance_norm_statistics_of_old_files_are_dropped(reads, tmp_path):
    """Trap: files of April 2018 hold statistics of InstanceNorm (117 keys in place of 48), which make other images if used."""
    net = their_resnet(blocks=9, norm="tracked")
    assert len(net.state_dict()) == 117
    x = pictures(2, 3, 16, 16)
    used = net(x)  # this network of today's torch uses them
    found = reads(net, x)
    assert not used.allclose(net(x), atol=1e-2)
    assert found.arch.g_norm == "instance"
    assert any("not used" in a for a in found.assumptions)


def test_data_parallel_prefixes_and_files_without_batch_counters_are_read(tmp_path):
    net = their_resnet(norm="batch")
    state = {f"module.{k}": t for k, t in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "G.pth")
    x = pictures(1, 3, 16, 16)
    torch.testing.assert_close(gancompress.load(str(tmp_path / "G.pth"))(x), net(x), **CLOSE)


@pytest.mark.assets
def test_the_vintage_cyclegan_is_read_without_any_flag(vintage_teacher):
    found = gancompress.inspect(str(vintage_teacher))
    assert (found["family"], found["parameters"]) == ("resnet", 11_388_675)
    state = torch.load(vintage_teacher, map_location="cpu", weights_only=True)
    net = their_resnet(w=64, blocks=9, norm="affine", name="block")
    net.load_state_dict(state)
    x = F.interpolate(pictures(1, 3, 8, 8), 64, mode="bicubic").clamp(-1, 1)
    ours = gancompress.load(str(vintage_teacher))(x)
    torch.testing.assert_close(ours, net(x), rtol=0, atol=1e-4)
    assert ours.std() > 0.05


# -------------------------------------------------------------------------------------------------------------------- unet files


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_nested_unet_of_every_norm_is_read(reads, norm, dropout):
    found = reads(their_unet(norm=norm, dropout=dropout), pictures(2, 3, 32, 48))
    assert found.family.name == "unet"
    assert found.arch.g_norm == {"tracked": "instance", "affine": "instance-affine"}.get(norm, norm)


@pytest.mark.parametrize(("widths", "resolution"), [((4, 8), 256), ((4, 8, 8, 8, 8), 256), ((4,) * 7, 128), ((4,) * 8, 256), ((2,) * 9, 512)])
def test_depth_follows_from_nesting_and_tells_the_size(reads, widths, resolution):
    found = reads(their_unet(widths, nc_in=1, nc=2), pictures(1, 1, 1 << len(widths), 1 << len(widths)))
    assert (found.arch.g_widths, found.arch.resolution, found.arch.nc_in, found.arch.nc) == (widths, resolution, 1, 2)


def test_dropout_of_a_unet_is_the_user_s_word(reads, tmp_path):
    """Trap: it leaves no trace in the file."""
    net, x = their_unet((4, 4, 4, 4, 4, 4), dropout=True), pictures(2, 3, 64, 64)
    found = reads(net, x)
    assert not found.arch.dropout
    assert any("dropout=true" in a for a in found.assumptions)
    assert reads(net, x, dropout="true").arch.dropout
    dropping = gancompress.load(str(tmp_path / "latest_net_G.pth"), dropout="true").train()
    staying = gancompress.load(str(tmp_path / "latest_net_G.pth")).train()
    assert not dropping(x).equal(dropping(x))
    assert staying(x).equal(staying(x))


@pytest.mark.parametrize("net", [their_unet(), their_resnet(norm="batch")], ids=["unet", "resnet"])
def test_batch_norm_can_take_an_image_s_own_statistics_as_pix2pix_tests(net, tmp_path):
    """Trap: pix2pix's test.py leaves BatchNorm in training mode unless told --eval."""
    torch.save(net.state_dict(), tmp_path / "G.pth")
    x = pictures(1, 3, 32, 32)
    stored, own = (gancompress.load(str(tmp_path / "G.pth"), **options)(x) for options in ({}, {"statistics": "image"}))
    torch.testing.assert_close(stored, net(x.clone()), **CLOSE)
    net.train()
    torch.testing.assert_close(own, net(x.clone()), **CLOSE)
    net.eval()
    assert not own.allclose(stored, atol=1e-2)


@pytest.mark.parametrize(("widths", "nc_in", "nc"), [((4, 6, 8, 8), 3, 3), ((4, 8), 1, 3), ((2, 4, 4, 6, 6), 3, 1)])
def test_eriklindernoren_s_unet_is_read(reads, widths, nc_in, nc):
    net = randomise(LindernorenUnet(widths, nc_in, nc), 8)
    found = reads(net, pictures(2, nc_in, 64, 64))
    assert (found.arch.form, found.arch.g_widths, found.arch.nc_in, found.arch.nc) == ("lindernoren", widths, nc_in, nc)
    assert (found.arch.g_norm, found.arch.g_bias) == ("instance", False)


# ---------------------------------------------------------------------------------------------------------------- discriminators


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_patchgans_of_every_depth_and_norm_are_read(reads, n_layers, norm):
    net = their_patchgan(n_layers, norm)
    arch = reads(net, pictures(2, 3, 64, 64), "discriminator").arch
    assert (arch.d_form, len(arch.d_widths)) == ("patch", n_layers + 1)


@pytest.mark.parametrize("norm", NORMS)
def test_pixelgans_of_every_norm_are_read(reads, norm):
    net = their_pixelgan(norm)
    assert reads(net, pictures(2, 3, 8, 8), "discriminator").arch.d_form == "pixel"


@pytest.mark.parametrize("last_bias", [True, False])
def test_eriklindernoren_s_critic_is_read(reads, last_bias):
    assert reads(lindernoren_critic(last_bias=last_bias), pictures(2, 3, 64, 64), "discriminator").arch.d_form == "lindernoren"


@pytest.mark.parametrize(("net", "input_first"), [(their_patchgan(nc=5, norm="batch"), True), (their_pixelgan(nc=5), True), (lindernoren_critic(5), False)])
def test_a_conditional_critic_sees_input_and_output_side_by_side(reads, tmp_path, net, input_first):
    inputs, images = pictures(2, 2, 64, 64), pictures(2, 3, 64, 64, seed=1)
    both = torch.cat([inputs, images] if input_first else [images, inputs], 1)
    reads(net, both, "discriminator")
    critic = gancompress.load(str(tmp_path / "latest_net_G.pth"), part="discriminator")
    assert critic(images, inputs).equal(critic(both))
    with pytest.raises(ValueError, match=re.escape("5 channels, the images have 3: give the generator's input images (N, 2, H, W) as condition")):
        critic(images)
    with pytest.raises(ValueError, match="condition has shape"):
        critic(images, inputs[:, :, :32])
    with pytest.raises(ValueError, match="condition has shape"):
        critic(images, torch.tensor([0, 1]))


def test_too_many_channels_are_refused():
    critic = RESNET.discriminator(RESNET.build_arch(None, {"width": 4}))
    with pytest.raises(ValueError, match="takes 3 channels, the images have 4"):
        critic(pictures(1, 4, 64, 64))


def test_a_patchgan_joins_the_generator_beside_it(tmp_path):
    torch.save(their_resnet().state_dict(), tmp_path / "latest_net_G.pth")
    critic = their_patchgan()
    torch.save(critic.state_dict(), tmp_path / "latest_net_D.pth")
    gan = load_gan(str(tmp_path))
    assert gan.family.name == "resnet"
    x = pictures(2, 3, 32, 32)
    torch.testing.assert_close(gan.discriminator(x), critic(x).flatten(1), **CLOSE)
    torch.save(their_unet().state_dict(), tmp_path / "latest_net_G.pth")
    gan = load_gan(str(tmp_path))
    assert (gan.family.name, gan.discriminator is not None) == ("unet", True)


@pytest.mark.parametrize("bias", [False, True])
def test_a_dcgan_s_discriminator_of_the_same_names_stays_one(tmp_path, bias):
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1, bias=bias), nn.BatchNorm2d(8))
    net.extend([nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, bias=bias)])
    torch.save({f"model.{k}": t for k, t in net.state_dict().items()}, tmp_path / "D.pth")
    assert find(str(tmp_path / "D.pth")).family.name == "dcgan"


def test_a_critic_under_a_gradient_penalty_gets_instance_norm():
    arch = UNET.batch_free(UNET.build_arch(None, {}))
    assert (arch.d_norm, arch.d_bias) == ("instance", True)
    assert UNET.batch_free(arch) == arch


# --------------------------------------------------------------------------------------------------------------- two generators


@pytest.fixture
def cyclegan(tmp_path):
    for i, name in enumerate(("G_A", "G_B")):
        torch.save(their_resnet(w=4 + 2 * i).state_dict(), tmp_path / f"latest_net_{name}.pth")
        torch.save(their_patchgan(w=4 + i).state_dict(), tmp_path / f"latest_net_D_{'AB'[i]}.pth")
    return tmp_path


def test_a_cyclegan_s_folder_is_refused_and_its_files_are_taken_by_name(cyclegan):
    """Trap: which direction a generator translates is in no file."""
    with pytest.raises(UsageError, match=r"2 generators here: latest_net_G_A.pth and latest_net_G_B.pth") as caught:
        gancompress.load(str(cyclegan))
    assert "name the file" in caught.value.hint
    with pytest.raises(UsageError, match="2 generators"):
        load_gan(str(cyclegan), discriminator=str(cyclegan / "latest_net_D_A.pth"))
    for name, width in (("A", 4), ("B", 6)):
        gan = load_gan(str(cyclegan / f"latest_net_G_{name}.pth"), discriminator=str(cyclegan / f"latest_net_D_{name}.pth"))
        assert gan.arch.g_widths[0] == width
        assert gan.arch.d_widths[0] == (4 if name == "A" else 5)


def test_the_latest_of_a_run_goes_before_numbered_ones(tmp_path):
    """Trap: a run keeps 5_net_G.pth, iter_900_net_G.pth and latest_net_G.pth; users rename files by hand too."""
    for name, width in (("5_net_G", 2), ("200_net_G", 4), ("iter_900_net_G", 6), ("latest_net_G", 8)):
        torch.save(their_resnet(w=width).state_dict(), tmp_path / f"{name}.pth")
    assert load_gan(str(tmp_path)).arch.g_widths[0] == 8
    (tmp_path / "latest_net_G.pth").rename(tmp_path / "horse2zebra.pt")
    assert load_gan(str(tmp_path / "horse2zebra.pt")).arch.g_widths[0] == 8


# ------------------------------------------------------------------------------------------------------------- what does not fit

BROKEN = {
    "resnet": (RESNET, their_resnet(norm="batch").state_dict()),
    "mobile": (RESNET, their_resnet(separable=True, dropout=True).state_dict()),
    "affine": (RESNET, their_resnet(norm="affine", name="block").state_dict()),
    "upsampled": (RESNET, their_resnet(up="bilinear").state_dict()),
    "unet": (UNET, their_unet().state_dict()),
    "instance": (UNET, their_unet(norm="instance").state_dict()),
    "lindernoren": (UNET, LindernorenUnet((4, 8, 8), 3, 3).state_dict()),
    "patchgan": (UNET, their_patchgan(norm="batch").state_dict()),
    "pixelgan": (UNET, their_pixelgan().state_dict()),
    "critic": (UNET, lindernoren_critic().state_dict()),
}


#: without its last convolution a discriminator is none we know, and this bias is one of two forms
OPTIONAL = {"patchgan": ["model.11.weight"], "pixelgan": ["net.5.weight"], "critic": ["model.12.weight", "model.12.bias"]}


@pytest.mark.parametrize("case", BROKEN)
def test_every_missing_key_and_wrong_shape_is_named(case):
    family, state = BROKEN[case]
    for key in state:
        if not key.endswith("num_batches_tracked") and key not in OPTIONAL.get(case, []):
            with pytest.raises(Mismatch, match=rf"^{re.escape(key)} is missing") as caught:
                family.read({k: t for k, t in state.items() if k != key}, {})
            assert caught.value.score > 0.9
            for wrong in (state[key].new_zeros(*state[key].shape, 2), state[key].new_zeros(0)):
                with pytest.raises(Mismatch, match=re.escape(key)):
                    family.read({**state, key: wrong}, {})


@pytest.mark.parametrize("case", BROKEN)
def test_an_unexpected_key_is_named(case):
    family, state = BROKEN[case]
    extra = f"{min(state).split('.')[0]}.0.gamma"
    with pytest.raises(Mismatch, match=f"unexpected key {extra}"):
        family.read({**state, extra: torch.zeros(3)}, {})


def test_a_broken_file_is_named_by_its_own_family(tmp_path):
    state = their_unet().state_dict()
    del state["model.model.1.model.5.weight"]
    torch.save(state, tmp_path / "G.pth")
    with pytest.raises(CheckpointError, match=r"nearest family unet: model.model.1.model.5.weight is missing"):
        gancompress.load(str(tmp_path / "G.pth"))
    state = their_resnet().state_dict()
    del state["model.12.weight"]
    torch.save(state, tmp_path / "G.pth")
    with pytest.raises(CheckpointError, match=r"nearest family resnet: model.12.weight is missing"):
        gancompress.load(str(tmp_path / "G.pth"))


HOSTILE = {
    "far blocks": {"model.10.conv_block.1.weight": torch.zeros(4, 4, 3, 3), "model.9999.conv_block.1.weight": torch.zeros(4, 4, 3, 3)},
    "late first block": {"model.9999.conv_block.1.weight": torch.zeros(4, 4, 3, 3)},
    "no width": {"model.10.conv_block.1.weight": torch.zeros(0, 4, 3, 3)},
    "a block of nothing": {"model.10.conv_block.1.weight": torch.tensor(0.0)},
    "deep": {"model.model.1." + "model.3." * 5000 + "model.1.weight": torch.zeros(1, 1, 4, 4)},
    "nested nonsense": {"model.model.1.model.x": torch.zeros(1)},
    "scalars": {"model.model.0.weight": torch.tensor(1.0), "model.model.1.model.1.weight": torch.tensor(1.0)},
    "many downs": {f"down{i}.model.0.weight": torch.zeros(1, 1, 4, 4) for i in range(1, 400)} | {"final.2.weight": torch.zeros(1, 2, 4, 4)},
    "zero channels": {f"model.{i}.weight": torch.zeros(0 if i == 5 else 1, 1, 4, 4) for i in (0, 2, 5, 8)} | {"model.0.bias": torch.zeros(1)},
    "nothing": {},
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("family", [UNET, RESNET], ids=["unet", "resnet"])
def test_nonsense_is_a_mismatch(family, case):
    with pytest.raises(Mismatch):
        family.read(HOSTILE[case], {"config": {"nc": object()}})


# ------------------------------------------------------------------------------------------------------------ sizes and settings


@pytest.mark.parametrize(("family", "fields", "good", "bad"), [("unet", {"g_widths": (4, 4, 4), "resolution": 8}, 24, 20), ("resnet", {"width": 4}, 20, 18)])
def test_any_valid_size_runs_and_others_are_refused(family, fields, good, bad):
    """Trap: a translator has no resolution of its own, only a step."""
    record = FAMILIES[family]
    net = record.generator(record.build_arch(None, fields)).eval()
    assert net(pictures(1, 3, good, 2 * good)).shape == (1, 3, good, 2 * good)
    with pytest.raises(ValueError, match=f"images of {good} x {bad}: this network takes multiples of"):
        net(pictures(1, 3, good, bad))
    with pytest.raises(ValueError, match="translates images"):
        net(pictures(1, 4, good, good))
    with pytest.raises(UsageError, match=f"resolution {bad}"):
        record.build_arch(None, {**fields, "resolution": bad})


def test_size_is_another_word_for_resolution(tmp_path):
    gan = small_gan("resnet", SMALL["resnet"][0])
    save_networks(tmp_path / "g.safetensors", gan.family, gan.arch, gan.networks, {})
    assert gancompress.load(tmp_path / "g.safetensors", size=2 * gan.arch.resolution).arch.resolution == 2 * gan.arch.resolution


def test_resolution_is_a_setting_and_changes_no_tensor(tmp_path):
    torch.save(their_resnet().state_dict(), tmp_path / "G.pth")
    assert find(str(tmp_path / "G.pth")).arch.resolution == 256
    gan = load_gan(str(tmp_path / "G.pth"), options={"resolution": "64"})
    assert gan.sample(2, torch.Generator().manual_seed(0))[0].shape == (2, 3, 64, 64)
    with pytest.raises(UsageError, match="resolution 30"):
        load_gan(str(tmp_path / "G.pth"), options={"resolution": "30"})
    with pytest.raises(UsageError, match="statistics='mine'"):
        load_gan(str(tmp_path / "G.pth"), options={"statistics": "mine"})


@pytest.mark.parametrize("family", ["unet", "resnet"])
def test_a_fresh_translator_starts_from_the_papers_numbers(family):
    record = FAMILIES[family]
    torch.manual_seed(0)
    arch = record.build_arch(None, {"width": 16, "resolution": 64, "g_norm": "batch"})
    assert not arch.g_bias
    for part in ("generator", "discriminator"):
        for key, tensor in getattr(record, part)(arch).named_parameters():
            if tensor.ndim == 4 and tensor.numel() > 2000:
                assert 0.018 < tensor.std() < 0.022, key
            elif key.endswith("norm.weight"):
                assert 0 < tensor.std() < 0.04
                assert 0.97 < tensor.mean() < 1.03
            elif key.endswith("bias"):
                assert not tensor.any()


@pytest.mark.parametrize(
    ("record", "values", "expected"),
    [
        (UNET, {"resolution": 64}, {"g_widths": (64, 128, 256, 512, 512, 512), "d_bias": False}),
        (UNET, {"nc": 1}, {"d_nc": 1}),
        (UNET, {"g_norm": "instance", "d_norm": "instance"}, {"g_bias": True, "d_bias": True}),
        (UNET, {"d_form": "pixel", "d_width": 8}, {"d_widths": (8, 16)}),
        (RESNET, {"resolution": 128}, {"blocks": 6}),
        (RESNET, {"width": 8, "d_width": 4}, {"g_widths": (8, 16, 32), "d_widths": (4, 8, 16, 32), "blocks": 9}),
        (RESNET, {"d_norm": "batch", "d_form": "pixel"}, {"d_bias": False, "d_last_bias": False, "d_widths": (64, 128)}),
    ],
)
def test_what_follows_from_the_fields_given(record, values, expected):
    arch = record.build_arch(None, values)
    assert {k: getattr(arch, k) for k in expected} == expected
    assert record.build_arch(arch, {}) == arch


@pytest.mark.parametrize(
    "values",
    [
        {"nz": 4},
        {"classes": 2},
        {"nc": 0},
        {"d_widths": (4,)},
        {"d_widths": (4, 0)},
        {"g_widths": (4,)},
        {"g_widths": (4, 0)},
        {"width": 0},
        {"width": "wide"},
        {"d_width": -1},
        {"resolution": 0},
    ],
)
@pytest.mark.parametrize("record", [UNET, RESNET], ids=["unet", "resnet"])
def test_impossible_architectures_are_refused(record, values):
    with pytest.raises(UsageError):
        record.build_arch(None, values)
