"""The formats of DCGAN and MLP files, with the traps each sets: WassersteinGAN, pytorch_GAN_zoo, huggan."""

import json
import random
import sys
import time
import types

import pytest
import torch
from conftest import named, randomise, sequential_discriminator, sequential_generator, wgan_named, zoo_named
from safetensors.torch import save_file
from test_families import CLOSE, DCGAN, LATENTS, MLP, broken, chain, images, rebuilt

import gancompress
from gancompress.errors import CheckpointError, UsageError
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan


def by_bytes(state):
    """The order a safetensors file has."""
    return dict(sorted(state.items()))


orders = pytest.mark.parametrize("order", [dict, by_bytes], ids=["as written", "sorted by bytes"])

# ---------------------------------------------------------------------------------------------------------------- WassersteinGAN


def test_wassersteingan_s_names_are_those_of_its_own_files():
    """Holds ``wgan_named`` to upstream's names: DCGAN_G of 32 pixels with one extra layer."""
    keys = [k for k in wgan_named(sequential_generator(100, (256, 128, 64), 3, extra=1)) if k.endswith("weight")]
    assert keys == [
        "main.initial:100-256:convt.weight", "main.initial:256:batchnorm.weight", "main.pyramid:256-128:convt.weight", "main.pyramid:128:batchnorm.weight",
        "main.pyramid:128-64:convt.weight", "main.pyramid:64:batchnorm.weight", "main.extra-layers-0:64:conv.weight",
        "main.extra-layers-0:64:batchnorm.weight", "main.final:64-3:convt.weight",
    ]  # fmt: skip


@orders
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_a_wassersteingan_generator_gives_the_same_images(order, norm, extra):
    original = sequential_generator(6, (16, 8, 4), 3, norm=norm, extra=extra)
    net, reading = rebuilt(order(wgan_named(original)))
    assert (reading.part, reading.fields["resolution"], reading.fields["g_extra"]) == ("generator", 32, extra)
    assert reading.fields["g_widths"] == (16, 8, 4)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


@orders
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_a_wassersteingan_critic_gives_each_image_its_value(order, norm, extra):
    original = sequential_discriminator(3, (4, 8, 16), norm=norm, extra=extra)
    net, reading = rebuilt(order(wgan_named(original)))
    assert (reading.part, reading.fields["resolution"], reading.fields["d_extra"]) == ("discriminator", 32, extra)
    assert reading.fields["d_widths"] == (4, 8, 16)
    x = images(32, n=3)
    torch.testing.assert_close(net(x), original(x).flatten(), **CLOSE)
    torch.testing.assert_close(net(x)[:1], net(x[:1]), **CLOSE)  # upstream's forward is the mean over the batch


def test_a_latent_as_wide_as_a_layer_does_not_mix_up_a_sorted_file():
    original = sequential_generator(4, (16, 8, 4), 3, extra=2)
    net, _ = rebuilt(by_bytes(wgan_named(original)))
    torch.testing.assert_close(net(LATENTS[:, :4]), original(LATENTS[:, :4, None, None]), **CLOSE)


@pytest.mark.parametrize("seed", range(12))
def test_chains_of_any_size_are_read_from_any_of_the_formats(seed):
    """Random widths, depths, extra layers, norms and biases."""
    rng = random.Random(seed)
    widths = tuple(4 << i for i in reversed(range(rng.randint(1, 4))))
    kinds = {"norm": rng.choice(["batch", "none"]), "extra": rng.randint(0, 2)}
    g = sequential_generator(rng.randint(2, 9), widths, rng.choice([1, 3, 4]), seed=seed, **kinds)
    d = sequential_discriminator(rng.choice([1, 3, 4]), widths[::-1], seed=seed, **kinds)
    z, x = torch.randn(2, g[0].in_channels), images(4 << len(widths), d[0].in_channels)
    for spell in (wgan_named, named):
        for order in (dict, by_bytes):
            torch.testing.assert_close(rebuilt(order(spell(g)))[0](z), g(z[:, :, None, None]), **CLOSE)
            torch.testing.assert_close(rebuilt(order(spell(d)))[0](x), d(x).flatten(), **CLOSE)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: s.update({"main.6.weight": torch.zeros(4, 4, 5, 5)}), r"main\.6\.weight.*4x4, or 3x3"),
        (lambda s: s.update({"main.9.weight": torch.zeros(4, 4, 3, 3), "main.9.bias": torch.zeros(4)}), r"main\.9\.weight.*before a generator's last layer"),
    ],
)
def test_a_kernel_of_another_size_or_in_another_place_is_named(change, names):
    with pytest.raises(Mismatch, match=names):
        DCGAN.read(broken(change), {})


def test_a_critic_with_a_small_kernel_in_the_wrong_place_is_named():
    state = named(sequential_discriminator(3, (4, 8)))
    state = {**{k: t for k, t in state.items() if k != "main.5.weight"}, "main.4b.weight": torch.zeros(8, 8, 3, 3), "main.5.weight": state["main.5.weight"]}
    with pytest.raises(Mismatch, match=r"main\.4b\.weight.*after a discriminator's first layer"):
        DCGAN.read(state, {})


@pytest.fixture
def wgan_run(tmp_path):
    """A folder as WassersteinGAN's main.py leaves it."""

    def write(g, d=None, **config):
        told = {"imageSize": 16, "nz": 6, "nc": 3, "ngf": 4, "ngpu": 1, "n_extra_layers": 0, "noBN": False, "mlp_G": False}
        (tmp_path / "generator_config.json").write_text(json.dumps(told | config))
        torch.save(g, tmp_path / "netG_epoch_3.pth")
        if d:
            torch.save(d, tmp_path / "netD_epoch_3.pth")
        return tmp_path

    return write


@pytest.mark.parametrize("nc", [1, 3])
def test_an_mlp_of_wassersteingan_ends_linear_and_its_critic_has_relus(wgan_run, nc):
    g, d = chain(6, 8, 8, 8, nc * 256), chain(nc * 256, 5, 5, 5, 1)
    gan = load_gan(str(wgan_run(named(g), named(d), mlp_G=True, nc=nc)))
    assert (gan.arch.nc, gan.arch.resolution, gan.arch.output, gan.arch.d_activation) == (nc, 16, "linear", "relu")
    torch.testing.assert_close(gan.generator(LATENTS), g(LATENTS).unflatten(1, (nc, 16, 16)), **CLOSE)
    assert gan.generator(LATENTS).abs().max() > 1
    torch.testing.assert_close(gan.discriminator(images(16, nc)), d(images(16, nc).flatten(1)).flatten(), **CLOSE)


def test_an_mlp_s_channels_are_those_its_config_tells(wgan_run):
    g = named(chain(6, 8, 8, 8, 4 * 256))
    assert find(str(wgan_run(g, mlp_G=True, nc=1, imageSize=32))).arch.nc == 1
    assert find(str(wgan_run(g, mlp_G=True, nc=4, imageSize=16))).arch.nc == 4


@pytest.mark.parametrize(
    "config", [{"nc": "three"}, {"nc": -4, "imageSize": -16}, {"nc": True}, {"imageSize": [16]}, {"nc": 0}, {"nc": 10**30, "imageSize": 1}, {"nc": None}]
)
def test_a_config_that_says_nonsense_is_no_hint(wgan_run, config):
    arch = find(str(wgan_run(named(chain(6, 8, 8, 8, 3 * 256)), mlp_G="yes", **config))).arch
    assert (arch.nc, arch.resolution) == (3, 16)
    arch = find(str(wgan_run(wgan_named(sequential_generator(6, (8, 4), 3)), n_extra_layers="none", noBN=3, **config))).arch
    assert (arch.nc, arch.resolution, arch.g_extra, arch.g_norm) == (3, 16, 0, "batch")


def test_names_and_sizes_tell_wassersteingan_s_mlp_where_no_config_lies_beside():
    wgan, other = chain(6, 8, 8, 8, 3 * 64), chain(6, 8, 9, 8, 3 * 64)
    assert MLP.read(named(wgan), {}).fields["output"] == "linear"
    assert MLP.read(named(other), {}).fields["output"] == "tanh"
    assert MLP.read(named(wgan, "layers."), {}).fields["output"] == "tanh"
    assert any("--reader output=tanh" in a for a in MLP.read(named(wgan), {}).assumptions)
    assert MLP.read(named(chain(192, 8, 8, 8, 1)), {}).fields["d_activation"] == "relu"
    assert MLP.read(named(chain(192, 8, 8, 1)), {}).fields["d_activation"] == "leaky_relu"


def test_what_the_user_says_of_activations_counts_before_names(tmp_path):
    torch.save(named(g := chain(6, 8, 8, 8, 3 * 64)), tmp_path / "g.pth")
    torch.testing.assert_close(gancompress.load(tmp_path / "g.pth", output="tanh")(LATENTS), g(LATENTS).unflatten(1, (3, 8, 8)).tanh(), **CLOSE)


def test_a_critic_of_another_family_leaves_the_generator_alone(wgan_run):
    found = find(str(wgan_run(wgan_named(sequential_generator(6, (8, 4), 3)), named(chain(768, 8, 8, 8, 1)))))
    assert found.family.name == "dcgan"
    assert any("mlp discriminator, left aside" in other for other in found.others)


@pytest.mark.parametrize(
    ("family", "part", "fields", "values"),
    [
        (DCGAN, "generator", {}, 3_578_628),
        (DCGAN, "generator", {"g_extra": 1}, 3_615_749),
        (DCGAN, "generator", {"g_norm": "none"}, 3_574_784),
        (DCGAN, "discriminator", {}, 2_767_363),
        (MLP, "generator", {"resolution": 64}, 6_880_768),
        (DCGAN, "generator", {"nz": 64, "nc": 3}, 3_283_716),  # pytorch_GAN_zoo's
    ],
)
def test_upstream_s_own_sizes_have_as_many_values_as_upstream_s_files(family, part, fields, values):
    """Counts, buffers included, of state dicts that the upstream classes gave."""
    with torch.device("meta"):
        net = getattr(family, part)(family.build_arch(None, fields))
    assert sum(t.numel() for t in net.state_dict().values()) == values


# ---------------------------------------------------------------------------------------------------------------- pytorch_GAN_zoo


def test_the_zoo_s_names_are_those_of_its_own_files():
    """Holds ``zoo_named`` to upstream's names, D's which count downwards and lie about their kind above all."""
    g = [k for k in zoo_named(sequential_generator(64, (64, 32, 16), 3)) if k.endswith("weight")]
    assert g == [
        "formatLayer.weight", "main.batchNorm0.weight", "main.convTranspose1.weight", "main.batchNorm1.weight", "main.convTranspose2.weight",
        "main.batchNorm2.weight", "main.outlayer.weight",
    ]  # fmt: skip
    d = [k for k in zoo_named(sequential_discriminator(3, (16, 32, 64))) if k.endswith("weight")]
    assert d == [
        "main.convTranspose2.weight", "main.convTranspose1.weight", "main.batchNorm1.weight", "main.convTranspose0.weight", "main.batchNorm0.weight",
        "decisionLayer.weight",
    ]  # fmt: skip


@orders
@pytest.mark.parametrize("widths", [(16, 8, 4), (5, 5, 5)])
def test_the_zoo_s_dcgan_gives_the_same_images_and_logits(order, widths):
    g, d = sequential_generator(6, widths, 3), sequential_discriminator(3, widths[::-1])
    net, reading = rebuilt(order(zoo_named(g)))
    assert (reading.part, reading.fields["nz"], reading.fields["resolution"]) == ("generator", 6, 32)
    torch.testing.assert_close(net(LATENTS), g(LATENTS[:, :, None, None]), **CLOSE)
    net, reading = rebuilt(order(zoo_named(d)))
    assert (reading.part, reading.fields["d_widths"]) == ("discriminator", widths[::-1])
    torch.testing.assert_close(net(images(32)), d(images(32)).flatten(), **CLOSE)


@orders
def test_a_zoo_critic_without_norms_is_no_generator_of_one_latent(order):
    d = sequential_discriminator(3, (4, 8, 16), norm="none")
    net, reading = rebuilt(order(zoo_named(d)))
    assert reading.part == "discriminator"
    torch.testing.assert_close(net(images(32)), d(images(32)).flatten(), **CLOSE)


class BaseConfig:
    """Stands for models.utils.config.BaseConfig, which is pickled into the zoo's files."""


@pytest.fixture
def zoo_file(tmp_path, monkeypatch):
    """A .pth as DCGAN.save of the zoo writes it, its config a pickled object of a class we do not have."""

    def write(g, avg, d, **config):
        monkeypatch.setattr(BaseConfig, "__module__", "models.utils.config")
        settings = BaseConfig()
        vars(settings).update({"dimG": 4, "depth": 1, "categoryVectorDim": 0, "attribKeysOrder": None, "lossCriterion": "DCGAN"} | config)
        with monkeypatch.context() as patch:
            for name in ("models", "models.utils", "models.utils.config"):
                patch.setitem(sys.modules, name, module := types.ModuleType(name))
            module.BaseConfig = BaseConfig
            torch.save({"config": settings, "netG": zoo_named(g), "netD": zoo_named(d), "avgG": zoo_named(avg)}, tmp_path / "default.pt")
        return str(tmp_path / "default.pt")

    return write


NETS = (sequential_generator(6, (8, 4), 3, seed=1), sequential_generator(6, (8, 4), 3, seed=5), sequential_discriminator(3, (4, 8)))


def test_a_zoo_file_gives_the_averaged_generator_and_the_critic(zoo_file):
    g, avg, d = NETS
    gan = load_gan(path := zoo_file(g, avg, d))
    torch.testing.assert_close(gan.generator(LATENTS), avg(LATENTS[:, :, None, None]), **CLOSE)
    torch.testing.assert_close(gan.discriminator(images(16)), d(images(16)).flatten(), **CLOSE)
    torch.testing.assert_close(gancompress.load(path, ema=False)(LATENTS), g(LATENTS[:, :, None, None]), **CLOSE)


@pytest.mark.parametrize(("loss", "output"), [("DCGAN", "tanh"), ("MSE", "tanh"), ("WGANGP", "linear"), ("Logistic", "linear"), (7, "tanh")])
def test_the_zoo_s_loss_tells_the_activation_at_the_end(zoo_file, loss, output):
    g, avg, d = NETS
    path = zoo_file(g, avg, d, lossCriterion=loss)
    before = avg[:-1](LATENTS[:, :, None, None])
    torch.testing.assert_close(gancompress.load(path)(LATENTS), before.tanh() if output == "tanh" else before, **CLOSE)
    torch.testing.assert_close(gancompress.load(path, output="linear")(LATENTS), before, **CLOSE)


@pytest.mark.parametrize("told", ["by the file", "by the user"])
def test_an_ac_gan_of_the_zoo_takes_labels_and_judges_by_its_first_output(zoo_file, told):
    avg, d = NETS[1], sequential_discriminator(3, (4, 8), heads=1 + 2)
    order = {"Gender": {"order": 0, "values": ["M", "W"]}}
    path = zoo_file(NETS[0], avg, d, **({"categoryVectorDim": 2, "attribKeysOrder": order} if told == "by the file" else {}))
    gan = load_gan(path, options={} if told == "by the file" else {"classes": 2})
    assert (gan.arch.nz, gan.arch.classes, gan.arch.d_classes) == (4, 2, 0)
    labels = torch.tensor([1, 0, 1])
    expected = avg(torch.cat([LATENTS[:, :4], torch.eye(2)[labels]], 1)[:, :, None, None])
    torch.testing.assert_close(gan.generator(LATENTS[:, :4], labels), expected, **CLOSE)
    torch.testing.assert_close(gan.discriminator(images(16)), d(images(16))[:, 0].flatten(), **CLOSE)
    assert any("first of 3 outputs" in a for a in find(path, options={} if told == "by the file" else {"classes": 2}).assumptions)


def test_several_attributes_at_once_are_refused_and_named(zoo_file):
    order = {"Gender": {"order": 0, "values": ["M", "W"]}, "Hat": {"order": 1, "values": ["yes", "no"]}}
    with pytest.raises(CheckpointError, match="labels of 2 attributes"):
        load_gan(zoo_file(*NETS, categoryVectorDim=4, attribKeysOrder=order))


@pytest.mark.parametrize("config", [{"categoryVectorDim": "many"}, {"categoryVectorDim": -3}, {"categoryVectorDim": 600}, {"categoryVectorDim": True}])
def test_a_zoo_config_that_does_not_fit_is_no_hint(zoo_file, config):
    assert load_gan(zoo_file(*NETS, **config)).arch.classes == 0


def test_a_critic_of_several_outputs_says_what_it_may_be():
    with pytest.raises(Mismatch, match=r"main\.5\.weight.*ends in one output.*--classes N"):
        DCGAN.read(named(sequential_discriminator(3, (4, 8), heads=4)), {})


# ----------------------------------------------------------------------------------------------------------------------- huggan


@pytest.mark.parametrize("config", [None, {"num_channels": 3, "latent_dim": 6, "hidden_size": 3}, ["not", "settings"]])
@pytest.mark.parametrize("container", ["pytorch_model.bin", "model.safetensors"])
def test_a_huggan_dcgan_is_read_with_or_without_its_config(tmp_path, config, container):
    original = sequential_generator(6, (24, 12, 6, 3), 3)
    state = named(original, "model.")
    assert [k for k in state if state[k].ndim == 4] == [f"model.{i}.weight" for i in (0, 3, 6, 9, 12)]
    torch.save(state, tmp_path / container) if container.endswith("bin") else save_file(state, tmp_path / container)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    net = gancompress.load(tmp_path)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


def test_a_huggan_discriminator_gives_its_logits():
    original = sequential_discriminator(3, (3, 6, 12, 24))
    net, _ = rebuilt(named(original, "model."))
    torch.testing.assert_close(net(images(64)), original(images(64)).flatten(), **CLOSE)


# --------------------------------------------------------------------------------------------------------------- errors, limits


def test_every_missing_and_unexpected_key_of_a_norm_is_known():
    def change(state):
        for leaf in ("running_mean", "running_var"):
            state.pop(f"main.4.{leaf}")

    with pytest.raises(Mismatch) as caught:
        DCGAN.read(broken(change), {})
    assert caught.value.missing == ("main.4.running_mean", "main.4.running_var")
    with pytest.raises(Mismatch) as caught:
        DCGAN.read(broken(lambda s: s.update({"attention.q": torch.zeros(2, 2), "attention.k": torch.zeros(2, 2)})), {})
    assert set(caught.value.unexpected) == {"attention.q", "attention.k"}


def test_a_key_missing_from_a_sorted_wassersteingan_file_is_named():
    state = by_bytes(wgan_named(sequential_generator(6, (16, 8, 4), 3)))
    state.pop("main.pyramid:16-8:convt.weight")
    with pytest.raises(Mismatch, match=r"main\.initial:6-16:convt\.weight \(6, 16, 4, 4\) does not feed main\.pyramid:8-4:convt"):
        DCGAN.read(state, {})


def test_thousands_of_layers_are_refused_at_once():
    state = {f"a{i}.weight": torch.zeros(1, 1, 4, 4) for i in range(5000)} | {f"b{i}.weight": torch.zeros(1) for i in range(5000)}
    start = time.perf_counter()
    with pytest.raises(Mismatch, match="5000 are here"):
        DCGAN.read(state, {})
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("fields", [{"g_extra": -1}, {"d_extra": 80}, {"output": "sine"}])
def test_fields_that_cannot_be_are_refused(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        DCGAN.build_arch(None, fields)


def test_what_no_file_tells_of_a_chain_is_said():
    said = " ".join(DCGAN.read(named(sequential_generator(6, (8, 4), 3)), {}).assumptions)
    for words in ("strides 1 then 2", "ReLU and tanh", "--reader output=linear", "running statistics", "--classes N"):
        assert words in said
    assert "running statistics" not in " ".join(DCGAN.read(named(sequential_generator(6, (8, 4), 3, norm="none")), {}).assumptions)


def test_one_latent_is_read_as_such_where_names_do_not_say_otherwise():
    original = randomise(sequential_generator(1, (8, 4), 3), 3)
    net, reading = rebuilt(named(original))
    assert (reading.part, reading.fields["nz"]) == ("generator", 1)
    torch.testing.assert_close(net(LATENTS[:, :1]), original(LATENTS[:, :1, None, None]), **CLOSE)
