"""dgl: every term against arithmetic written out here, the two stages, what is frozen, and what it starts from."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO, SMALL, small_gan
from safetensors.torch import load_file
from test_loop import Cut, Notes, assert_same_run, cut_at
from test_losses import FAKE, REAL, LinearCritic, Scale, batch_of, gan_of, images, softplus, trainer_of
from torch import nn

from gancompress.augment import augment
from gancompress.checkpoint import save_networks
from gancompress.config import load_recipe, parse_override
from gancompress.console import Silent
from gancompress.errors import MissingError, UsageError
from gancompress.gan import state_hash
from gancompress.loading import load_gan
from gancompress.losses import LOSSES
from gancompress.losses.dgl import AutoGuide, Dgl, DglWeights
from gancompress.losses.gan import AdversarialWeights, Adversary, Fit, PathLength, r1_penalty
from gancompress.losses.styled import mixed
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.usefixtures("no_curves", "no_report")


# ------------------------------------------------------------------------------------------------------------- the equation

# of D(x) = 2 x1 + x2: real logits 2 and 1, fake 0 and 3;  of D_T(x) = -x1 + 3 x2: real -1 and 3, fake 0 and 2
TEACHER = (-1.0, 3.0)
BY_HAND = {  # adv, Adv(S, D_T), d_adv
    "nonsaturating": (
        (softplus(0) + softplus(-3)) / 2,
        (softplus(0) + softplus(-2)) / 2,
        (softplus(-2) + softplus(-1)) / 2 + (softplus(0) + softplus(3)) / 2,
    ),
    "hinge": (-1.5, -1.0, 0.0 + (1 + 4) / 2),
    "lsgan": ((1 + 4) / 2, (1 + 1) / 2, (1 + 0) / 2 + (0 + 9) / 2),
}


def dgl_of(**weights):
    return Dgl(gan_of(Scale(1.0), LinearCritic(*TEACHER)), gan_of(Scale(1.0)), DglWeights(**weights))


def numbers(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


@pytest.mark.parametrize("game", BY_HAND)
@pytest.mark.parametrize("guide", [0.1, 2.0])
def test_the_student_minimises_both_games_and_its_critic_its_own(game, guide):
    loss, batch = dgl_of(game=game, guide=guide), batch_of(torch.zeros(2, 2), real=REAL)
    adv, guided, d_adv = BY_HAND[game]
    assert numbers(loss.generator_loss(batch, FAKE)) == pytest.approx({"adv": adv, "guide": guide * guided})
    assert numbers(loss.shown) == pytest.approx({"score_d": 1.5, "score_t": 1.0})
    assert numbers(loss.discriminator_loss(batch, FAKE)) == pytest.approx({"d_adv": d_adv})


def test_r1_is_half_the_squared_gradient_times_gamma_in_each_step_or_in_one_of_its_own():
    batch = batch_of(torch.zeros(2, 2), real=REAL)
    # the gradient of 2 x1 + x2 is (2, 1) everywhere: 10 * (4 + 1) / 2
    every, lazy = dgl_of(r1=10), dgl_of(r1=10, r1_every=16)
    assert numbers(every.discriminator_loss(batch, FAKE))["d_r1"] == pytest.approx(25)
    assert every.d_every == 0
    assert numbers(lazy.discriminator_loss(batch, FAKE)).keys() == {"d_adv"}
    assert numbers(lazy.discriminator_regulariser(batch)) == pytest.approx({"d_r1": 25})
    assert lazy.d_every == 16


def test_the_guide_is_the_game_the_teacher_was_trained_with():
    teacher, student = gan_of(Scale(1.0), LinearCritic(*TEACHER)), gan_of(Scale(1.0))
    teacher.family.game = "hinge"
    terms = numbers(Dgl(teacher, student, DglWeights()).generator_loss(batch_of(torch.zeros(2, 2)), FAKE))
    assert terms == pytest.approx({"adv": BY_HAND["nonsaturating"][0], "guide": 0.1 * BY_HAND["hinge"][1]})


@pytest.mark.parametrize(("step", "on"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_guide_is_zero_before_its_kimg_and_whole_from_it_on(step, on):
    loss = dgl_of(guide_from_kimg=0.008)  # a step of batch_of is 0.004 kimg
    terms = numbers(loss.generator_loss(batch_of(torch.zeros(2, 2), step=step), FAKE))
    assert terms == pytest.approx({"adv": BY_HAND["nonsaturating"][0], "guide": 0.1 * BY_HAND["nonsaturating"][1] if on else 0.0})
    assert ("score_t" in loss.shown) == on


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_own_weighs_the_students_critic_in_stage_two_alone(own):
    loss = dgl_of(own=own, guide_from_kimg=0.004, r1=10, r1_every=4)
    before, after = (batch_of(torch.zeros(2, 2), real=REAL, step=s) for s in (0, 1))
    adv, guided, d_adv = BY_HAND["nonsaturating"]
    assert numbers(loss.generator_loss(before, FAKE)) == pytest.approx({"adv": adv, "guide": 0})
    assert numbers(loss.generator_loss(after, FAKE)) == pytest.approx({"adv": own * adv, "guide": 0.1 * guided})
    assert numbers(loss.discriminator_loss(before, FAKE)) == pytest.approx({"d_adv": d_adv})
    assert numbers(loss.discriminator_loss(after, FAKE)) == pytest.approx({"d_adv": d_adv} if own else {})
    assert numbers(loss.discriminator_regulariser(after)) == pytest.approx({"d_r1": 25} if own else {})


def test_an_updated_teacher_critic_is_a_copy_that_plays_and_is_penalised_from_stage_two_on():
    loss = dgl_of(update_teacher=True, guide_from_kimg=0.004, r1=10, r1_every=4)
    copy, original = loss.critics["teacher"], loss.teacher.discriminator
    assert copy.w is not original.w
    assert copy.w.tolist() == original.w.tolist()
    before, after = (batch_of(torch.zeros(2, 2), real=REAL, step=s) for s in (0, 1))
    assert loss.discriminator_loss(before, FAKE).keys() == {"d_adv"}
    assert loss.discriminator_regulariser(before).keys() == {"d_r1"}  # R1 alone would flatten a critic that does not play
    # D_T on real -1 and 3, on fake 0 and 2; its gradient is (-1, 3)
    d_t = (softplus(1) + softplus(-3)) / 2 + (softplus(0) + softplus(2)) / 2
    assert numbers(loss.discriminator_loss(after, FAKE))["d_t_adv"] == pytest.approx(d_t)
    assert numbers(loss.discriminator_regulariser(after))["d_t_r1"] == pytest.approx(10 * 10 / 2)
    copy.w.data = torch.tensor([0.0, 0.0])  # the student is guided by the copy
    assert numbers(loss.generator_loss(after, FAKE))["guide"] == pytest.approx(0.1 * softplus(0))


def test_ggl_shows_the_critic_the_teachers_images_as_further_fakes_in_stage_two():
    loss = dgl_of(guide=0, teacher_fakes=0.1, guide_from_kimg=0.004)
    teacher = images([1.0, 1.0], [0.0, -1.0])  # D: 3 and -1
    before, after = (batch_of(torch.zeros(2, 2), real=REAL, unpaired=teacher, step=s) for s in (0, 1))
    assert numbers(loss.discriminator_loss(before, FAKE))["d_teacher_fakes"] == 0
    assert numbers(loss.discriminator_loss(after, FAKE))["d_teacher_fakes"] == pytest.approx(0.1 * (softplus(3) + softplus(-1)) / 2)
    assert numbers(loss.generator_loss(after, FAKE)) == pytest.approx({"adv": BY_HAND["nonsaturating"][0], "guide": 0})


def test_the_best_critic_under_ggl_is_that_of_the_paper():
    """p, p_S, p_T on two places; D* = p / (p + p_S + lambda p_T) is where the sum of d_adv and d_teacher_fakes is least."""
    p, p_s, p_t, weight = (torch.tensor(v) for v in ([0.5, 0.5], [0.75, 0.25], [0.25, 0.75], 0.4))
    places = images([1.0, 0.0], [0.0, 1.0])
    loss = dgl_of(guide=0, teacher_fakes=float(weight))
    critic = loss.critics["student"]
    best = p / (p + p_s + weight * p_t)
    critic.w.data = torch.logit(best)
    four = [places[[int(i) for i in row]] for row in ("0011", "0001", "0111")]  # a batch of each distribution
    terms = loss.discriminator_loss(batch_of(torch.zeros(4, 2), real=four[0], unpaired=four[2]), four[1])
    torch.stack(list(terms.values())).sum().backward()
    assert critic.w.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("weights", [{"own": 0}, {"update_teacher": True}, {"guide_from_kimg": "auto"}])
def test_without_a_guide_there_is_no_use_for_what_depends_on_it(weights):
    with pytest.raises(ValueError, match="guide=0"):
        DglWeights(guide=0, **weights)


@pytest.mark.parametrize("kimg", [-1.0, float("nan"), "soon"])
def test_a_beginning_is_a_length_or_auto(kimg):
    with pytest.raises(ValueError, match="guide_from_kimg"):
        DglWeights(guide_from_kimg=kimg)


# ---------------------------------------------------------------------------------------------------- penalties, path length


class Bowl(nn.Module):
    """D(x) = a |x|^2 / 2, whose gradient is a x."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))

    def forward(self, x, condition=None):
        return self.a * x.flatten(1).square().sum(1) / 2


def test_r1_of_a_bowl_is_half_a_squared_times_the_squared_images_and_trains_it():
    critic = Bowl()
    penalty = r1_penalty(critic, images([1.0, 2.0], [0.0, 1.0]), None)  # squares 5 and 1
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.5 * 9 * 3)
    assert float(critic.a.grad) == pytest.approx(3 * 3)  # d/da a^2 / 2 E|x|^2


class Styled(nn.Module):
    """styles: z in each of 3 layers; image (N, 1, 1, 2) = p (w1 + 2 w2), the third layer being unused."""

    def __init__(self, p=2.0):
        super().__init__()
        self.p, self.one = nn.Parameter(torch.tensor(p)), nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def styles(self, inputs, condition=None):
        return self.one * inputs[:, None].expand(-1, 3, -1)

    def forward(self, ws, condition=None):
        self.seen.append(ws.detach())
        ws = ws if ws.ndim == 3 else self.styles(ws)
        return (self.p * (ws[:, 0] + 2 * ws[:, 1]))[:, None, None, :]


def test_path_length_is_the_distance_of_the_jacobian_from_its_running_mean():
    generator, loss = Styled(), PathLength()
    loss.mean.fill_(0.5)
    torch.manual_seed(3)
    penalty = loss(generator, torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]), None)
    penalty.backward()
    torch.manual_seed(3)
    y = torch.randn(3, 1, 1, 2).flatten(1) / math.sqrt(2)
    # J^T y is p y, 2 p y and 0 for the three layers: squares (1 + 4 + 0) p^2 |y|^2, mean over layers
    lengths = 2 * (5 / 3 * y.square().sum(1)).sqrt()
    mean = 0.5 + 0.01 * (float(lengths.mean()) - 0.5)
    assert float(loss.mean) == pytest.approx(mean)
    assert float(penalty.detach()) == pytest.approx(float((lengths - mean).square().mean()))
    # lengths grow with p, the running mean is a constant: d/dp = E 2 (l - a) l / p
    assert float(generator.p.grad) == pytest.approx(float((2 * (lengths - mean) * lengths / 2).mean()), rel=1e-5)


def test_path_length_takes_half_a_batch_and_is_weighted_and_asked_for_lazily():
    student = gan_of(Styled())
    loss = Dgl(gan_of(Scale(1.0), LinearCritic(*TEACHER)), student, DglWeights(path_length=2, path_length_every=4))
    assert loss.g_every == 4
    torch.manual_seed(0)
    terms = loss.generator_regulariser(batch_of(torch.randn(6, 2)), student.generator)
    assert len(student.generator.seen[-1]) == 3
    torch.manual_seed(0)
    z = torch.randn(6, 2)
    assert numbers(terms) == pytest.approx({"path_length": 2 * float(PathLength()(student.generator, z[:3], None).detach())})


def test_a_generator_without_styles_has_neither_path_length_nor_mixing_and_it_is_said():
    loss = dgl_of(path_length=2, style_mixing=0.9)
    assert loss.g_every == 0
    assert loss.mixing == 0
    assert "no styles" in loss.notes[0]


def test_mixed_images_take_other_styles_from_a_random_layer_on():
    generator, cuts = Styled(), set()
    batch = batch_of(torch.full((4, 2), 9.0))
    for seed in range(20):
        torch.manual_seed(seed)
        mixed(generator, batch, 1.0)
        own = (generator.seen[-1] == 9).all(2)  # (4, 3)
        assert (own == own[:1]).all()  # one place for all images
        assert own[0].tolist() == sorted(own[0].tolist(), reverse=True)
        cuts.add(int(own[0].sum()))
        mixed(generator, batch, 0.0)
        assert (generator.seen[-1] == 9).all()
    assert cuts == {1, 2}


# -------------------------------------------------------------------------------------------------------------------- auto


def observed(guide, student, real, teacher=None, n=1000):
    guide.observe(torch.full((n,), student), torch.full((n,), real), teacher)
    return bool(guide.on)


def test_auto_turns_on_in_the_teachers_range_stays_on_and_goes_off_while_it_is_fooled():
    guide, teacher = AutoGuide(), torch.tensor([1.0, 3.0])  # mean 2, deviation 1: the range begins at 1
    assert not observed(guide, -3.0, 4.0, teacher)
    assert not observed(guide, 3.0, 4.0)  # half-life 1 kimg: -3 -> 0
    assert observed(guide, 3.0, 4.0)  # 0 -> 1.5
    assert guide.student == 1.5
    assert observed(guide, -1.0, 4.0)  # 1.5 -> 0.25: below the range again, and stays on
    assert not observed(guide, 10.0, 4.0)  # 0.25 -> 5.125, above the real images' 4
    assert not observed(guide, 4.0, 4.0)
    assert observed(guide, -2.0, 4.0)  # 4.56 -> 1.28
    assert guide.ever_on
    assert numbers(guide.shown()) == {"guide_on": 1, "score_t_real": 4, "score_t_teacher": 2}


def test_an_auto_guide_draws_the_teacher_once_and_logs_its_scores():
    loss = dgl_of(guide_from_kimg="auto")
    batch = batch_of(torch.zeros(2, 2), real=images([0.0, 2.0], [0.0, 2.0]), unpaired=FAKE)
    terms = numbers(loss.generator_loss(batch, FAKE))  # D_T of fake and of the teacher's images: 0 and 2; of real ones 6
    assert terms == pytest.approx({"adv": BY_HAND["nonsaturating"][0], "guide": 0})  # on from the next step
    assert loss.auto.on
    later = batch_of(torch.zeros(2, 2), real=images([0.0, 2.0], [0.0, 2.0]), step=1)
    later.draw_unpaired = lambda: pytest.fail("the teacher was drawn again")
    assert numbers(loss.generator_loss(later, FAKE))["guide"] == pytest.approx(0.1 * BY_HAND["nonsaturating"][1])
    assert loss.shown.keys() == {"score_d", "score_t", "guide_on", "score_t_real", "score_t_teacher"}
    assert loss.closing_notes() == []


def test_a_guide_that_never_turned_on_is_told_at_the_end():
    loss = dgl_of(guide_from_kimg="auto")
    loss.generator_loss(batch_of(torch.zeros(2, 2), real=REAL, unpaired=images([0.0, 9.0], [0.0, 9.0])), FAKE)
    (said,) = loss.closing_notes()
    assert "never turned on" in said
    assert "27" in said


def test_an_updated_teacher_critic_rests_while_auto_is_off():
    loss = dgl_of(guide_from_kimg="auto", update_teacher=True, r1=10, r1_every=4)
    batch = batch_of(torch.zeros(2, 2), real=REAL, step=1)
    assert numbers(loss.discriminator_loss(batch, FAKE))["d_t_adv"] == 0
    assert numbers(loss.discriminator_regulariser(batch))["d_t_r1"] == 0
    loss.auto.on.fill_(1)
    assert numbers(loss.discriminator_loss(batch, FAKE))["d_t_adv"] > 0


# ------------------------------------------------------------------------------------------------------------------- frozen

#: batches of 4; the guide comes in at step 2
BASE = [
    ("schedule.batch_size", 4),
    ("weights.guide_from_kimg", 0.008),
    ("schedule.ema_kimg", 0.02),
    ("schedule.ema_start_kimg", 0),
    ("output.log_kimg", 0.004),
    ("output.save_kimg", 0.012),
    ("output.pictures_kimg", 1),
]
TEACHERS = {"dcgan": ("dcgan", 1), "sngan": ("sngan", 2), "biggan": ("biggan", 0), "stylegan2": ("stylegan2", 0)}


@pytest.fixture(scope="module")
def teacher_of(tmp_path_factory):
    """(family) -> (path of a small teacher with a discriminator, path of labelled images)."""
    made = {}

    def get(name, parts=("generator", "discriminator")):
        if (name, parts) not in made:
            family, variant = TEACHERS[name]
            gan, folder = small_gan(family, SMALL[family][variant]), tmp_path_factory.mktemp(name)
            save_networks(folder / "teacher.safetensors", gan.family, gan.arch, {p: gan.networks[p] for p in parts}, {})
            shape = (12, gan.arch.resolution, gan.arch.resolution, gan.arch.nc)
            pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).squeeze()
            np.savez(folder / "data.npz", x_train=pixels, y_train=np.arange(12) % max(1, gan.arch.classes))
            made[name, parts] = str(folder / "teacher.safetensors"), str(folder / "data.npz")
        return made[name, parts]

    return get


def plan_of(paths, out, *more, recipe="dgl", steps=5, **kwargs):
    teacher, data = paths
    return make_plan(Request(teacher, recipe, data=data, out=out, device="cpu", steps=steps, overrides=[*BASE, *more], **kwargs))


def lines(folder, key):
    return [e for line in (folder / "log.jsonl").read_text().splitlines() if key in (e := json.loads(line))]


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("more", [[], [("schedule.accumulate", 2), ("weights.augment", ["colour", "cutout"])]], ids=["plain", "accumulated"])
def test_the_teachers_discriminator_is_untouched_to_the_last_bit_and_its_generator_never_runs(name, more, teacher_of, tmp_path, monkeypatch):
    monkeypatch.setattr("gancompress.running.folded", lambda gan: gan)  # its own generator is what is watched
    plan = plan_of(teacher_of(name), tmp_path / "run", *more, recipe="dgl-biggan" if name == "biggan" else "dgl")
    d_t = plan.teacher.discriminator
    before, calls = state_hash(d_t.state_dict()), []
    if name != "stylegan2":  # there is something that a forward pass in training mode would move
        assert any(leaf in k for k, _ in d_t.named_buffers() for leaf in (".u", "running_mean"))
    plan.teacher.generator.register_forward_hook(lambda *_: calls.append("teacher"))
    d_t.register_forward_hook(lambda *_: calls.append("d_t"))
    run_plan(plan, Silent())
    assert state_hash(d_t.state_dict()) == before
    assert not d_t.training
    assert all(p.grad is None for net in plan.teacher.networks.values() for p in net.parameters())
    assert calls == ["d_t"] * 3 * (2 if more else 1)  # stage II, the student's steps alone
    guide = [e["guide"] for e in lines(tmp_path / "run", "guide")]
    assert guide[:2] == [0, 0]
    assert all(g != 0 for g in guide[2:])


@pytest.mark.parametrize(("weight", "runs"), [(("weights.guide_from_kimg", "auto"), 1), (("weights.teacher_fakes", 0.1), 5)])
def test_the_teachers_generator_runs_for_the_first_batch_of_auto_and_for_ggl_alone(weight, runs, teacher_of, tmp_path, monkeypatch):
    monkeypatch.setattr("gancompress.running.folded", lambda gan: gan)  # its own generator is what is watched
    plan = plan_of(teacher_of("dcgan"), tmp_path / "run", ("weights.guide_from_kimg", 0), weight)
    calls = []
    plan.teacher.generator.register_forward_hook(lambda *_: calls.append(1))
    run_plan(plan, Silent())
    assert len(calls) == runs


def test_both_critics_judge_the_very_same_images_in_the_students_step(teacher_of, tmp_path):
    plan = plan_of(teacher_of("dcgan"), tmp_path / "run", ("weights.guide_from_kimg", 0))
    trainer, batches = trainer_of(plan)
    seen = {"d": [], "d_t": []}
    plan.loss.critics["student"].register_forward_pre_hook(lambda _, given: seen["d"].append(given[0]))
    plan.teacher.discriminator.register_forward_pre_hook(lambda _, given: seen["d_t"].append(given[0]))
    trainer.train_step(batches)
    assert len(seen["d_t"]) == 1
    assert seen["d"][-1] is seen["d_t"][0]
    assert seen["d_t"][0].requires_grad


def test_the_gradient_of_the_guide_reaches_the_student_alone(teacher_of, tmp_path):
    plan = plan_of(teacher_of("biggan"), tmp_path / "run", ("weights.guide_from_kimg", 0))
    _, batches = trainer_of(plan)
    plan.loss.critics.requires_grad_(False)
    batch = batches(0, 0)
    plan.loss.generator_loss(batch, plan.loss.make_fake(plan.student.generator, batch))["guide"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in plan.student.generator.parameters())
    assert all(p.grad is None for net in (*plan.teacher.networks.values(), plan.loss.critics) for p in net.parameters())


# ------------------------------------------------------------------------------------------------- the run, cut and resumed

LAZY = [("weights.r1_every", 3), ("weights.path_length_every", 2)]
CASES = {
    "stylegan2": ("dgl", "stylegan2", LAZY),
    "stylegan2-auto": ("dgl", "stylegan2", [*LAZY, ("weights.guide_from_kimg", "auto"), ("schedule.accumulate", 2)]),
    "dcgan-updated": ("dgl", "dcgan", [*LAZY, ("weights.update_teacher", True), ("weights.teacher_fakes", 0.1)]),
    "biggan": ("dgl-biggan", "biggan", [("schedule.ema_start_kimg", 0.012), ("schedule.standing_stats", 2)]),
    "dcgan-fit": ("dgl", "dcgan", LAZY),
}


def run_case(case, teacher_of, out):
    recipe, name, more = CASES[case]
    fit = {"fit_discriminator": 0.012} if case == "dcgan-fit" else {}
    paths = teacher_of(name, ("generator",)) if fit else teacher_of(name)
    run_plan(plan_of(paths, out, *more, recipe=recipe, steps=8, **fit), Silent())
    return out


@pytest.fixture(scope="module")
def unbroken(teacher_of, tmp_path_factory):
    made = {}

    def get(case):
        if case not in made:
            made[case] = run_case(case, teacher_of, tmp_path_factory.mktemp(case) / "run")
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cuts", [(4,), (1, 6)], ids=lambda c: "-".join(map(str, c)))
def test_a_run_cut_in_either_stage_repeats_the_unbroken_one_bitwise(case, cuts, unbroken, teacher_of, tmp_path, monkeypatch):
    expected = unbroken(case)
    cut_at(monkeypatch, *cuts)
    for _ in cuts:
        with pytest.raises(Cut):
            run_case(case, teacher_of, tmp_path / "run")
    run_case(case, teacher_of, tmp_path / "run")
    assert_same_run(tmp_path / "run", expected)


def test_the_running_mean_of_the_path_length_is_saved(unbroken):
    state = torch.load(unbroken("stylegan2") / "state.pt", weights_only=True)
    assert state["loss"]["path_length.mean"] > 0


def test_rates_and_betas_are_corrected_for_the_steps_of_lazy_regularisers(teacher_of, tmp_path):
    trainer, batches = trainer_of(plan_of(teacher_of("stylegan2"), tmp_path / "run"))
    trainer.train_step(batches)
    (g,), (d,) = trainer.g_opt.param_groups, trainer.d_opt.param_groups
    assert (g["lr"], *g["betas"]) == pytest.approx((0.002 * 4 / 5, 0, 0.99 ** (4 / 5)))  # path length every 4
    assert (d["lr"], *d["betas"]) == pytest.approx((0.002 * 16 / 17, 0, 0.99 ** (16 / 17)))  # R1 every 16
    plain, _ = trainer_of(plan_of(teacher_of("stylegan2"), tmp_path / "run", ("weights.r1", 0), ("weights.path_length", 0)))
    assert plain.g_opt.param_groups[0]["betas"] == plain.d_opt.param_groups[0]["betas"] == (0, 0.99)
    assert (plain.g_lr, plain.d_lr) == (0.002, 0.002)


def test_a_lazy_regulariser_has_every_kth_step_with_k_times_its_weight(teacher_of, tmp_path, monkeypatch):
    trainer, batches = trainer_of(plan_of(teacher_of("stylegan2"), tmp_path / "run", *LAZY))
    update, seen = type(trainer)._update, []

    def noted(self, optimizer, terms, rate, scaler=None, weight=1.0, record=True):
        seen.append((trainer.step, "d" if optimizer is self.d_opt else "g", weight))
        update(self, optimizer, terms, rate, scaler, weight, record)

    monkeypatch.setattr(type(trainer), "_update", noted)
    for _ in range(4):
        trainer.train_step(batches)
    assert [(s, who) for s, who, weight in seen if weight == 1] == [(s, who) for s in range(4) for who in "dg"]
    assert [x for x in seen if x[2] != 1] == [(0, "d", 3), (0, "g", 2), (2, "g", 2), (3, "d", 3)]
    assert trainer.take_means().keys() >= {"d_r1", "path_length", "d_adv", "adv"}


def test_the_mean_of_a_term_is_over_the_steps_that_had_it(teacher_of, tmp_path):
    """Of two steps the guide scored one: its score is not halved."""
    run_plan(plan_of(teacher_of("dcgan"), tmp_path / "fine", ("weights.guide_from_kimg", 0.012), steps=4), Silent())
    run_plan(plan_of(teacher_of("dcgan"), tmp_path / "run", ("weights.guide_from_kimg", 0.012), ("output.log_kimg", 0.016), steps=4), Silent())
    (fine,), (coarse,) = lines(tmp_path / "fine", "score_t"), lines(tmp_path / "run", "score_t")
    assert coarse["score_t"] == pytest.approx(fine["score_t"])
    assert coarse["guide"] == pytest.approx(fine["guide"] / 4)


@pytest.mark.parametrize(("begins", "refused"), [(0.016, False), (0.0161, True), (0.02, True), (15000, True)])
def test_a_guide_that_would_never_turn_on_is_refused(begins, refused, teacher_of, tmp_path):
    words = (teacher_of("dcgan"), tmp_path / "run", ("weights.guide_from_kimg", begins))  # 5 steps, the last begins at 0.016
    if not refused:
        plan_of(*words)
        return
    with pytest.raises(UsageError, match=f"guide_from_kimg={begins:g}.*never turn on"):
        plan_of(*words)
    plan_of(*words, ("weights.guide", 0))  # the baseline has no guide


# ------------------------------------------------------------------------------------------------- student, start, teacher


def test_the_critics_width_follows_the_students_and_d_ch_mul_changes_it_alone(teacher_of, tmp_path):
    paths = teacher_of("stylegan2")
    half, both = plan_of(paths, tmp_path / "a"), plan_of(paths, tmp_path / "b", ("student.d_ch_mul", 0.25))
    full = plan_of(paths, tmp_path / "c", ("student.ch_mul", 1.0))
    widths = [(p.student.arch.g_widths, p.student.arch.d_widths) for p in (full, half, both)]
    assert widths == [((8, 8, 4), (4, 8, 8)), ((4, 4, 2), (2, 4, 4)), ((4, 4, 2), (1, 2, 2))]
    assert both.loss.critics["student"].arch.d_widths == (1, 2, 2)
    ours, theirs = vars(half.student.arch), vars(both.student.arch)
    assert {k for k in ours if ours[k] != theirs[k]} == {"d_widths"}


def test_an_uncompressed_student_is_as_wide_as_its_teacher_and_begins_anew(teacher_of, tmp_path):
    plan = plan_of(teacher_of("stylegan2"), tmp_path / "run", ("student.ch_mul", 1.0))
    assert plan.student.arch == plan.teacher.arch
    assert plan.loss.critics["student"].state_dict().keys() == plan.teacher.discriminator.state_dict().keys()
    assert plan.student.sha256() != plan.teacher.sha256()
    run_plan(plan, Silent())
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_the_minibatch_deviation_stays_under_r1(teacher_of, tmp_path):
    plan = plan_of(teacher_of("stylegan2"), tmp_path / "run")
    assert plan.recipe.weights["r1"] == 10
    assert plan.loss.critics["student"].arch.d_std


@pytest.fixture(scope="module")
def scratch_run(teacher_of, tmp_path_factory):
    """A finished student of scratch, of the shapes that dgl gives its own."""
    out = tmp_path_factory.mktemp("scratch") / "run"
    more = [("student.ch_mul", 0.5), ("weights.r1", 10)]
    teacher, data = teacher_of("dcgan")
    run_plan(make_plan(Request(teacher, "scratch", data=data, out=out, device="cpu", steps=2, overrides=[BASE[0], *more])), Silent())
    return out


def test_a_student_starts_from_a_finished_run_with_its_discriminator(scratch_run, teacher_of, tmp_path):
    plan = plan_of(teacher_of("dcgan"), tmp_path / "run", ("student.init", str(scratch_run)), ("weights.guide_from_kimg", 0))
    for net, file, part in ((plan.student.generator, "student", "generator"), (plan.loss.critics["student"], "discriminator", "discriminator")):
        saved = load_file(scratch_run / f"{file}.safetensors")
        assert all(torch.equal(tensor, saved[f"{part}.{key}"]) for key, tensor in net.state_dict().items())
    assert plan.start.discriminator is not None
    assert [n for n in plan.notes if str(scratch_run) in n]
    assert "its discriminator goes on too" in plan.notes
    run_plan(plan, Silent())


def test_where_a_start_lies_does_not_count_and_what_it_is_does(scratch_run, teacher_of, tmp_path):
    shutil.copytree(scratch_run, tmp_path / "moved")
    here, there = (plan_of(teacher_of("dcgan"), tmp_path / "run", ("student.init", str(p))) for p in (scratch_run, tmp_path / "moved"))
    assert here.identity == there.identity
    assert here.identity != plan_of(teacher_of("dcgan"), tmp_path / "run").identity


def test_a_discriminator_of_another_shape_starts_fresh_and_it_is_said(scratch_run, teacher_of, tmp_path):
    plan = plan_of(teacher_of("dcgan"), tmp_path / "run", ("student.init", str(scratch_run)), ("student.d_ch_mul", 1.0))
    assert any("starts fresh" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("init", "more", "names"), [("scratch", [("student.ch_mul", 1.0)], ["g_widths", "other shapes"]), ("slize", [], ["slize", "top-magnitude"])]
)
def test_a_start_of_other_shapes_or_of_nothing_is_refused(init, more, names, scratch_run, teacher_of, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(teacher_of("dcgan"), tmp_path / "run", ("student.init", str(scratch_run) if init == "scratch" else init), *more)
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "run").exists()


def test_gradual_the_student_of_a_run_teaches_with_its_own_discriminator(unbroken, teacher_of, tmp_path):
    first = unbroken("stylegan2")
    plan = plan_of((str(first), teacher_of("stylegan2")[1]), tmp_path / "run", ("student.ch_mul", 0.5))
    assert plan.teacher.arch.g_widths == (4, 4, 2)
    assert plan.student.arch.g_widths == (2, 2, 1)
    saved = load_file(first / "discriminator.safetensors")
    critic = torch.load(first / "state.pt", weights_only=True)["loss"]
    for key, tensor in plan.teacher.discriminator.state_dict().items():
        assert torch.equal(tensor, saved[f"discriminator.{key}"])
        assert torch.equal(tensor, critic[f"critics.student.{key}"])  # the student's, not that of its teacher
    run_plan(plan, Silent())


@pytest.mark.parametrize(("field", "value"), [("resolution", 32), ("nc", 1)])
def test_a_student_whose_images_the_teachers_discriminator_cannot_judge_is_refused(field, value, teacher_of, tmp_path):
    with pytest.raises(UsageError, match=f"{field} is .* in the teacher and {value} in the student"):
        plan_of(teacher_of("stylegan2"), tmp_path / "run", ("student.family", "dcgan"), (f"student.arch.{field}", value))


def test_a_student_of_other_classes_than_the_teachers_discriminator_is_refused(teacher_of, tmp_path):
    with pytest.raises(UsageError, match="classes is 3 in the teacher and 0 in the student"):
        plan_of(teacher_of("biggan"), tmp_path / "run", ("student.family", "dcgan"), ("student.arch.classes", 0))


@pytest.mark.parametrize(("size", "accumulate", "told"), [(6, 1, True), (4, 2, True), (8, 2, False), (8, 1, False)])
def test_a_part_of_the_batch_that_holds_no_whole_groups_is_told(size, accumulate, told, teacher_of, tmp_path):
    plan = plan_of(teacher_of("stylegan2"), tmp_path / "run", ("schedule.batch_size", size), ("schedule.accumulate", accumulate))
    assert any(f"{size // accumulate} images at once are no multiple" in note and "group of 4" in note for note in plan.notes) == told


# ------------------------------------------------------------------------------------------------------ a critic afterwards


def test_a_critic_is_trained_once_for_a_teacher_without_one_and_then_frozen(unbroken, teacher_of, tmp_path, monkeypatch):
    out = unbroken("dcgan-fit")
    path = out / "teacher-discriminator" / "discriminator.safetensors"
    assert torch.load(out / "teacher-discriminator" / "state.pt", weights_only=True)["step"] == 3  # 0.012 kimg of 4
    paths = teacher_of("dcgan", ("generator",))
    plan = plan_of(paths, out, *LAZY, steps=8, fit_discriminator=0.012)  # the same command again knows its run
    assert plan.finished
    assert any("first trained for 0.012 kimg" in note for note in plan.notes)
    before = path.read_bytes()
    (out / "student.safetensors").unlink()  # as if it had been stopped after its critic was made
    notes = Notes()
    run_plan(plan, notes)
    assert path.read_bytes() == before
    assert not any("training a discriminator" in note for note in notes.said)
    d_t = plan.teacher.discriminator
    assert state_hash({f"discriminator.{k}": v for k, v in d_t.state_dict().items()}) == state_hash(load_file(path))
    assert all(not p.requires_grad for p in d_t.parameters())


def test_a_critic_trained_afterwards_has_the_recipes_penalty():
    loss = Fit(gan_of(Scale(1.0)), gan_of(Scale(1.0)), AdversarialWeights(r1=10, r1_every=16))
    batch = batch_of(torch.zeros(2, 2), real=REAL, teacher=FAKE)
    assert loss.d_every == 16
    assert numbers(loss.discriminator_regulariser(batch)) == pytest.approx({"d_r1": 25})
    assert numbers(loss.discriminator_loss(batch, loss.make_fake(None, batch))) == pytest.approx({"d_adv": BY_HAND["nonsaturating"][2]})
    assert loss.generator_loss(batch, FAKE) == {}


def test_a_teacher_without_discriminator_is_refused_with_the_recipes_that_need_none(teacher_of, tmp_path):
    with pytest.raises(MissingError, match="needs the teacher's discriminator") as caught:
        plan_of(teacher_of("dcgan", ("generator",)), tmp_path / "run")
    hint = caught.value.hint
    assert "--fit-discriminator KIMG" in hint
    listed = hint.rpartition(": ")[2].split(", ")
    assert {"mse", "joint", "scratch"} <= set(listed)
    assert not {"dgl", "dgl-biggan"} & set(listed)


@pytest.mark.parametrize(
    ("parts", "recipe", "data", "error", "says"),
    [
        (("generator",), "dgl", False, MissingError, "--data"),
        (("generator", "discriminator"), "dgl", True, UsageError, "has a discriminator already"),
        (("generator",), "mse", True, UsageError, "takes no discriminator"),
    ],
)
def test_fitting_a_discriminator_is_refused_without_data_or_use(parts, recipe, data, error, says, teacher_of, tmp_path):
    teacher, images_path = teacher_of("dcgan", parts)
    with pytest.raises(error) as caught:
        make_plan(Request(teacher, recipe, data=images_path if data else None, out=tmp_path / "run", device="cpu", fit_discriminator=1.0))
    assert says in f"{caught.value} {caught.value.hint}"


def test_no_discriminator_can_be_fitted_to_a_family_without_one(teacher_of, tmp_path):
    gan = small_gan("stylegan3", SMALL["stylegan3"][0])
    save_networks(tmp_path / "sg3.safetensors", gan.family, gan.arch, gan.networks, {})
    with pytest.raises(UsageError, match="family stylegan3"):
        make_plan(Request(str(tmp_path / "sg3.safetensors"), "dgl", data=teacher_of("stylegan2")[1], out=tmp_path / "run", device="cpu", fit_discriminator=1.0))


# ------------------------------------------------------------------------------------------------------------- augmentation


def test_translation_moves_by_whole_pixels_and_lets_zeros_in():
    torch.manual_seed(0)
    x = torch.arange(1.0, 257).reshape(1, 1, 16, 16).expand(64, 1, 16, 16)
    shifts = set()
    for moved in augment(x, ["translation"])[:, 0]:
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(moved, nn.functional.pad(x[0, 0], (2, 2, 2, 2))[2 + down : 18 + down, 2 + right : 18 + right])
        ]
        assert len(found) == 1
        shifts |= set(found)
    assert {s[0] for s in shifts} == {s[1] for s in shifts} == {-2, -1, 0, 1, 2}  # an eighth of 16


def test_cutout_clears_a_square_of_half_the_width_where_it_lies_within_the_image():
    torch.manual_seed(0)
    out = augment(torch.ones(200, 2, 16, 16), ["cutout"])
    assert torch.equal(out[:, 0], out[:, 1])
    areas = (out[:, 0] == 0).sum((1, 2))
    assert areas.max() == 64
    assert areas.min() >= 16  # the centre is in the image, a quarter of the square with it
    for picture in out[:, 0]:
        rows, columns = (picture == 0).any(1), (picture == 0).any(0)
        assert int(rows.sum()) * int(columns.sum()) == int((picture == 0).sum())


def test_colour_shifts_and_stretches_about_the_means():
    torch.manual_seed(0)
    x = torch.rand(32, 3, 4, 4) - 0.5
    out = augment(x, ["colour"])
    shift = (out - x).mean((1, 2, 3))  # saturation and contrast keep the mean
    assert shift.abs().max() <= 0.5
    assert shift.std() > 0.2
    chroma, grey = (out - out.mean(1, keepdim=True)), out.mean(1) - out.mean((1, 2, 3))[:, None, None]
    x_grey = x.mean(1) - x.mean((1, 2, 3))[:, None, None]
    contrast = (grey * x_grey).sum((1, 2)) / x_grey.square().sum((1, 2))
    assert torch.allclose(grey, contrast[:, None, None] * x_grey, atol=1e-5)
    assert 0.5 <= contrast.min() < contrast.max() <= 1.5
    x_chroma = x - x.mean(1, keepdim=True)
    factor = (chroma * x_chroma).sum((1, 2, 3)) / x_chroma.square().sum((1, 2, 3))
    assert torch.allclose(chroma, factor[:, None, None, None] * x_chroma, atol=1e-5)
    assert 0 <= (factor / contrast).min() < (factor / contrast).max() <= 2


def test_without_operations_nothing_is_changed_and_with_them_gradients_flow():
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    assert augment(x, []) is x
    augment(x, ["colour", "translation", "cutout"]).sum().backward()
    assert (x.grad != 0).flatten(1).any(1).all()


class Watching(LinearCritic):
    def __init__(self, *weights):
        super().__init__(*weights)
        self.seen = []

    def forward(self, x, condition=None):
        self.seen.append(x.detach())
        return super().forward(x, condition)


def test_every_critic_sees_augmented_images_in_every_term(monkeypatch):
    monkeypatch.setattr("gancompress.losses.gan.augment", lambda x, ops: x + 100 if ops else x)
    monkeypatch.setattr("gancompress.losses.dgl.augment", lambda x, ops: x + 100 if ops else x)
    for operations, augmented in ((["colour"], True), ([], False)):
        family = gan_of(Scale(1.0)).family
        student = gan_of(Scale(1.0))
        student.family = SimpleNamespace(**{**vars(family), "discriminator": lambda arch: Watching(2.0, 1.0)})
        weights = DglWeights(augment=operations, r1=10, gradient_penalty=10, teacher_fakes=0.1)
        loss = Dgl(gan_of(Scale(1.0), Watching(*TEACHER)), student, weights)
        batch = batch_of(torch.zeros(2, 2), real=REAL, unpaired=FAKE)
        loss.generator_loss(batch, FAKE)
        loss.discriminator_loss(batch, FAKE)
        seen = [*loss.critics["student"].seen, *loss.teacher.discriminator.seen]
        assert len(seen) == 7  # S for both; then real, fake, between, real of R1, the teacher's
        assert all(bool((x > 50).all()) == augmented for x in seen)


def variants():
    """(recipe, its overrides) of each command of the table of variants."""
    found = []
    for command in re.findall(r"`(--recipe [^`]+)`", (REPO / "docs" / "recipes" / "dgl.md").read_text()):
        words, flags = command.split(), {"--ch-mul": "student.ch_mul", "--kimg": "schedule.kimg"}
        given = [(flags[a], b) for a, b in itertools.pairwise(words) if a in flags]
        found.append((words[1], [*given, *(parse_override(w) for w in words if "=" in w)]))
    return found


def test_every_command_of_the_table_of_variants_is_a_recipe_that_can_run():
    assert len(variants()) == 29
    for name, overrides in variants():
        recipe = load_recipe(name, overrides)
        weights = LOSSES[recipe.loss].Weights.model_validate(recipe.weights)
        if recipe.loss == "dgl" and weights.guide:
            assert weights.guide_from_kimg < recipe.schedule.kimg


#: what the variants differ in, each kind once
KINDS = {
    (name, *((k, str(v)) for k, v in overrides if k.startswith("weights.") and not k.endswith(("from_kimg", "resolutions")))) for name, overrides in variants()
}


@pytest.mark.parametrize("kind", sorted(KINDS), ids=lambda kind: "-".join([kind[0], *(f"{k.removeprefix('weights.')}={v}" for k, v in kind[1:])]))
@pytest.mark.parametrize("begins", [0, 0.004])
def test_every_kind_of_variant_trains(kind, begins, teacher_of, tmp_path):
    name, *weights = kind
    if name == "imitate" and begins:
        return
    more = [("weights.resolutions", [4, 8])] if name == "imitate" else [("weights.guide_from_kimg", begins)]
    recipe = [pair for pair in BASE if pair[0] != "weights.guide_from_kimg"]
    teacher, data = teacher_of("biggan" if name == "dgl-biggan" else "stylegan2")
    plan = make_plan(Request(teacher, name, data=data, out=tmp_path / "run", device="cpu", steps=2, overrides=[*recipe, *more, *weights]))
    before = plan.student.sha256()
    run_plan(plan, Silent())
    assert plan.student.sha256() != before


def test_the_recipes_have_the_papers_numbers():
    stylegan, biggan = load_recipe("dgl"), load_recipe("dgl-biggan")
    assert (stylegan.weights["guide"], stylegan.weights["guide_from_kimg"], stylegan.schedule.kimg) == (0.1, 15000, 80000)
    assert (biggan.weights["guide"], biggan.weights["guide_from_kimg"] * 1000 / biggan.schedule.batch_size) == (0.1, 100_000)
    assert 0.5 ** (256 / (biggan.schedule.ema_kimg * 1000)) == pytest.approx(0.9999, abs=1e-6)
    assert biggan.schedule.ema_start_kimg * 1000 / 256 == 20_000


def test_the_average_that_is_kept_has_standing_statistics(unbroken):
    state = torch.load(unbroken("biggan") / "state.pt", weights_only=True)["ema"]
    student = load_file(unbroken("biggan") / "student.safetensors")
    moved = {k for k in state if not torch.equal(state[k], student[f"generator.{k}"])}
    assert moved == {k for k in state if k.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {int(student[f"generator.{k}"]) for k in moved if k.endswith("tracked")} == {2}


def test_a_critic_without_penalty_keeps_training_its_statistics():
    assert all(m.training for m in Adversary(small_gan("dcgan", SMALL["dcgan"][1]), AdversarialWeights()).modules())
    assert load_gan("sample:dcgan-mnist").generator.training is False
