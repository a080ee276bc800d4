"""AKDG: each term by hand, which images each critic sees, who is trained, students of any family, batches in parts, the presets."""

from __future__ import annotations

import pytest
import torch
from conftest import SMALL, small_gan
from test_loop import Cut, cut_at
from test_losses import CPU, FAKE, LOGITS, REAL, Scale, batch_of, gan_of, images, softplus, trainer_of

from gancompress.checkpoint import save_networks
from gancompress.config import load_recipe
from gancompress.console import Silent
from gancompress.cost import generator_cost
from gancompress.data import Batches
from gancompress.errors import UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.loading import load_gan
from gancompress.losses.akdg import Akdg, AkdgWeights
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.usefixtures("no_curves", "no_report")

TINY = [
    ("schedule.batch_size", 8),
    ("schedule.accumulate", 2),
    ("output.log_kimg", 0.008),
    ("output.save_kimg", 0.016),
    ("output.pictures_kimg", 1),
]
#: of D_KD(x) = x1 - x2, where D_S(x) = 2 x1 + x2: what it says of the teacher's images and of the student's
TEACHERS = images([3.0, 1.0], [2.0, 0.0])
KD_LOGITS = {"teacher": (2.0, 2.0), "fake": (0.0, 0.0)}


def akdg(**weights):
    """The loss with D_S(x) = 2 x1 + x2 and D_KD(x) = x1 - x2."""
    loss = Akdg(gan_of(Scale(1.0)), gan_of(Scale(1.0)), AkdgWeights(**weights))
    loss.critics["kd"].w.data = torch.tensor([1.0, -1.0])
    return loss


def values(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


class Bowl(torch.nn.Module):
    """D(x) = |x|^2 / 2: its gradient at x is x."""

    def forward(self, x, condition=None):
        return x.flatten(1).square().sum(1) / 2


# ------------------------------------------------------------------------------------------------------------------ the terms


@pytest.mark.parametrize(("weight_s", "weight_kd"), [(1.0, 1.0), (0.5, 3.0), (1.0, 0.0)])
def test_the_student_s_terms_are_both_games_weighted(weight_s, weight_kd):
    terms = values(akdg(weight_s=weight_s, weight_kd=weight_kd).generator_loss(batch_of(torch.zeros(2, 2)), FAKE))
    assert terms.keys() == {"adv_s", "adv_kd"}
    # -log sigmoid of each critic's logits of the student's images: 0 and 3, 0 and 0
    assert terms["adv_s"] == pytest.approx(weight_s * (softplus(0) + softplus(-3)) / 2)
    assert terms["adv_kd"] == pytest.approx(weight_kd * softplus(0))


@pytest.mark.parametrize("weight_kd", [1.0, 0.25])
def test_each_critic_plays_its_own_game_in_full(weight_kd):
    batch = batch_of(torch.zeros(2, 2), real=REAL, unpaired=TEACHERS)
    terms = values(akdg(weight_kd=weight_kd).discriminator_loss(batch, FAKE))
    assert terms.keys() == {"d_s_adv", "d_kd_adv"}
    assert LOGITS["real"] == (2.0, 1.0)
    by_hand = (softplus(-2) + softplus(-1)) / 2 + (softplus(0) + softplus(3)) / 2
    assert terms["d_s_adv"] == pytest.approx(by_hand)
    assert KD_LOGITS["teacher"] == tuple(float(x1 - x2) for x1, x2 in TEACHERS.flatten(1))
    assert terms["d_kd_adv"] == pytest.approx(softplus(-2) + softplus(0))


def test_r1_is_taken_at_real_images_by_one_critic_and_at_the_teacher_s_by_the_other():
    loss = akdg(r1=10)
    for adversary in (loss.against_real, loss.against_teacher):
        adversary.critic = Bowl()
    terms = values(loss.discriminator_loss(batch_of(torch.zeros(2, 2), real=REAL, unpaired=TEACHERS), FAKE))
    # 10 / 2 times the mean squared length of x: of (1, 0) and (0, 1); of (3, 1) and (2, 0)
    assert terms["d_s_r1"] == pytest.approx(5 * 1.0)
    assert terms["d_kd_r1"] == pytest.approx(5 * (10 + 4) / 2)


def test_a_lazy_r1_is_asked_for_apart_and_of_both_critics():
    loss = akdg(r1=10, r1_every=4)
    batch = batch_of(torch.zeros(2, 2), real=REAL, unpaired=TEACHERS)
    assert loss.d_every == 4
    assert loss.discriminator_loss(batch, FAKE).keys() == {"d_s_adv", "d_kd_adv"}
    # the squared gradients of the linear critics: 4 + 1 and 1 + 1
    assert values(loss.discriminator_regulariser(batch)) == pytest.approx({"d_s_r1": 5 * 5, "d_kd_r1": 5 * 2})


def test_no_gradient_of_one_critic_s_terms_reaches_the_other():
    loss = akdg(r1=10)
    w_s, w_kd = loss.critics["student"].w, loss.critics["kd"].w
    terms = loss.discriminator_loss(batch_of(torch.zeros(2, 2), real=REAL, unpaired=TEACHERS), FAKE)
    for name, value in terms.items():
        mine, other = (w_kd, w_s) if name.startswith("d_kd") else (w_s, w_kd)
        found = torch.autograd.grad(value, [mine, other], retain_graph=True, allow_unused=True)
        assert found[0].abs().sum() > 0, name
        assert found[1] is None, name


def test_clipping_reaches_both_critics():
    loss = akdg(clip=0.5)
    loss.after_discriminator_step()
    assert loss.critics["student"].w.tolist() == [0.5, 0.5]
    assert loss.critics["kd"].w.tolist() == [0.5, -0.5]


def test_the_critics_begin_with_different_weights():
    loss = Akdg(None, small_gan("mlp", SMALL["mlp"][0]), AkdgWeights(r1=10))
    first, second = (critic.layers[0].weight for critic in loss.critics.values())
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("batch", "warned"), [(32, True), (255, True), (256, False), (2048, False)])
def test_a_small_batch_is_warned_of(batch, warned):
    notes = akdg().check(1.0, batch)
    assert bool(notes) == warned
    assert all(f"a batch of {batch}" in note and "2,048" in note for note in notes)


def test_a_plan_counts_the_whole_batch_not_its_parts(teachers, tiny_data):
    notes = {n: plan_of("sngan-to-mlp", teachers, tiny_data, more=[("schedule.batch_size", n), ("schedule.accumulate", 4)]).notes for n in (128, 256)}
    assert any("a batch of 128: " in note for note in notes[128])
    assert not any("collapse" in note for note in notes[256])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("resolution", 16, "resolution is 8 in the teacher and 16 in the student"), ("nc", 3, "nc is 1"), ("classes", 3, "classes is 0")],
)
def test_what_one_critic_cannot_judge_together_is_refused(field, value, said, teachers, tiny_data):
    with pytest.raises(UsageError, match=said):
        plan_of("sngan-to-mlp", teachers, tiny_data, more=[(f"student.arch.{field}", value)])


# --------------------------------------------------------------------------------------------------------- latents and batches


def batches_of(teacher, student, schedule):
    return Batches(student, teacher, None, schedule, mirror=False, seed=0, pool=0, device=CPU)


def schedule(batch_size=8, accumulate=1):
    return load_recipe("akdg", [("schedule.batch_size", batch_size), ("schedule.accumulate", accumulate)]).schedule


def test_the_teacher_s_latents_are_not_the_student_s():
    """Nor a shift or another order of them: z and z' are independent."""
    student = small_gan("mlp", SMALL["mlp"][0])
    teacher = GAN(student.family, student.arch, Scale(1.0).requires_grad_(False))  # its images are its latents
    batches = batches_of(teacher, student, schedule(512))
    for step in (0, 1):
        batch = batches(step, 0)
        z, drawn = batch.inputs, batch.unpaired[0].flatten(1)
        assert drawn.shape == z.shape
        assert not torch.isin(drawn, z).any()
        assert abs(float((drawn * z).mean())) < 4 / 2048**0.5  # of 2,048 products of normals, sd 1 each
    assert not torch.isin(batches(0, 0).unpaired[0], batches(1, 0).unpaired[0]).any()


def test_a_batch_shows_the_same_images_of_the_teacher_to_the_game_and_to_r1():
    teacher = small_gan("sngan", SMALL["sngan"][0])
    batch = batches_of(teacher, small_gan("mlp", SMALL["mlp"][0]), schedule())(0, 0)
    assert batch.unpaired[0] is batch.unpaired[0]


# ------------------------------------------------------------------------------------------------------------- who is trained


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """{family: path} of small teachers of 8 x 8 grey images; every other latent size."""
    found = {}
    fields = {"sngan": SMALL["sngan"][0], "pggan": {"resolution": 8, "nz": 6, "nc": 1, "g_widths": (8, 4), "d_widths": (4, 8), "d_hidden": 4}}
    for family, values in fields.items():
        gan = small_gan(family, values)
        found[family] = tmp_path_factory.mktemp(family) / "teacher.safetensors"
        save_networks(found[family], gan.family, gan.arch, {"generator": gan.generator}, {})  # a black box: no discriminator
    return found


STUDENTS = {
    "sngan-to-dcgan": ("sngan", "dcgan", [("student.arch.g_widths", [6])]),
    "sngan-to-dcgan-nz-10": ("sngan", "dcgan", [("student.arch.g_widths", [6]), ("student.arch.nz", 10)]),
    "sngan-to-mlp": ("sngan", "mlp", [("student.arch.width", 6), ("student.arch.nz", 3)]),
    "pggan-to-dcgan": ("pggan", "dcgan", [("student.arch.g_widths", [6]), ("student.arch.nz", 2)]),
    "sngan-to-sngan": ("sngan", None, [("student.ch_mul", 0.5)]),
}


def plan_of(case, teachers, data, out=None, more=(), steps=4):
    teacher, family, fields = STUDENTS[case]
    chosen = [*TINY, ("student.family", family), ("student.ch_mul", 1.0), *fields, *more]
    return make_plan(Request(str(teachers[teacher]), "akdg", data=str(data), out=out, device="cpu", steps=steps, overrides=chosen))


@pytest.mark.parametrize("case", STUDENTS)
def test_students_of_any_family_and_latent_size_train_and_load(case, teachers, tiny_data, tmp_path):
    plan = plan_of(case, teachers, tiny_data, tmp_path / "run")
    teacher, before = plan.teacher.sha256(), plan.student.sha256()
    assert plan.teacher.discriminator is None
    path = run_plan(plan, Silent())
    assert plan.teacher.sha256() == teacher
    assert plan.student.sha256() != before
    assert all(p.grad is None for p in plan.teacher.generator.parameters())
    student = load_gan(str(path))
    wanted = {key.removeprefix("student.arch."): value for key, value in STUDENTS[case][2] if key.endswith("nz")}
    assert student.arch.nz == wanted.get("nz", plan.teacher.arch.nz)
    assert (student.family.name, student.arch.resolution) == (plan.student.family.name, 8)
    assert torch.isfinite(student.generator(student.sample(4, torch.Generator().manual_seed(0))[0])).all()


def test_the_critics_are_trained_in_their_step_and_the_student_in_its_own(teachers, tiny_data):
    plan = plan_of("sngan-to-mlp", teachers, tiny_data)
    trainer, batches = trainer_of(plan)
    nets = {"student": plan.student.generator, "d_s": plan.loss.critics["student"], "d_kd": plan.loss.critics["kd"]}
    steps = []

    def moved_by(optimizer, step):
        def wrapped():
            before = {name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()}
            step()
            moved = {name for name, net in nets.items() if any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))}
            steps.append((optimizer, moved))

        return wrapped

    trainer.d_opt.step, trainer.g_opt.step = moved_by("d", trainer.d_opt.step), moved_by("g", trainer.g_opt.step)
    trainer.train_step(batches)
    assert steps == [("d", {"d_s", "d_kd"}), ("g", {"student"})]
    assert all(p.grad is None and not p.requires_grad for p in plan.teacher.generator.parameters())


def test_without_its_weight_the_teacher_s_critic_does_not_move_the_student(teachers, tiny_data):
    grads = {}
    for weight in (0.0, 1.0):
        plan = plan_of("sngan-to-mlp", teachers, tiny_data, more=[("weights.weight_kd", weight), ("weights.weight_s", 0)])
        trainer, batches = trainer_of(plan)
        trainer.train_step(batches)
        grads[weight] = sum(float(p.grad.abs().sum()) for p in plan.student.generator.parameters())
    assert grads[0.0] == 0
    assert grads[1.0] > 0


@pytest.mark.parametrize("parts", [2, 4])
def test_the_gradients_of_a_batch_in_parts_are_those_of_the_whole(parts, teachers, tiny_data):
    """Networks without batch statistics: D_S, D_KD (R1 included) and the student."""
    found = {}
    for accumulate in (1, parts):
        plan = plan_of("sngan-to-mlp", teachers, tiny_data, more=[("schedule.accumulate", accumulate)])
        trainer, batches = trainer_of(plan)
        grads = found[accumulate] = []
        for optimizer in (trainer.d_opt, trainer.g_opt):
            optimizer.step = lambda o=optimizer, g=grads: g.extend(p.grad.clone() for group in o.param_groups for p in group["params"])
        trainer.train_step(batches)
    assert len(found[1]) == len(list(plan.loss.critics.parameters())) + len(list(plan.student.generator.parameters()))
    for whole, cut in zip(found[1], found[parts], strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", ["sngan-to-mlp", "sngan-to-dcgan"])
def test_a_stopped_run_in_parts_goes_on_bitwise(case, teachers, tiny_data, tmp_path, monkeypatch):
    unbroken = run_plan(plan_of(case, teachers, tiny_data, tmp_path / "a", steps=7), Silent())
    cut_at(monkeypatch, 5)
    with pytest.raises(Cut):
        run_plan(plan_of(case, teachers, tiny_data, tmp_path / "b", steps=7), Silent())
    resumed = run_plan(plan_of(case, teachers, tiny_data, tmp_path / "b", steps=7), Silent())  # from the state of step 4
    states = [load_gan(str(path)).generator.state_dict() for path in (unbroken, resumed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["loss"] for name in "ab"]
    assert states[0].keys() == states[1].keys()
    assert any("against_teacher" in key for key in states[0])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# ----------------------------------------------------------------------------------------------------------------- the presets

#: recipe: (layers, parameters, multiply-adds) of the paper's tables
PAPER = {"akdg-cifar-dcgan": (5, 2.6e6, 229e6), "akdg-cifar-mlp": (4, 2.2e6, 2.2e6), "akdg-lsun-dcgan": (8, 3.7e6, 785e6)}
#: what docs/recipes/akdg.md says of ours: parameters, multiply-adds with transposed convolutions counted at their input and at their output
OURS = {
    "akdg-cifar-dcgan": (2_576_480, 76_611_584, 228_982_784),
    "akdg-cifar-mlp": (2_167_296, 2_162_688, 2_162_688),
    "akdg-lsun-dcgan": (3_702_336, 252_379_136, 784_596_992),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_s_student_is_of_the_paper_s_size(name):
    recipe, (layers, parameters, multiply_adds) = load_recipe(name), PAPER[name]
    assert recipe.loss == "akdg"
    family = FAMILIES[recipe.student.family]
    resolution = 256 if "lsun" in name else 32
    arch = family.build_arch(None, {"resolution": resolution, "nc": 3, **recipe.student.arch})
    cost = generator_cost(family, arch)
    assert (cost.parameters, cost.macs_in, cost.macs_out) == OURS[name]
    assert cost.parameters == pytest.approx(parameters, rel=0.02)
    assert cost.macs_out == pytest.approx(multiply_adds, rel=0.02)
    with torch.device("meta"):
        assert len(family.generator(arch).layers) == layers


def test_a_preset_is_the_recipe_but_for_its_student():
    recipe = load_recipe("akdg").model_dump()
    for name in PAPER:
        preset = load_recipe(name).model_dump()
        assert {key for key in recipe if recipe[key] != preset[key]} == {"paper", "student"}
