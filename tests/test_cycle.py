"""Two directions tied by CycleGAN's cycle: its terms against arithmetic written out here, whom they train, the pool, runs from end to end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_gan
from safetensors.torch import load_file
from test_loop import Cut, assert_same_run, cut_at, log_of
from torch import nn
from typer.testing import CliRunner

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.console import Silent
from gancompress.errors import DivergedError, UsageError
from gancompress.gan import GAN, Batch, BothWays
from gancompress.loop import Trainer
from gancompress.losses.cycle import Cycle, Pool
from gancompress.losses.portable_i2i import PortableI2i, PortableWeights
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan
from gancompress.runs import teacher_of

pytestmark = pytest.mark.usefixtures("no_curves")


class Times(nn.Module):
    """A generator: p x, its channels as many as asked for."""

    def __init__(self, p, nc=1):
        super().__init__()
        self.p, self.nc = nn.Parameter(torch.tensor(p)), nc

    def forward(self, inputs, condition=None):
        return self.p * inputs.mean(1, keepdim=True).expand(-1, self.nc, -1, -1)


class Critic(nn.Module):
    """Features q x, logit q (sum of x)."""

    def __init__(self, q=1.0):
        super().__init__()
        self.q, self.arch = nn.Parameter(torch.tensor(q)), SimpleNamespace(d_nc=1, nc=1, d_widths=(1,))

    def features(self, images, condition=None):
        return [self.q * images, self.q * images.flatten(1).sum(1, keepdim=True)]

    def forward(self, images, condition=None):
        return self.features(images, condition)[-1]


def gan(generator, critic=None, nc=1, nc_in=1):
    family = SimpleNamespace(game="lsgan", discriminator=lambda arch: Critic())
    return GAN(family, SimpleNamespace(nc=nc, nc_in=nc_in, resolution=2), generator, critic)


def two(channels=(1, 1), **weights):
    """(loss, S, R, the teachers): S doubles, R takes a quarter; the teachers give half, and all, of what they see."""
    x, y = channels
    s, r = gan(Times(2.0, y), None, y, x), gan(Times(0.25, x), None, x, y)
    teachers = gan(Times(0.5, y), Critic(3.0), y, x).freeze(), gan(Times(1.0, x), Critic(3.0), x, y).freeze()
    chosen = PortableWeights(**({"pool": 0, "layers": 1} | weights))
    losses = tuple(PortableI2i(teacher, student, chosen) for teacher, student in zip(teachers, (s, r), strict=True))
    return Cycle(losses, teachers, (s, r), chosen), s.generator, r.generator, teachers


def image(*pixels):
    return torch.tensor([[list(pixels)]])[:, :, None, :]  # (1, 1, 1, W)


X, Y = image(1.0, 1.0), image(1.0, 0.0)


def batch(x=X, y=Y):
    return Batch(x, None, 0, 0.0, lambda: (y, None), lambda: x / 2, lambda: (x / 2, None))


def values(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


def terms_of(loss, s, r, seen):
    return loss.generator_loss(seen, loss.make_fake(BothWays(s, r), seen))


def test_cycle_and_identity_are_those_of_the_equation():
    loss, s, r, _ = two(cycle=10, identity=3)
    found = values(terms_of(loss, s, r, batch()))
    assert found["cycle"] == pytest.approx(10 * 0.5)  # R(S(x)) = x / 2
    assert found["cycle_back"] == pytest.approx(10 * (0.5 + 0) / 2)  # S(R(y)) = y / 2
    assert found["identity"] == pytest.approx(3 * (1 + 0) / 2)  # S(y) = 2 y
    assert found["identity_back"] == pytest.approx(3 * 0.75)  # R(x) = x / 4


def test_each_direction_has_the_terms_of_equation_9():
    loss, s, r, _ = two(cycle=0, beta1=7, gamma1=11, adv=2)
    found = values(terms_of(loss, s, r, batch()))
    assert found == pytest.approx(
        {
            "adv": 2 * (4 - 1) ** 2,  # S(x) = (2, 2): D says 4
            "l1": 7 * 1.5,  # against x / 2
            "perc": 11 * 3 * 1.5,
            "adv_back": 2 * (0.25 - 1) ** 2,  # R(y) = (1/4, 0)
            "l1_back": 7 * 0.75 / 2,  # against y
            "perc_back": 11 * 3 * 0.75 / 2,
        }
    )
    seen = batch()
    found = values(loss.discriminator_loss(seen, loss.make_fake(BothWays(s, r), seen).detach()))
    assert found["d_adv"] == pytest.approx(((1 - 1) ** 2 + 4**2) / 2)  # of y and of S(x)
    assert found["d_adv_back"] == pytest.approx(((2 - 1) ** 2 + 0.25**2) / 2)  # of x and of R(y)
    assert found["d_teacher_back"] == pytest.approx((1 - 1) ** 2 / 2)  # y itself
    assert found["d_tri_back"] == pytest.approx(max(0, 0.5 - (0.75 + 1) / 2 + 0.2) / 2)  # anchor x, positive y, negative R(y)


def test_directions_of_different_channels_keep_their_own():
    colour = torch.cat([Y, Y, Y], 1)
    loss, s, r, _ = two((1, 3), gamma1=0, adv=0)
    found = values(terms_of(loss, s, r, batch(y=colour)))
    assert found["cycle"] == pytest.approx(5)
    assert found["cycle_back"] == pytest.approx(2.5)
    with pytest.raises(UsageError, match=r"weights\.identity=1: images of 1 channels and of 3"):
        two((1, 3), gamma1=0, identity=1)


REACHES = {"adv": (1, 0), "l1": (1, 0), "perc": (1, 0), "adv_back": (0, 1), "l1_back": (0, 1), "perc_back": (0, 1), "cycle": (1, 1), "cycle_back": (1, 1)} | {
    "identity": (1, 0),
    "identity_back": (0, 1),
}


@pytest.mark.parametrize("term", REACHES)
def test_a_term_trains_the_students_it_is_of_and_nobody_else(term):
    loss, s, r, teachers = two(identity=1)
    loss.critics.requires_grad_(False)
    terms_of(loss, s, r, batch())[term].backward()
    assert tuple(int(net.p.grad is not None and bool(net.p.grad != 0)) for net in (s, r)) == REACHES[term]
    assert all(p.grad is None for teacher in teachers for net in teacher.networks.values() for p in net.parameters())
    assert not any("generator" in name or name.startswith(("losses", "students", "teachers")) for name in loss.state_dict())


@pytest.mark.parametrize(("term", "trained"), [("d_adv", "student"), ("d_tri", "student"), ("d_adv_back", "back"), ("d_teacher_back", "back")])
def test_a_discriminator_s_term_trains_its_own_direction_s(term, trained):
    loss, s, r, _ = two(margin=9)
    seen = batch(y=image(1.0, 0.5))
    loss.discriminator_loss(seen, loss.make_fake(BothWays(s, r), seen).detach())[term].backward()
    assert [name for name, critic in loss.critics.items() if critic.q.grad is not None and critic.q.grad != 0] == [trained]
    assert s.p.grad is r.p.grad is None


# ------------------------------------------------------------------------------------------------------------------------ pool


def numbered(*numbers):
    return torch.tensor([float(n) for n in numbers]).view(-1, 1, 1, 1)


def test_a_pool_shows_what_comes_until_it_is_full_and_then_half_of_the_time_something_earlier():
    torch.manual_seed(0)
    pool = Pool(4, (1, 1, 1))
    assert torch.equal(pool(numbered(1, 2, 3)), numbered(1, 2, 3))
    assert torch.equal(pool(numbered(4)), numbered(4))
    held, earlier = [1, 2, 3, 4], 0
    for n in range(5, 205):
        shown = int(pool(numbered(n)))
        if shown != n:
            held[held.index(shown)] = n  # it was there, and the new one has its place
            earlier += 1
        assert pool.images.flatten().tolist() == held
    assert 75 < earlier < 125


def test_a_pool_goes_on_from_its_state():
    first = Pool(2, (1, 1, 1))
    first(numbered(1, 2, 3))
    second = Pool(2, (1, 1, 1))
    second.load_state_dict(first.state_dict())
    outputs = []
    for pool in (first, second):
        torch.manual_seed(3)
        outputs.append(pool(numbered(*range(4, 20))))
    assert torch.equal(*outputs)


def test_discriminators_are_shown_their_own_student_s_pool():
    loss, s, r, _ = two(pool=1)
    loss.pools.load_state_dict(loss.pools.state_dict())  # no image yet
    for scale in (1.0, 2.0):
        seen = batch(scale * X[..., :2].expand(1, 1, 2, 2), scale * Y.expand(1, 1, 2, 2))
        loss.discriminator_loss(seen, loss.make_fake(BothWays(s, r), seen).detach())
    assert loss.pools["student"].images.unique().item() in (2, 4)  # S(x) of one of the two
    assert loss.pools["back"].images.max() in (0.25, 0.5)
    assert not two(pool=0)[0].pools


# ------------------------------------------------------------------------------------------------------------------------ runs

FIELDS = {"resolution": 16, "nc": 3, "g_widths": (4, 8), "blocks": 1, "d_widths": (4, 8), "d_nc": 3}
RUN = [("output.log_kimg", 0.002), ("output.save_kimg", 0.003), ("output.pictures_kimg", 1), ("data.paired", False), ("weights.pool", 2)]
TERMS = {"adv", "l1", "perc", "d_adv", "d_teacher", "d_tri", "cycle"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Teachers ab and ba, with and without (-g) discriminators; others that do not fit; an .npz of two sides."""
    path = tmp_path_factory.mktemp("cycle")
    for seed, (name, fields) in enumerate({"ab": {}, "ba": {}, "grey": {"nc": 1, "d_nc": 1}, "yerg": {"nc_in": 1}, "large": {"resolution": 32}}.items()):
        made = small_gan("resnet", FIELDS | fields, seed)
        save_networks(path / f"{name}.safetensors", made.family, made.arch, made.networks, {})
        save_networks(path / f"{name}-g.safetensors", made.family, dataclasses.replace(made.arch, d_nc=3), {"generator": made.generator}, {})
    drawn = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3), dtype=np.uint8)
    np.savez(path / "sides.npz", A=drawn[0], B=drawn[1])
    return path


def planned(place, out, *overrides, teacher="ab", back="ba", **options):
    options = {"recipe": "portable-i2i", "steps": 5, "data": str(place / "sides.npz")} | options
    back = str(place / f"{back}.safetensors") if back else None
    return make_plan(Request(str(place / f"{teacher}.safetensors"), overrides=[*RUN, *overrides], out=out, device="cpu", back=back, **options))


def test_the_command_line_leaves_a_student_of_each_direction(place, tmp_path):
    words = ["distill", str(place / "ab.safetensors"), "--back", str(place / "ba-g.safetensors"), "--recipe", "portable-i2i", "--ch-mul", "0.5"]
    words += [f"{key}={value}" for key, value in RUN]
    done = CliRunner().invoke(app, [*words, "--data", str(place / "sides.npz"), "--device", "cpu", "--steps", "3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "both directions are trained, with the cycle" in " ".join(done.output.split())
    assert "the way back: perceptual term: the first 2 of 2 hidden layers of the student's discriminator" in " ".join(done.output.split())
    x = torch.zeros(1, 3, 16, 16)
    there, back = (gancompress.load(tmp_path / "run" / f"{name}.safetensors")(x) for name in ("student", "student_back"))
    assert there.shape == back.shape == x.shape
    assert not torch.equal(there, back)
    for name in ("discriminator", "discriminator_back"):
        assert gancompress.load(tmp_path / "run" / f"{name}.safetensors", "discriminator").arch.d_nc == 3
    assert {f"{term}{way}" for term in TERMS for way in ("", "_back")} <= log_of(tmp_path / "run")[0].keys()
    assert list((tmp_path / "run" / "samples").glob("step-*.png"))
    assert teacher_of(str(tmp_path / "run"))[0] == str((place / "ab.safetensors").resolve())
    assert teacher_of(str(tmp_path / "run" / "student_back.safetensors"))[0] == str((place / "ba-g.safetensors").resolve())


def test_both_students_move_and_both_teachers_stay(place, tmp_path):
    plan = planned(place, tmp_path / "run", ("schedule.ema_kimg", 0.01), ("student.init", "slice"), ("student.ch_mul", 1), steps=2)
    teachers, students = (plan.teacher, plan.back.teacher), (plan.student, plan.back.student)
    random = planned(place, tmp_path / "run")
    assert not torch.equal(random.student.generator.last.weight, random.back.student.generator.last.weight)
    assert [gan.generator.state_dict().keys() for gan in students] == [gan.generator.state_dict().keys() for gan in teachers]
    for teacher, student in zip(teachers, students, strict=True):  # at full width the slice is the whole
        assert all(torch.equal(a, b) for a, b in zip(teacher.generator.state_dict().values(), student.generator.state_dict().values(), strict=True))
    before, first = [gan.sha256() for gan in teachers], [gan.sha256() for gan in students]
    run_plan(plan, Silent())
    assert [gan.sha256() for gan in teachers] == before
    assert all(gan.sha256() != old for gan, old in zip(students, first, strict=True))
    saved = load_file(tmp_path / "run" / "student_back.safetensors")
    raw = {f"generator.{k}": v for k, v in plan.back.student.generator.state_dict().items()}
    assert any(not torch.equal(saved[k], v) for k, v in raw.items())  # averaged as the first is
    for name, critic in (("discriminator", "student"), ("discriminator_back", "back")):
        saved = load_file(tmp_path / "run" / f"{name}.safetensors")
        assert all(torch.equal(saved[f"discriminator.{k}"], v) for k, v in plan.loss.critics[critic].state_dict().items())


def test_an_interrupted_run_repeats_the_unbroken_one_bitwise(place, tmp_path, monkeypatch):
    run_plan(planned(place, tmp_path / "whole", steps=7), Silent())
    cut_at(monkeypatch, 4)
    with pytest.raises(Cut):
        run_plan(planned(place, tmp_path / "cut", steps=7), Silent())
    plan = planned(place, tmp_path / "cut", steps=7)
    assert plan.resumes
    run_plan(plan, Silent())
    assert {"student_back.safetensors", "discriminator_back.safetensors"} <= {p.name for p in (tmp_path / "cut").iterdir()}
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_another_way_back_in_the_folder_is_refused(place, tmp_path):
    run_plan(planned(place, tmp_path / "run", steps=1), Silent())
    for back in ("ba-g", None):
        with pytest.raises(UsageError, match=r"another run:\n  back"):
            planned(place, tmp_path / "run", steps=1, back=back)


def test_with_all_weights_of_distillation_at_0_it_is_a_cyclegan_that_never_runs_its_teachers(place, tmp_path, monkeypatch):
    plan = planned(place, tmp_path / "run", *((f"weights.{name}", 0) for name in ("beta1", "gamma1", "beta2", "gamma2")), steps=1)
    trainer = Trainer(plan.trained, plan.loss, plan.recipe)

    class Never(nn.Module):
        def forward(self, *_):
            raise AssertionError("a teacher was asked")

    plan.teacher.generator = plan.back.teacher.generator = Never()
    from gancompress.data import Batches

    batches = Batches(plan.teacher, plan.teacher, plan.images, plan.recipe.schedule, mirror=False, seed=0, pool=0, device=plan.device)
    trainer.train_step(batches)
    assert trainer.sums.keys() == {f"{term}{way}" for term in ("d_adv", "adv", "cycle") for way in ("", "_back")}


def test_a_batch_in_parts_is_the_same_step(place, tmp_path):
    """The two directions of each part belong together, and to no other part."""
    sums = []
    for parts in (1, 2):
        plan = planned(place, tmp_path / "run", ("schedule.batch_size", 2), ("schedule.accumulate", parts), ("weights.pool", 0), ("weights.game", "lsgan"))
        from gancompress.data import Batches

        batches = Batches(plan.teacher, plan.teacher, plan.images, plan.recipe.schedule, mirror=False, seed=0, pool=0, device=plan.device)
        trainer = Trainer(plan.trained, plan.loss, plan.recipe)
        trainer.train_step(batches)
        sums.append({k: float(v) for k, v in trainer.sums.items()})
    assert sums[0] == pytest.approx(sums[1], rel=1e-3)


def test_pictures_show_inputs_teachers_students_and_cycles_of_both_ways(place, tmp_path):
    plan = planned(place, tmp_path / "run")
    x = plan.teacher.sample(3, torch.Generator().manual_seed(1))[0]
    rows = plan.loss.pictures(plan.trained.generator.eval(), x)
    assert [label for label, _ in rows] == ["input", "teacher", "student", "cycle"] * 2
    shown = [images for _, images in rows]
    s, r = plan.student.generator, plan.back.student.generator
    with torch.no_grad():
        assert torch.equal(shown[0], x)
        assert torch.equal(shown[1], plan.teacher.generator(x))
        assert torch.equal(shown[3], r(s(x)))
        assert torch.equal(shown[5], plan.back.teacher.generator(shown[4]))
        assert torch.equal(shown[7], s(r(shown[4])))
    sides = plan.images.second.load(0).float() / 127.5 - 1
    targets = plan.images.targets(40, torch.Generator().manual_seed(0))
    assert targets.shape == (40, 3, 16, 16)
    assert any(torch.allclose(image, sides[:, 1:17, 1:17], atol=1e-5) for image in targets)  # the central part of what jitter loads larger
    assert all(any(torch.equal(image, other) for other in targets) for image in shown[4])


def test_a_finished_run_of_both_is_where_another_starts(place, tmp_path):
    run_plan(planned(place, tmp_path / "first", steps=1), Silent())
    plan = planned(place, tmp_path / "second", ("student.init", str(tmp_path / "first")), steps=1)
    for gan, name in ((plan.student, "student"), (plan.back.student, "student_back")):
        saved = load_file(tmp_path / "first" / f"{name}.safetensors")
        assert all(torch.equal(saved[f"generator.{k}"], v) for k, v in gan.generator.state_dict().items())
    saved = load_file(tmp_path / "first" / "discriminator_back.safetensors")
    assert all(torch.equal(saved[f"discriminator.{k}"], v) for k, v in plan.loss.critics["back"].state_dict().items())
    (tmp_path / "first" / "student_back.safetensors").unlink()
    with pytest.raises(UsageError, match=r"student\.init=.*a student of each direction is needed"):
        planned(place, tmp_path / "second", ("student.init", str(tmp_path / "first")), steps=1)


def test_a_run_that_diverges_keeps_both_students(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "bad_step", lambda self, check_weights: (0, "loss term adv"))
    with pytest.raises(DivergedError):
        run_plan(planned(place, tmp_path / "run", steps=3), Silent())
    for name in ("student-last-good", "student_back-last-good"):
        gancompress.load(tmp_path / "run" / f"{name}.safetensors")


def test_the_student_before_a_collapse_is_one_that_loads(place, tmp_path, monkeypatch):
    shares = iter([1.0, 1.0, 0.0])  # of the teacher, and of the student's first and second pictures
    monkeypatch.setattr("gancompress.loop.spread", lambda images: next(shares))
    run_plan(planned(place, tmp_path / "run", ("output.pictures_kimg", 0.001), steps=2), Silent())
    assert gancompress.load(tmp_path / "run" / "student-before-collapse.safetensors")(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_one_direction_has_neither_cycle_nor_second_files(place, tmp_path):
    plan = planned(place, tmp_path / "run", back=None, steps=2)
    assert isinstance(plan.loss, PortableI2i)
    assert plan.trained is plan.student
    assert any("this one direction is trained, without the cycle" in note for note in plan.notes)
    assert "back" not in plan.identity
    run_plan(plan, Silent())
    assert not list((tmp_path / "run").glob("*_back*"))
    assert not any("cycle" in key or "back" in key for key in log_of(tmp_path / "run")[0])


# --------------------------------------------------------------------------------------------------------- a folder of four files


@pytest.fixture(scope="module")
def folder(place, tmp_path_factory):
    """junyanz' names; of G_A an earlier one too."""
    path = tmp_path_factory.mktemp("junyanz")
    for name, source in (("A", "ab"), ("B", "ba")):
        made = gancompress.loading.load_gan(str(place / f"{source}.safetensors"))
        for part, net in (("G", made.generator), ("D", made.discriminator)):
            save_networks(path / f"latest_net_{part}_{name}.safetensors", made.family, made.arch, {"generator" if part == "G" else "discriminator": net}, {})
    other = small_gan("resnet", FIELDS, 9)
    save_networks(path / "200_net_G_A.safetensors", other.family, other.arch, {"generator": other.generator}, {})
    return path


@pytest.mark.parametrize(("direction", "there"), [(None, "ab"), ("AtoB", "ab"), ("BtoA", "ba")])
def test_a_cyclegan_s_folder_gives_both_directions_and_each_its_discriminator(direction, there, folder, place, tmp_path):
    plan = make_plan(
        Request(str(folder), "portable-i2i", overrides=RUN, data=str(place / "sides.npz"), direction=direction, steps=1, device="cpu", out=tmp_path / "run")
    )
    back = {"ab": "ba", "ba": "ab"}[there]
    for gan, name in ((plan.teacher, there), (plan.back.teacher, back)):
        assert gan.sha256() == gancompress.loading.load_gan(str(place / f"{name}.safetensors")).sha256()


def test_a_cyclegan_s_folder_is_refused_where_one_direction_is_meant(folder, place, tmp_path):
    for recipe, paired in (("mse", False), ("portable-i2i", True)):
        with pytest.raises(UsageError, match="generators here"):
            make_plan(Request(str(folder), recipe, overrides=[("data.paired", paired)], data=str(place / "sides.npz"), device="cpu", out=tmp_path / "run"))


# -------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "mse", "drop": True}, r"--back .*: recipe 'mse' trains one direction"),
        ({"overrides": [("data.paired", True)]}, r"--back .*: cycles are for images without pairs"),
        ({"teacher": "grey"}, r"--back .*makes images of 3 channels of such of 3, and .*grey.* makes 1 of 3"),
        ({"back": "large"}, r"--back .*large.*: it is for images of 32 x 32, .* for 16 x 16"),
        ({"back": "ab-g"}, r"--back .*: this is the teacher itself"),
        ({"fit_discriminator": 0.1}, r"--fit-discriminator 0.1: it is for one teacher"),
        ({"overrides": [("schedule.standing_stats", 2)]}, r"schedule\.standing_stats=2"),
        ({"back": None, "overrides": [("weights.identity", 5)]}, r"weights\.identity=5: it is a term of two directions"),
        ({"back": "nowhere"}, r"nowhere.safetensors: no such file"),
    ],
)
def test_what_cannot_be_two_directions_is_refused_before_anything_is_written(changes, said, place, tmp_path):
    changes = dict(changes)
    if changes.pop("drop", False):
        with pytest.raises(UsageError, match=said):
            make_plan(Request(str(place / "ab.safetensors"), "mse", data=str(place / "sides.npz"), back=str(place / "ba.safetensors"), device="cpu"))
        return
    with pytest.raises(gancompress.errors.GanCompressError, match=said):
        planned(place, tmp_path / "run", *changes.pop("overrides", []), **changes)
    assert not (tmp_path / "run").exists()


def test_a_place_in_the_first_teacher_s_file_is_not_looked_for_in_the_second_s(place, tmp_path):
    plan = planned(place, tmp_path / "run", reader_options={"key": "ab.safetensors:generator"})
    assert plan.back.teacher.sha256() == gancompress.loading.load_gan(str(place / "ba.safetensors")).sha256()


def test_a_way_back_that_takes_latents_is_refused(place, tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match=r"--back .*: it takes latents"):
        make_plan(Request(str(place / "ab.safetensors"), "portable-i2i", overrides=RUN, data=str(place / "sides.npz"), back=str(tiny_teacher), device="cpu"))


def test_directions_of_other_channels_fit_where_each_takes_what_the_other_makes(place, tmp_path):
    by_hand = [(f"student.arch.{key}", value) for key, value in (("d_nc", 1), ("nc", 1), ("nc_in", 3))]  # of the way there
    plan = planned(place, tmp_path / "run", *by_hand, teacher="grey", back="yerg", steps=1)
    assert [critic.arch.d_nc for critic in plan.loss.critics.values()] == [1, 3]
    run_plan(plan, Silent())
    assert gancompress.load(tmp_path / "run" / "student_back.safetensors")(torch.zeros(1, 1, 16, 16)).shape == (1, 3, 16, 16)
