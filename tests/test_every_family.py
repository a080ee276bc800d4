"""What the project relies on in every family. A new family is tested by its entries in SMALL."""

import copy

import numpy as np
import pytest
import torch
from conftest import SMALL, small_gan

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.cost import generator_cost
from gancompress.errors import MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.layers import SpectralNorm
from gancompress.loading import load_gan
from gancompress.scaling import _positions, _sizes, initialise_from
from gancompress.students import ch_mul_for

PARTS = ["generator", "discriminator"]
every = pytest.mark.parametrize(("family", "fields"), [pytest.param(f, v, id=f"{f}{i}") for f, variants in SMALL.items() for i, v in enumerate(variants)])


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


def images_of(gan, n=3):
    with torch.no_grad():
        return gan.generator(*gan.sample(n, rng()))


def has_discriminator(family):
    return FAMILIES[family].has_discriminator


def parts_of(family):
    return PARTS if has_discriminator(family) else PARTS[:1]


def test_every_family_has_small_networks_to_test():
    assert set(SMALL) == set(FAMILIES)


@every
def test_networks_have_the_shapes_and_ranges_the_project_relies_on(family, fields):
    gan = small_gan(family, fields)
    inputs, condition = gan.sample(3, rng())
    assert len(inputs) == 3
    assert (condition is None) == (gan.arch.classes == 0)
    out = images_of(gan)
    assert out.shape == (3, gan.arch.nc, gan.arch.resolution, gan.arch.resolution)
    assert torch.isfinite(out).all()
    assert out.std() > 1e-4
    torch.testing.assert_close(gan.generator(inputs[:1], None if condition is None else condition[:1]), out[:1], rtol=1e-4, atol=1e-5)
    if gan.discriminator is not None:
        found = gan.discriminator.features(out, condition)
        logits = gan.discriminator(out, condition)
        assert logits.shape[0] == 3
        assert logits.ndim == (2 if gan.arch.nz == 0 else 1)  # a translator's critic judges patches
        assert len(found) >= 2
        assert found[-1].equal(logits)


@every
def test_samples_are_a_function_of_the_seed(family, fields):
    gan = small_gan(family, fields)
    first, again, other = (gan.sample(5, rng(s)) for s in (4, 4, 5))
    assert first[0].equal(again[0])
    assert first[1] is None or first[1].equal(again[1])
    assert not first[0].equal(other[0])


@every
def test_a_conditional_generator_depends_on_its_label_and_refuses_bad_ones(family, fields):
    gan = small_gan(family, fields)
    if not gan.arch.classes:
        return
    inputs, _ = gan.sample(2, rng())
    one, two = gan.generator(inputs[:1].expand_as(inputs), torch.tensor([0, 1]))
    assert not one.allclose(two)
    with pytest.raises(ValueError, match="conditional"):
        gan.generator(inputs)
    with pytest.raises(ValueError, match="labels have shape"):
        gan.generator(inputs, torch.tensor([0]))


@every
def test_axes_tell_the_shape_of_every_tensor_at_every_width(family, fields):
    gan = small_gan(family, fields)
    narrow = gan.family.scale(gan.arch, 0.5)
    for part in parts_of(family):
        build = getattr(gan.family, part)
        wide_state, narrow_state = build(gan.arch).state_dict(), build(narrow).state_dict()
        axes = gan.family.axes(gan.arch, part)
        assert set(axes) == set(wide_state) == set(narrow_state)
        wide, slim = _sizes(wide_state, axes), _sizes(narrow_state, axes)
        assert all(1 <= slim[g] <= n for g, n in wide.items())
        assert sum(slim[g] < n for g, n in wide.items()) >= len(wide) / 2
        for key, groups in axes.items():
            assert len(groups) == wide_state[key].ndim, key
            for axis, group in enumerate(groups):
                for state, sizes in ((wide_state, wide), (narrow_state, slim)):
                    whole = state[key].shape[axis]
                    told = wide_state[key].shape[axis] if group is None else len(_positions(group, sizes, {g: torch.arange(n) for g, n in sizes.items()}))
                    assert whole == told, (key, axis)


@every
@pytest.mark.parametrize("how", ["slice", "top-magnitude"])
def test_at_full_width_the_student_is_the_teacher(family, fields, how):
    teacher, student = small_gan(family, fields), small_gan(family, fields, seed=7)
    assert not torch.allclose(images_of(teacher), images_of(student), atol=1e-3)
    initialise_from(teacher.generator, student.generator, teacher.family.axes(student.arch, "generator"), how)
    assert torch.allclose(images_of(teacher), images_of(student), atol=1e-5)


@every
@pytest.mark.parametrize("how", ["slice", "top-magnitude"])
def test_a_narrower_student_takes_its_start_from_the_teacher(family, fields, how):
    teacher = small_gan(family, fields)
    student = small_gan(family, fields, seed=7, ch_mul=0.5)
    before = copy.deepcopy(student.generator.state_dict())
    initialise_from(teacher.generator, student.generator, teacher.family.axes(student.arch, "generator"), how)
    floats = [k for k, t in before.items() if t.is_floating_point() and t.ndim > 1]
    changed = [k for k in floats if not before[k].equal(student.generator.state_dict()[k])]
    assert len(changed) >= 0.9 * len(floats)
    for module in student.generator.modules():
        if isinstance(module, SpectralNorm):
            assert torch.linalg.vector_norm(module.u) == pytest.approx(1, abs=1e-3), "a singular vector of the narrow weight, not a piece of the wide one's"
    assert torch.isfinite(images_of(student)).all()


@every
def test_networks_are_saved_and_loaded_whole(family, fields, tmp_path):
    gan = small_gan(family, fields)
    save_networks(tmp_path / "gan.safetensors", gan.family, gan.arch, gan.networks, {})
    again = load_gan(str(tmp_path / "gan.safetensors"))
    assert again.arch == gan.arch
    assert images_of(again).equal(images_of(gan))
    if gan.discriminator is not None:
        x, y = images_of(gan), gan.sample(3, rng())[1]
        assert again.discriminator(x, y).equal(gan.discriminator(x, y))


@every
def test_a_target_is_met_from_shapes_alone(family, fields):
    gan = small_gan(family, fields)
    full = generator_cost(gan.family, gan.arch)
    assert full.parameters == sum(p.numel() for p in gan.generator.parameters())
    assert 0 < full.macs_in <= full.macs_out
    limit = (full.parameters + generator_cost(gan.family, gan.family.scale(gan.arch, 0.001)).parameters) / 2
    ch_mul = ch_mul_for(gan.family, gan.arch, lambda c: c.parameters, limit, "target")
    assert generator_cost(gan.family, gan.family.scale(gan.arch, ch_mul)).parameters <= limit


@every
def test_a_critic_under_a_gradient_penalty_has_no_batchnorm_and_keeps_its_minibatch_deviation(family, fields):
    gan = small_gan(family, fields)
    if not has_discriminator(family):
        return
    torch.manual_seed(0)
    arch = gan.family.batch_free(gan.arch)
    critic = gan.family.discriminator(arch).train()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in critic.modules())
    deviation = [f for f in ("d_std", "d_stddev") if hasattr(arch, f)]
    assert all(getattr(arch, f) == getattr(gan.arch, f) for f in deviation)
    if deviation and getattr(arch, deviation[0]) not in (False, "none"):
        return
    x, y = images_of(gan), gan.sample(3, rng())[1]
    alone = torch.cat([critic(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(3)])
    if not any("u" in k.split(".")[-1] for k in dict(critic.named_buffers())):  # spectral norm moves with every pass
        torch.testing.assert_close(critic(x, y), alone, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("recipe", ["mse", "joint"])
def test_a_short_run_distils_it(family, fields, recipe, tmp_path):
    gan = small_gan(family, fields)
    if recipe == "joint" and not has_discriminator(family):
        return
    save_networks(tmp_path / "gan.safetensors", gan.family, gan.arch, gan.networks, {})
    overrides = [("student.ch_mul", 0.5), ("schedule.batch_size", 4)]
    data = None
    if not gan.arch.nz:
        np.savez(tmp_path / "data.npz", x_train=np.random.default_rng(0).integers(0, 256, (5, gan.arch.resolution, gan.arch.resolution, 3), np.uint8))
        data = str(tmp_path / "data.npz")
        with pytest.raises(MissingError, match="translates images"):
            gancompress.distill(str(tmp_path / "gan.safetensors"), recipe, overrides=overrides, steps=2, out=tmp_path / "run", device="cpu")
    path = gancompress.distill(str(tmp_path / "gan.safetensors"), recipe, overrides=overrides, data=data, steps=2, out=tmp_path / "run", device="cpu")
    student = load_gan(str(path))
    assert student.arch == gan.family.scale(gan.arch, 0.5)
    assert torch.isfinite(images_of(student)).all()


def test_joint_gives_a_teacher_that_is_a_generator_alone_a_critic_of_the_student_s_shapes(tmp_path):
    gan = small_gan("stylegan3", SMALL["stylegan3"][0])
    save_networks(tmp_path / "gan.safetensors", gan.family, gan.arch, gan.networks, {})
    arch = {"student.arch.nz": gan.arch.nz, "student.arch.g_widths": "4,4", "student.arch.d_widths": "4,4"}
    overrides = [("student.family", "dcgan"), ("schedule.batch_size", 2), *((k, v) for k, v in arch.items() if gan.arch.resolution == 16 or "widths" not in k)]
    gancompress.distill(str(tmp_path / "gan.safetensors"), "joint", overrides=overrides, steps=1, out=tmp_path / "run", device="cpu")
    assert gancompress.load(tmp_path / "run", part="discriminator").arch.resolution == gan.arch.resolution
    with pytest.raises(UsageError, match="teacher only"):
        gancompress.distill(str(tmp_path / "gan.safetensors"), "joint", overrides=overrides[1:2], steps=1, out=tmp_path / "other", device="cpu")


CONDITIONAL = [(f, v) for f, variants in SMALL.items() for v in variants if v.get("classes") and FAMILIES[f].has_discriminator]


@pytest.mark.parametrize(("family", "fields"), CONDITIONAL, ids=[f"{f}{i}" for i, (f, _) in enumerate(CONDITIONAL)])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_conditional_critic_has_its_labels_or_the_plan_refuses_data_without(family, fields, labelled, tmp_path):
    gan = small_gan(family, fields)
    save_networks(tmp_path / "gan.safetensors", gan.family, gan.arch, gan.networks, {})
    generator = np.random.default_rng(0)
    arrays = {"x_train": generator.integers(0, 256, (6, gan.arch.resolution, gan.arch.resolution, 3), np.uint8)}
    arrays |= {"y_train": np.arange(6) % gan.arch.classes} if labelled else {}
    np.savez(tmp_path / "data.npz", **arrays)
    options = {"overrides": [("schedule.batch_size", 2)], "data": str(tmp_path / "data.npz"), "steps": 1, "out": tmp_path / "run", "device": "cpu"}
    try:
        gan.discriminator(images_of(gan), None)
        needs = False
    except ValueError:
        needs = True
    if needs and not labelled:
        with pytest.raises(MissingError, match="needs labels"):
            gancompress.distill(str(tmp_path / "gan.safetensors"), "joint", **options)
    else:
        assert gancompress.distill(str(tmp_path / "gan.safetensors"), "joint", **options).is_file()
