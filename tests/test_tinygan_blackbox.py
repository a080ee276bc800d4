"""TinyGAN's objective: each term against arithmetic written out here, who is trained by it, its schedules, and where the critic and the labels come from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gancompress import report
from gancompress.checkpoint import save_networks
from gancompress.config import load_recipe
from gancompress.console import Silent
from gancompress.data import Batches
from gancompress.errors import CheckpointError, MissingError, StoppedError, UsageError
from gancompress.families import tinygan
from gancompress.gan import GAN, Batch
from gancompress.loop import Trainer
from gancompress.losses.tinygan_blackbox import TinyganBlackbox, TinyganBlackboxWeights, layer_weights
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

CPU = torch.device("cpu")
SHORT = [("schedule.batch_size", 4), ("output.log_kimg", 0.004), ("output.save_kimg", 0.012), ("student.ch_mul", 0.125), ("student.d_ch_mul", 0.125)]


class Critic(nn.Module):
    """Layers 2 w x and 3 w x, logit w sum(x), w sum(x) + y under a label y."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        logits = self.w * images.flatten(1).sum(1)
        return [2 * self.w * images, 3 * self.w * images, logits if condition is None else logits + condition]


class Student(nn.Module):
    """p z as images of one row; labels are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(0.5))
        self.seen: list[Tensor | None] = []

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        self.seen.append(condition)
        return (self.p * inputs)[:, None, None, :]


def images(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[:, None, None, :]


TEACHER, FAKE, REAL = images([1.0, 0.5], [0.0, 0.0]), images([0.0, 0.5], [0.0, -2.0]), images([3.0, 0.0], [0.5, 0.0])
ALL = {"feat": 1, "pix": 0.2, "pix_until": 0.5, "kd": 0.1, "gan": 0.01, "d_kd": 1, "d_gan": 0.2, "adversarial_every": 5}


def loss_of(classes: int = 0, **weights) -> TinyganBlackbox:
    # z' is (1, 1) for each image: the student's image of it is (0.5, 0.5), its logit 1
    family = SimpleNamespace(sample=lambda arch, n, rng: (torch.ones(n, 2), None))
    student = GAN(family, SimpleNamespace(classes=classes, nz=2), Student())
    return TinyganBlackbox(None, student, TinyganBlackboxWeights(**{**ALL, **weights}), Critic())


def batch(step: int = 4, progress: float = 0.0, real: bool = True, labels: Tensor | None = None, real_labels: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(2, 2), labels, step, 0.0, lambda: (REAL, real_labels), lambda: TEACHER, lambda: (TEACHER, None), progress=progress, has_real=real)


def floats(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def test_the_students_terms_are_equations_1_2_4_and_6():
    # differences 1, 0, 0, 2: mean 3/4. Layers: 2 * 3/4 and 3 * 3/4, weighed 1/4 and 1
    # logits of FAKE 0.5 and -2, mean -0.75; of S(z') 1
    by_hand = {"feat": 0.25 * 1.5 + 2.25, "pix": 0.2 * 0.75, "kd": 0.1 * 0.75, "gan": 0.01 * -1}
    assert floats(loss_of().generator_loss(batch(), FAKE)) == pytest.approx(by_hand)


def test_the_critics_terms_are_equations_3_5_and_7():
    # logits: T 1.5 and 0: max(0, 1 - .) 0 and 1; FAKE 0.5 and -2: max(0, 1 + .) 1.5 and 0; REAL 3 and 0.5: 0 and 0.5; S(z') 1: 2
    by_hand = {"d_kd": 0.5 + 0.75, "d_gan": 0.2 * (0.25 + 2)}
    assert floats(loss_of().discriminator_loss(batch(), FAKE)) == pytest.approx(by_hand)


def test_each_game_has_labels_of_its_own():
    loss, labels, real_labels = loss_of(classes=5), torch.tensor([1, 2]), torch.tensor([3, 4])
    given = batch(labels=labels, real_labels=real_labels)
    terms = floats(loss.discriminator_loss(given, FAKE))
    # T 2.5 and 2: 0; FAKE 1.5 and 0: 2.5 and 1; REAL 6 and 4.5: 0; S(z') 4 and 5: 5 and 6
    assert terms == pytest.approx({"d_kd": 1.75, "d_gan": 0.2 * 5.5})
    terms = floats(loss.generator_loss(given, FAKE))
    assert (terms["kd"], terms["gan"]) == pytest.approx((0.1 * -0.75, 0.01 * -4.5))
    assert all(torch.equal(seen, real_labels) for seen in loss.student.generator.seen)


def test_an_unconditional_student_is_not_told_the_labels_of_the_data():
    loss = loss_of()
    loss.discriminator_loss(batch(real_labels=torch.tensor([3, 4])), FAKE)
    assert loss.student.generator.seen == [None]
    assert floats(loss.discriminator_loss(batch(real_labels=torch.tensor([3, 4])), FAKE))["d_gan"] == pytest.approx(0.2 * 2.25)


def test_without_real_images_the_two_gan_terms_are_off_and_no_image_stands_in():
    loss = loss_of()

    def never() -> tuple[Tensor, None]:
        raise AssertionError("real images were asked for")

    alone = Batch(torch.zeros(2, 2), None, 4, 0.0, never, lambda: TEACHER, never, has_real=False)
    assert loss.generator_loss(alone, FAKE).keys() == {"feat", "pix", "kd"}
    assert loss.discriminator_loss(alone, FAKE).keys() == {"d_kd"}


@pytest.mark.parametrize(
    ("weights", "student", "critic"),
    [
        ({"feat": 0}, {"pix", "kd", "gan"}, {"d_kd", "d_gan"}),
        ({"gan": 0, "d_gan": 0}, {"feat", "pix", "kd"}, {"d_kd"}),
        ({"kd": 0, "d_kd": 0}, {"feat", "pix", "gan"}, {"d_gan"}),
        ({"pix": 0}, {"feat", "kd", "gan"}, {"d_kd", "d_gan"}),
        ({"feat": 0, "kd": 0, "gan": 0}, {"pix"}, None),
    ],
)
def test_a_weight_of_zero_takes_its_term_out(weights, student, critic):
    loss = loss_of(**weights)
    assert loss.generator_loss(batch(), FAKE).keys() == student
    if critic is None:
        assert not loss.critics  # nothing judges where pixels are all there is
    else:
        assert loss.discriminator_loss(batch(), FAKE).keys() == critic


def test_features_reach_the_student_and_not_the_teachers_image():
    fake, teacher = FAKE.clone().requires_grad_(True), TEACHER.clone().requires_grad_(True)
    given = Batch(torch.zeros(2, 2), None, 0, 0.0, lambda: (REAL, None), lambda: teacher, lambda: (teacher, None))
    loss = loss_of()
    loss.generator_loss(given, fake)["feat"].backward()
    # 1/4 * 2 + 3 = 3.5 for each of four pixels, by the sign of the difference
    assert fake.grad.flatten().tolist() == pytest.approx([-3.5 / 4, 0, 0, -3.5 / 4])
    assert teacher.grad is None
    # d/dw of 3.5 / 4 sum sign x_S w, D_i(x_T) held fast: signs -, 0, 0, - of x_S = 0, 0.5, 0, -2
    assert float(loss.critics["student"].w.grad) == pytest.approx(3.5 / 4 * 2)


def test_the_critics_step_leaves_the_student_alone():
    loss = loss_of()
    torch.stack(list(loss.discriminator_loss(batch(), FAKE).values())).sum().backward()
    assert loss.student.generator.p.grad is None
    assert float(loss.critics["student"].w.grad) != 0


@pytest.mark.parametrize(
    ("depth", "by_hand"), [(5, [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]), (3, [1 / 8, 1 / 4, 1]), (1, [1]), (6, [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1])]
)
def test_layers_weigh_more_the_deeper_they_are(depth, by_hand):
    assert layer_weights(depth) == by_hand


@pytest.mark.parametrize(("until", "progress", "share"), [(0.5, 0, 1), (0.5, 0.25, 0.5), (0.5, 0.5, 0), (0.5, 0.9, 0), (None, 0.9, 1), (1.0, 0.75, 0.25)])
def test_the_pixels_weight_falls_with_the_share_of_the_run(until, progress, share):
    terms = floats(loss_of(pix_until=until).generator_loss(batch(progress=progress), FAKE))
    assert terms.get("pix", 0.0) == pytest.approx(0.2 * 0.75 * share)


def test_adversarial_terms_come_in_every_fifth_step_of_the_student():
    loss = loss_of()
    asked = [step for step in range(20) if {"kd", "gan"} <= loss.generator_loss(batch(step), FAKE).keys()]
    assert asked == [4, 9, 14, 19]
    assert all("kd" in loss_of(adversarial_every=1).generator_loss(batch(step), FAKE) for step in range(3))


@pytest.mark.parametrize(("weights", "said"), [({"pix": 0}, "all 0"), ({}, "pix_until=0.5")])
def test_a_run_that_would_end_with_no_term_is_refused(weights, said):
    with pytest.raises(UsageError, match=said):
        loss_of(feat=0, kd=0, gan=0, **weights).check(1.0, 4)
    loss_of(feat=0, kd=0, gan=0, pix_until=None).check(1.0, 4)


def test_numbers_of_the_recipe_are_the_codes():
    recipe = load_recipe("tinygan-blackbox")
    assert (recipe.optim.g_lr, recipe.optim.g_betas, recipe.optim.d_lr, recipe.schedule.batch_size) == (2e-4, (0.0, 0.9), 2e-4, 32)
    assert recipe.schedule.steps == 742_000
    share = recipe.optim.share
    assert share(299_900 / 742_000) == 1
    assert share((300_000 + 742_000) / 2 / 742_000) == pytest.approx(0.5, abs=1e-3)
    # 20 of 30 epochs
    assert TinyganBlackboxWeights(**recipe.weights).pix_until == pytest.approx(2 / 3, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------- plans and runs


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Paths: a conditional teacher of 3 classes at 16 x 16, labelled data for it, data without labels."""
    folder = tmp_path_factory.mktemp("conditional")
    gan = small_gan("dcgan", SMALL["dcgan"][1])
    save_networks(folder / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x_train=pixels, y_train=np.arange(12) % 3)
    np.savez(folder / "bare.npz", x_train=pixels)
    return SimpleNamespace(teacher=str(folder / "teacher.safetensors"), data=str(folder / "data.npz"), bare=str(folder / "bare.npz"))


def plan_of(teacher, data=None, *more, **options):
    return make_plan(Request(str(teacher), "tinygan-blackbox", data=data and str(data), device="cpu", overrides=[*SHORT, *more], **options))


def test_the_student_is_a_tinygan_of_the_teachers_latents_classes_and_images(teachers, tiny_teacher):
    arch = plan_of(teachers.teacher).student.arch
    assert isinstance(arch, tinygan.Arch)
    assert (arch.resolution, arch.nc, arch.nz, arch.classes, arch.ch, arch.d_ch, arch.convolution) == (16, 3, 4, 3, 4, 4, "depthwise")
    plan = plan_of(tiny_teacher, None, ("student.arch.convolution", "standard"))
    assert (plan.student.arch.classes, plan.student.arch.convolution) == (0, "standard")
    assert not hasattr(plan.loss.critics["student"], "embedding")  # no projection without labels


@pytest.mark.parametrize("family", ["dcgan", "stylegan2", "sngan"])
def test_students_of_other_families_have_the_papers_critic(family, teachers):
    small = [("student.ch_mul", 0.02)] if family == "stylegan2" else []
    critic = plan_of(teachers.teacher, None, ("student.family", family), *small).loss.critics["student"]
    assert isinstance(critic, tinygan.Discriminator)
    assert (critic.arch.resolution, critic.arch.nc, critic.arch.classes, critic.arch.d_ch) == (16, 3, 3, 32)


def test_a_size_that_is_no_power_of_two_is_refused_with_its_neighbours(tmp_path):
    gan = make_gan("sngan", resolution=12, nc=1, g_widths=(4, 4, 4), d_widths=(4, 8), d_down=1)
    save_networks(tmp_path / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    with pytest.raises(UsageError, match=r"resolution 12: .* such as 8 or 16"):
        plan_of(tmp_path / "teacher.safetensors", None, ("student.family", "sngan"))


def test_the_plan_says_that_the_gan_terms_are_off_without_data(teachers):
    said = "no real images: the terms gan and d_gan are off"
    assert said in plan_of(teachers.teacher).notes
    assert said not in plan_of(teachers.teacher, teachers.data).notes


def test_a_conditional_critic_needs_labelled_images(teachers):
    with pytest.raises(MissingError, match="needs labels"):
        plan_of(teachers.teacher, teachers.bare)


@pytest.mark.parametrize(
    ("weights", "used"),
    [
        ({"gan": 0, "d_gan": 0}, False),
        ({"feat": 0, "kd": 0, "gan": 0, "pix_until": None}, False),  # no critic, whatever d_gan
        ({"gan": 0}, True),
        ({"d_gan": 0}, True),
    ],
)
def test_images_that_no_term_asks_for_need_no_labels(weights, used, teachers, tmp_path):
    changes = [(f"weights.{key}", value) for key, value in weights.items()]
    if used:
        with pytest.raises(MissingError, match="needs labels"):
            plan_of(teachers.teacher, teachers.bare, *changes)
        return
    plan = plan_of(teachers.teacher, teachers.bare, *changes, steps=2, out=tmp_path / "run")
    assert any("no term of these weights asks for real images" in note for note in plan.notes)
    assert plan.identity["data"] is None
    assert run_plan(plan, Silent()).is_file()


def test_a_teacher_and_a_student_of_unlike_inputs_are_refused_with_the_families_that_fit(teachers, tmp_path):
    gan = small_gan("resnet", SMALL["resnet"][0])
    save_networks(tmp_path / "t.safetensors", gan.family, gan.arch, gan.networks, {})
    with pytest.raises(UsageError, match="takes images to translate, and family tinygan, the student's, takes latents") as caught:
        plan_of(tmp_path / "t.safetensors")
    assert "families that translate: resnet, unet" in caught.value.hint
    assert "portable-i2i and mse" in caught.value.hint
    with pytest.raises(UsageError, match="takes latents, and family unet, the student's, translates images"):
        plan_of(teachers.teacher, None, ("student.family", "unet"))


def test_batches_tell_their_place_in_the_run_and_whether_images_are_real(teachers):
    for data in (None, teachers.data):
        plan = plan_of(teachers.teacher, data, steps=8)
        batches = Batches(plan.teacher, plan.teacher, plan.images, plan.recipe.schedule, mirror=False, seed=0, pool=0, device=CPU)
        assert [batches(step, 0).progress for step in (0, 2, 6)] == [0, 0.25, 0.75]
        assert batches(0, 0).has_real == (data is not None)


def test_gradients_reach_the_critic_in_its_step_and_the_student_in_its_own(teachers):
    plan = plan_of(teachers.teacher, teachers.data, ("weights.adversarial_every", 1), ("schedule.d_steps", 2))
    batches = Batches(plan.teacher, plan.teacher, plan.images, plan.recipe.schedule, mirror=False, seed=0, pool=0, device=CPU)
    trainer, seen = Trainer(plan.student, plan.loss, plan.recipe), []
    critic, student = list(plan.loss.critics.parameters()), list(plan.student.generator.parameters())

    def d_step(step=trainer.d_opt.step):
        assert all(p.grad is None for p in student)
        assert all(p.grad is not None for p in critic)
        seen.append([p.grad.clone() for p in critic])
        return step()

    def g_step(step=trainer.g_opt.step):
        assert all(p.grad is not None for p in student)
        assert all(torch.equal(p.grad, before) for p, before in zip(critic, seen[-1], strict=True))
        return step()

    trainer.d_opt.step, trainer.g_opt.step = d_step, g_step
    trainer.train_step(batches)
    assert len(seen) == 2
    assert trainer.take_means().keys() == {"d_kd", "d_gan", "feat", "pix", "kd", "gan"}


def test_a_run_cut_between_two_adversarial_steps_repeats_the_unbroken_one_bitwise(teachers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save_curves", lambda log_path, path: path.write_bytes(b"curves"))
    more, step = [("weights.adversarial_every", 4), ("weights.pix_until", 0.8)], Trainer.train_step

    def run(name):
        return run_plan(plan_of(teachers.teacher, teachers.data, *more, steps=9, out=tmp_path / name), Silent())

    def cut(self, batches):
        if self.step == 7:  # the state that was saved is of step 6
            raise StoppedError("cut")
        step(self, batches)

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", cut)
        with pytest.raises(StoppedError):
            run("cut")
    resumed = run("cut")
    for name in ("student.safetensors", "discriminator.safetensors"):
        one, other = load_file(whole.with_name(name)), load_file(resumed.with_name(name))
        assert all(torch.equal(one[key], other[key]) for key in one)
    logs = [[{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in p.with_name("log.jsonl").open()] for p in (whole, resumed)]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0] if "kd" in entry] == [4, 8]


# ----------------------------------------------------------------------------------------------------------------- class embedding


def test_the_class_embedding_starts_from_given_vectors(teachers, tmp_path):
    vectors = np.random.default_rng(1).normal(size=(3, 128))
    np.save(tmp_path / "e.npy", vectors)
    save_file({"e": torch.from_numpy(vectors)}, tmp_path / "e.safetensors")
    plans = [plan_of(teachers.teacher, None, ("student.class_embedding", str(tmp_path / name))) for name in ("e.npy", "e.safetensors")]
    for plan in plans:
        assert torch.equal(plan.student.generator.embedding.weight, torch.from_numpy(vectors).float())
        assert plan.student.generator.embedding.weight.requires_grad
        assert any("no longer black-box" in note for note in plan.notes)
    assert plans[0].identity == plans[1].identity  # the vectors count, not where they lie
    assert plans[0].identity != plan_of(teachers.teacher).identity
    assert not any("black-box" in note for note in plan_of(teachers.teacher).notes)


def embedded(teacher, path, *more):
    return plan_of(teacher, None, ("student.class_embedding", str(path)), *more)


def test_vectors_that_do_not_fit_are_refused(teachers, tiny_teacher, tmp_path):
    np.save(tmp_path / "fit.npy", np.zeros((3, 128), np.float32))
    np.save(tmp_path / "size.npy", np.zeros((3, 7), np.float32))
    np.save(tmp_path / "classes.npy", np.zeros((4, 128), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 128), np.nan, np.float32))
    with pytest.raises(UsageError, match=r"\(3, 7\), expected \(3, 128\)") as caught:
        embedded(teachers.teacher, tmp_path / "size.npy")
    assert "student.arch.embedding=7" in caught.value.hint
    embedded(teachers.teacher, tmp_path / "size.npy", ("student.arch.embedding", 7))
    with pytest.raises(UsageError, match=r"\(4, 128\), expected \(3, 128\)"):
        embedded(teachers.teacher, tmp_path / "classes.npy")
    with pytest.raises(UsageError, match="finite"):
        embedded(teachers.teacher, tmp_path / "nan.npy")
    with pytest.raises(UsageError, match="unconditional"):
        embedded(tiny_teacher, tmp_path / "fit.npy")
    with pytest.raises(UsageError, match="family dcgan"):
        embedded(teachers.teacher, tmp_path / "fit.npy", ("student.family", "dcgan"))


def test_files_that_hold_no_such_vectors_are_refused(teachers, tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.zeros((3, 128), np.int64))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:200])
    (tmp_path / "words.npy").write_text("not an array")
    save_file({"a": torch.zeros(3, 128), "b": torch.zeros(3, 128)}, tmp_path / "two.safetensors")
    with pytest.raises(MissingError, match=r"none\.npy"):
        embedded(teachers.teacher, tmp_path / "none.npy")
    for name in ("pickled.npy", "torn.npy", "words.npy"):
        with pytest.raises(CheckpointError, match=f"{name}: damaged"):
            embedded(teachers.teacher, tmp_path / name)
    with pytest.raises(CheckpointError, match="int64"):
        embedded(teachers.teacher, tmp_path / "whole.npy")
    with pytest.raises(CheckpointError, match="a, b"):
        embedded(teachers.teacher, tmp_path / "two.safetensors")
