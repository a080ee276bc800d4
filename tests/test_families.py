from itertools import pairwise

import pytest
import torch
from conftest import make_gan, named, randomise, sequential_discriminator, sequential_generator
from torch import nn

from gancompress.cost import generator_cost
from gancompress.errors import UsageError
from gancompress.families import dcgan, mlp
from gancompress.gan import Mismatch

DCGAN, MLP = dcgan.FAMILY, mlp.FAMILY
LATENTS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def widths_for(resolution):
    """Three, four, five ... channels, wider towards the latent, all different."""
    hidden = (resolution // 4).bit_length() - 1
    return tuple(range(hidden + 2, 2, -1))


def rebuilt(state, family=DCGAN, **options):
    """The network that family's reader makes of a foreign state dict, and the Reading."""
    reading = family.read(state, options)
    arch = family.build_arch(None, reading.fields)
    net = getattr(family, reading.part)(arch)
    net.load_state_dict(reading.state)
    return net.eval().requires_grad_(False), reading


def images(resolution, nc=3, n=2):
    return torch.rand(n, nc, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("d", "parameters"),
    [(2, 28351), (4, 62077), (8, 145657), (16, 377329), (32, 1098721), (48, 2164177), (64, 3573697), (128, 12652417), (256, 47324929)],
)
def test_the_paper_s_generator_of_width_d_has_its_published_number_of_parameters(d, parameters):
    arch = DCGAN.build_arch(None, {"nc": 1, "width": d, "g_bias": True, "g_norm": "batch-noaffine"})
    assert generator_cost(DCGAN, arch).parameters == parameters


def test_the_canonical_generator_has_3576704_parameters():
    assert generator_cost(DCGAN, DCGAN.build_arch(None, {})).parameters == 3_576_704


def test_the_canonical_generator_s_macs_are_those_worked_out_by_hand():
    cost = generator_cost(DCGAN, DCGAN.build_arch(None, {}))
    per_position = (100 * 512 * 16, 512 * 256 * 16, 256 * 128 * 16, 128 * 64 * 16, 64 * 3 * 16)
    sides = (1, 4, 8, 16, 32, 64)
    assert cost.macs_in == sum(n * side**2 for n, side in zip(per_position, sides[:-1], strict=True)) == 104_628_224
    assert cost.macs_out == sum(n * side**2 for n, side in zip(per_position, sides[1:], strict=True)) == 428_343_296


@pytest.mark.parametrize("family", ["dcgan", "mlp"])
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_family_reads_its_own_networks_back(family, part):
    gan = make_gan(family, resolution=16, nc=3, g_widths=(8, 4), d_widths=(4, 8))
    net, reading = rebuilt(gan.networks[part].state_dict(), gan.family)
    assert reading.part == part
    given = gan.sample(2, torch.Generator().manual_seed(0))[0] if part == "generator" else images(16)
    assert net(given).equal(gan.networks[part](given))


# ------------------------------------------------------------------------------------------------------ the reader: generators


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("nc", [1, 3])
def test_a_generator_under_pytorch_examples_names_gives_the_same_images(resolution, nc):
    original = sequential_generator(6, widths_for(resolution), nc)
    net, reading = rebuilt(named(original))
    assert reading.part == "generator"
    assert reading.fields["resolution"] == resolution
    assert (reading.fields["nz"], reading.fields["nc"], reading.fields["g_widths"]) == (6, nc, widths_for(resolution))
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["batch", "batch-noaffine", "none"])
@pytest.mark.parametrize("dropout", [False, True])
def test_biases_norms_and_dropout_are_read_from_the_tensors_alone(bias, norm, dropout):
    original = sequential_generator(6, (8, 6, 4), 3, bias=bias, norm=norm, dropout=dropout)
    net, reading = rebuilt(named(original))
    assert (reading.fields["g_bias"], reading.fields["g_norm"]) == (bias, norm)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


@pytest.mark.parametrize("widths", [(8, 6, 4), (5, 5, 5)])
def test_names_do_not_matter_where_the_order_of_the_file_tells(widths):
    original = sequential_generator(6, widths, 3)
    places = dict.fromkeys(key.split(".")[0] for key in original.state_dict())
    names = dict(zip(places, ["zeta", "alpha", "mid", "beta", "omega", "gamma", "kappa"], strict=True))
    state = {names[key.split(".")[0]] + "." + key.split(".")[1]: tensor for key, tensor in original.state_dict().items()}
    net, _ = rebuilt(state)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


@pytest.mark.parametrize("widths", [(9, 8, 7, 6, 5), (5, 5, 5, 5, 5)])
def test_a_file_sorted_by_bytes_is_read_in_the_order_of_its_numbers(widths):
    original = sequential_generator(6, widths, 3)
    state = dict(sorted(named(original).items()))
    assert list(state)[1].startswith("main.1."), "main.10 lies before main.3 in such a file"
    net, _ = rebuilt(state)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


def test_files_from_before_num_batches_tracked_are_read():
    original = sequential_generator(6, (8, 4), 1)
    state = {k: t for k, t in named(original).items() if not k.endswith("num_batches_tracked")}
    net, _ = rebuilt(state)
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)


def test_a_bias_on_the_last_convolution_alone_is_kept():
    original = sequential_generator(6, (8, 4), 1)
    original[-2].bias = nn.Parameter(torch.tensor([0.3]), requires_grad=False)
    net, reading = rebuilt(named(original))
    torch.testing.assert_close(net(LATENTS), original(LATENTS[:, :, None, None]), **CLOSE)
    assert any("bias of zero" in a or "one of zero" in a for a in reading.assumptions)


def test_one_hot_classes_are_the_last_inputs_of_the_first_layer():
    original = sequential_generator(6, (8, 4), 1)
    net, reading = rebuilt(named(original), classes=2)
    assert (reading.fields["nz"], reading.fields["classes"]) == (4, 2)
    z, labels = LATENTS[:, :4], torch.tensor([1, 0, 1])
    expected = original(torch.cat([z, torch.eye(2)[labels]], 1)[:, :, None, None])
    torch.testing.assert_close(net(z, labels), expected, **CLOSE)


@pytest.mark.parametrize("classes", [6, 7, -1])
def test_more_classes_than_inputs_are_refused(classes):
    with pytest.raises(UsageError, match=f"classes={classes}"):
        DCGAN.read(named(sequential_generator(6, (8, 4), 1)), {"classes": classes})


# -------------------------------------------------------------------------------------------------- the reader: discriminators


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("nc", [1, 3])
def test_a_discriminator_under_pytorch_examples_names_gives_the_same_logits(resolution, nc):
    widths = widths_for(resolution)[::-1]
    original = sequential_discriminator(nc, widths)
    net, reading = rebuilt(named(original))
    assert reading.part == "discriminator"
    assert (reading.fields["resolution"], reading.fields["nc"], reading.fields["d_widths"]) == (resolution, nc, widths)
    x = images(resolution, nc)
    torch.testing.assert_close(net(x), original(x).flatten(), **CLOSE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["batch", "batch-noaffine", "none"])
@pytest.mark.parametrize(("norm_first", "dropout"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("widths", [(4, 6, 8), (5, 5, 5)])
def test_a_discriminator_s_biases_and_norms_are_read_from_the_tensors_alone(bias, norm, norm_first, dropout, widths):
    original = sequential_discriminator(3, widths, bias=bias, norm=norm, norm_first=norm_first, dropout=dropout)
    net, reading = rebuilt(named(original))
    assert (reading.fields["d_bias"], reading.fields["d_norm"]) == (bias, norm)
    x = images(32)
    torch.testing.assert_close(net(x), original(x).flatten(), **CLOSE)


def test_a_conditional_discriminator_takes_its_label_as_constant_channels():
    original = sequential_discriminator(3 + 5, (4, 6))
    net, reading = rebuilt(named(original), classes=5)
    assert (reading.fields["nc"], reading.fields["d_classes"], reading.fields["classes"]) == (3, 5, 5)
    x, labels = images(16), torch.tensor([4, 0])
    maps = torch.eye(5)[labels][:, :, None, None].expand(-1, -1, 16, 16)
    torch.testing.assert_close(net(x, labels), original(torch.cat([x, maps], 1)).flatten(), **CLOSE)


@pytest.mark.parametrize(("nc", "classes"), [(3, 2), (3, 10), (1, 10), (4, 2)])
def test_a_discriminator_of_a_conditional_gan_may_ignore_the_label(nc, classes):
    net, reading = rebuilt(named(sequential_discriminator(nc, (4, 6))), classes=classes)
    assert (reading.fields["nc"], reading.fields["d_classes"]) == (nc, 0)
    assert net.features(images(16, nc))[-1].shape == (2,)


def test_nc_decides_where_a_label_and_a_colour_look_alike():
    state = named(sequential_discriminator(3, (4, 6)))
    fields = DCGAN.read(state, {"classes": 2, "nc": 1}).fields
    assert (fields["nc"], fields["d_classes"]) == (1, 2)


@pytest.mark.parametrize("norms_last", [False, True])
def test_norms_declared_after_all_convolutions_find_theirs(norms_last):
    original = sequential_discriminator(3, (5, 5, 5))
    convs = {f"conv{i}.weight": original[n].weight for i, n in enumerate((0, 2, 5, 8))}
    norms = {f"bn{i}.{leaf}": t for i, n in enumerate((3, 6), 1) for leaf, t in original[n].state_dict().items()}
    net, _ = rebuilt({**convs, **norms} if norms_last else {**norms, **convs})
    torch.testing.assert_close(net(images(32)), original(images(32)).flatten(), **CLOSE)


# -------------------------------------------------------------------------------------------------------- what is no such network


def broken(change):
    state = named(sequential_generator(6, (8, 6, 4), 3))
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: s.pop("main.3.weight"), "main.3.weight"),
        (lambda s: s.pop("main.4.running_var"), "main.4.running_var"),
        (lambda s: s.pop("main.4.weight"), "main.4.weight"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("main.4.")], "main.3"),
        (lambda s: s.update({"main.3.weight": torch.zeros(8, 7, 4, 4)}), "main.3.weight"),
        (lambda s: s.update({"main.3.weight": torch.zeros(8, 6, 3, 3)}), "main.3.weight"),
        (lambda s: s.update({"main.4.running_mean": torch.zeros(7)}), "main.4.running_mean"),
        (lambda s: s.update({"main.4.bias": torch.zeros(7)}), "main.4.bias"),
        (lambda s: s.update({"main.0.bias": torch.zeros(7)}), "main.0.bias"),
        (lambda s: s.update({"attention.gamma.weight": torch.zeros(2, 2)}), "attention"),
        (lambda s: s.update({"main.7.gamma": torch.zeros(4)}), "main.7.gamma"),
    ],
)
def test_what_does_not_fit_a_dcgan_is_named(change, names):
    with pytest.raises(Mismatch, match=names.replace(".", r"\.")):
        DCGAN.read(broken(change), {})


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"resolution": 12}, "12"),
        ({"resolution": 4}, "resolution 4"),
        ({"resolution": 8, "g_widths": (4, 4)}, "g_widths"),
        ({"resolution": 8, "g_widths": (0,)}, "g_widths"),
        ({"nz": 0}, "nz=0"),
        ({"g_norm": "layer"}, "g_norm"),
        ({"widht": 4}, "width|no field 'widht'"),
        ({"width": 0}, "width=0"),
        ({"width": "wide"}, "width"),
        ({"g_bias": "perhaps"}, "g_bias"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused_with_its_field(fields, names):
    with pytest.raises(UsageError, match=names):
        DCGAN.build_arch(None, fields)


# ------------------------------------------------------------------------------------------------------------------------- mlp


def chain(*sizes, activation=nn.ReLU):
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())][:-1]
    return randomise(nn.Sequential(*layers), 3)


@pytest.mark.parametrize("output", ["tanh", "linear"])
@pytest.mark.parametrize("order", [lambda s: s, lambda s: dict(sorted(s.items()))])
def test_an_mlp_generator_gives_the_same_images(output, order):
    original = chain(6, 8, 8, 8, 8, 8, 3 * 64)
    _, reading = rebuilt(order(named(original)), MLP)
    assert (reading.fields["resolution"], reading.fields["nc"]) == (8, 3)
    net = MLP.generator(MLP.build_arch(None, {**reading.fields, "output": output}))
    net.load_state_dict(reading.state)
    expected = original(LATENTS).unflatten(1, (3, 8, 8))
    torch.testing.assert_close(net(LATENTS).detach(), expected.tanh() if output == "tanh" else expected, **CLOSE)


def test_an_mlp_discriminator_gives_the_same_logits():
    original = chain(3 * 64, 6, 5, 1, activation=lambda: nn.LeakyReLU(0.2))
    net, reading = rebuilt(named(original), MLP)
    assert reading.part == "discriminator"
    torch.testing.assert_close(net(images(8)), original(images(8).flatten(1)).flatten(), **CLOSE)


def test_an_mlp_s_channels_can_be_told():
    assert MLP.read(named(chain(6, 8, 3 * 64 * 4)), {}).fields["nc"] == 3
    assert MLP.read(named(chain(6, 8, 4 * 256)), {"nc": 4}).fields["resolution"] == 16
    with pytest.raises(Mismatch, match="no square image"):
        MLP.read(named(chain(6, 8, 5)), {})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: s.pop("main.2.bias"), "main.2.bias"),
        (lambda s: s.pop("main.2.weight"), "main.2|does not feed|unexpected"),
        (lambda s: s.update({"main.2.weight": torch.zeros(7, 5)}), "main.2.weight"),
        (lambda s: s.update({"main.2.bias": torch.zeros(5)}), "main.2.bias"),
    ],
)
def test_what_does_not_fit_an_mlp_is_named(change, names):
    state = named(chain(6, 8, 7, 64))
    change(state)
    with pytest.raises(Mismatch, match=names.replace(".", r"\.")):
        MLP.read(state, {})
