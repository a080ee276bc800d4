"""Precision and compilation: what is float32 stays so, and what leaves a network is."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import BRIEFLY, SMALL, small_gan
from safetensors.torch import load_file
from test_loop import Notes, plan_of, run
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from gancompress import distributed as ranks
from gancompress import loop, running, speed
from gancompress.checkpoint import newest_state
from gancompress.data import Images
from gancompress.errors import DivergedError, MissingError, UsageError
from gancompress.folding import folded
from gancompress.losses import LOSSES
from gancompress.losses.gan import PathLength, gradient_penalty, r1_penalty
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan
from gancompress.speed import applied

VARIANTS = [(family, fields) for family, variants in SMALL.items() for fields in variants]
BF16 = [("precision", "bf16")]


pytestmark = pytest.mark.usefixtures("no_curves", "no_report")


def networks_of(family, fields, train=True):
    """A small GAN's networks, that are trained, and what they are given."""
    gan = small_gan(family, fields)
    for net in gan.networks.values():
        net.train(train).requires_grad_(True)
    return gan, list(gan.networks.values()), gan.sample(4, torch.Generator().manual_seed(0))


def outputs_of(gan, inputs, condition):
    """Images, logits and all activations."""
    torch.manual_seed(0)
    images = gan.generator(inputs, condition)
    found = [images]
    if gan.discriminator is not None:
        found += [gan.discriminator(images, condition)]
        found += gan.discriminator.features(images, condition) if hasattr(gan.discriminator, "features") else []
    return found + (gan.generator.features(inputs, condition) if hasattr(gan.generator, "features") else [])


# --------------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("family", "fields"), VARIANTS)
def test_in_bf16_all_that_leaves_a_network_is_float32_and_so_are_its_gradients(family, fields):
    gan, nets, given = networks_of(family, fields, train=False)
    with torch.no_grad():
        exact = outputs_of(gan, *given)
    with applied(nets, "bf16"):
        found = outputs_of(gan, *given)
    assert {x.dtype for x in found} == {torch.float32}
    assert not torch.equal(found[0], exact[0])
    assert (found[0] - exact[0]).norm() < 0.1 * exact[0].norm()
    torch.stack([x.sum() for x in found]).sum().backward()
    assert {p.grad.dtype for net in nets for p in net.parameters() if p.grad is not None} == {torch.float32}


def test_statistics_of_a_network_in_bf16_are_float32_and_not_of_rounded_weights():
    fields = SMALL["sngan"][2]
    exact, reduced = (networks_of("sngan", fields)[0].discriminator for _ in range(2))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    exact(images, labels)
    with applied([reduced], "bf16"):
        reduced(images, labels)
    for key, value in exact.state_dict().items():
        assert torch.equal(reduced.state_dict()[key], value), key  # the power steps of spectral norm


@pytest.mark.parametrize("backend", [None, "eager"])
def test_terms_that_are_differentiated_twice_are_the_same_in_any_precision(backend):
    gan, nets, (z, _) = networks_of("stylegan2", SMALL["stylegan2"][0])
    real, fake = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def terms():
        torch.manual_seed(0)
        found = [r1_penalty(gan.discriminator, real, None), gradient_penalty(gan.discriminator, real, fake, None), PathLength()(gan.generator, z, None)]
        torch.stack(found).sum().backward()
        gradients = [p.grad.clone() for net in nets for p in net.parameters() if p.grad is not None]
        for net in nets:
            net.zero_grad()
        return found + gradients

    gan.generator.mapping.w_avg.requires_grad_(False)
    exact = terms()
    with applied(nets, "bf16", backend):
        found = terms()
    assert len(found) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_a_network_keeps_its_names_and_its_copies_have_weights_of_their_own():
    gan, nets, given = networks_of("dcgan", SMALL["dcgan"][0], train=False)
    kinds, keys = [type(net) for net in nets], [list(net.state_dict()) for net in nets]
    with applied(nets, "bf16"):
        copied = copy.deepcopy(gan.generator)
        for parameter in copied.parameters():
            parameter.data.zero_()
        assert not torch.equal(copied(*given), gan.generator(*given))
        assert all(isinstance(net, kind) for net, kind in zip(nets, kinds, strict=True))
        assert [list(net.state_dict()) for net in nets] == keys
    assert [type(net) for net in nets] == kinds


def test_tf32_is_for_the_run_alone():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [b.allow_tf32 for b in backends]
    for precision, allowed in (("tf32", True), ("fp32", False), ("bf16", False)):
        with applied([], precision):
            assert [b.allow_tf32 for b in backends] == [allowed, allowed]
        assert [b.allow_tf32 for b in backends] == before


@pytest.mark.parametrize(("precision", "why"), [("tf32", "none on a CPU"), ("fp16", "a CPU gains nothing")])
def test_what_a_cpu_has_not_is_refused(precision, why, tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match=f"--precision {precision}: .*{why}"):
        make_plan(Request(str(tiny_teacher), "mse", overrides=[("precision", precision)], out=tmp_path / "run", device="cpu"))


# ------------------------------------------------------------------------------------------------------------------------ runs


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in (value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()) for t in tensors(v)]


@pytest.mark.parametrize("case", ["mse-pool", "joint", "joint-wgan-gp"])
def test_a_run_in_bf16_is_another_goes_on_bitwise_and_keeps_float32(case, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    whole = run(case, tiny_teacher, tiny_data, tmp_path / "whole", more=BF16)
    step = loop.Trainer.train_step

    def cut(self, batches):
        if self.step == 5:
            raise KeyboardInterrupt
        step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", cut)
        with pytest.raises(KeyboardInterrupt):
            run(case, tiny_teacher, tiny_data, tmp_path / "cut", more=BF16)
    run(case, tiny_teacher, tiny_data, tmp_path / "cut", more=BF16)
    exact = run(case, tiny_teacher, tiny_data, tmp_path / "exact")
    students = [load_file(folder / "student.safetensors") for folder in (whole, tmp_path / "cut", exact)]
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())
    assert any(not torch.equal(value, students[2][key]) for key, value in students[0].items())
    assert {t.dtype for t in tensors(newest_state(whole / "state.pt")[0]) if t.is_floating_point()} <= {torch.float32, torch.float64}


def test_a_run_goes_on_in_its_own_precision_only(tiny_teacher, tiny_data, tmp_path):
    run("mse", tiny_teacher, tiny_data, tmp_path / "run", steps=1)
    with pytest.raises(UsageError, match=r"recipe\.precision: fp32 -> bf16"):
        plan_of("mse", tiny_teacher, tiny_data, tmp_path / "run", steps=1, more=BF16)


def test_a_term_that_is_not_finite_in_bf16_is_named(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("gancompress.losses.mse.mse_loss", lambda a, b: (a - b).mean() / 0)
    with pytest.raises(DivergedError, match="loss term mse was not finite"):
        run("mse", tiny_teacher, tiny_data, tmp_path / "run", more=BF16)


# ----------------------------------------------------------------------------------------------------------------------- float16


@pytest.fixture
def half(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    """Plans of runs in float16 on a CPU, where the command line refuses them."""
    monkeypatch.setattr(speed, "check", lambda *_: None)

    def plan(case="joint", folder="run", **options):
        return plan_of(case, tiny_teacher, tiny_data, tmp_path / folder, more=[("precision", "fp16")], **options)

    return plan


def test_a_step_whose_gradients_overflow_in_float16_is_left_out_and_is_no_divergence(half, monkeypatch):
    """They do so in one process: gradients are averaged before the scaler looks, so that all of them leave the step out."""
    seen, step, average, spoil = [], loop.Trainer.train_step, ranks.average_gradients, []

    def watched(self, batches):
        before, spoil[:] = [p.detach().clone() for p in self.student.parameters()], [self.g_opt] if self.step == 3 else []
        step(self, batches)
        seen.append((self.g_scaler.get_scale(), all(torch.equal(a, b) for a, b in zip(before, self.student.parameters(), strict=True))))

    def averaged(optimizer):
        average(optimizer)
        if optimizer in spoil:
            next(p.grad for p in optimizer.param_groups[0]["params"]).fill_(float("inf"))

    monkeypatch.setattr(loop.Trainer, "train_step", watched)
    monkeypatch.setattr(ranks, "average_gradients", averaged)
    notes, plan = Notes(), half()
    run_plan(plan, notes)
    assert seen[:3] == [(65536.0, False)] * 3
    assert seen[3:] == [(32768.0, True)] + [(32768.0, False)] * 4
    assert not any("going back" in note for note in notes.said)
    state = newest_state(plan.run_dir / "state.pt")[0]
    assert [scale["scale"] for scale in state["scales"]] == [32768.0, 65536.0]
    trainer = loop.Trainer(plan.trained, plan.loss, plan.recipe)
    trainer.load_state(state)
    assert trainer.g_scaler.get_scale() == 32768.0


def test_gradients_that_overflow_in_float16_however_they_are_scaled_end_the_run_by_name(half, monkeypatch):
    average = ranks.average_gradients

    def averaged(optimizer):
        average(optimizer)
        next(p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None).fill_(float("inf"))

    monkeypatch.setattr(ranks, "average_gradients", averaged)
    with pytest.raises(DivergedError, match=r"gradient of the student in float16, scaled by 0\.0005, was not finite"):
        run_plan(half(steps=100), Notes())


def test_a_lazy_regulariser_has_a_step_of_its_own_that_is_not_scaled(half, monkeypatch):
    seen, update = [], loop.Trainer._update

    def watched(self, optimizer, terms_of, rate, scaler=None, weight=1.0, record=True):
        seen.append((weight, scaler is not None))
        update(self, optimizer, terms_of, rate, scaler, weight, record)

    monkeypatch.setattr(loop.Trainer, "_update", watched)
    plan = half("scratch", steps=2)
    plan.loss.d_every, plan.loss.adversary.weights = 2, plan.loss.adversary.weights.model_copy(update={"r1": 1.0, "r1_every": 2})
    run_plan(plan, Notes())
    assert seen == [(1.0, True), (2, False), (1.0, True), (1.0, True), (1.0, True)]


# ------------------------------------------------------------------------------------------------------------ nothing is waited for


class Waits(TorchDispatchMode):
    """What would make a host wait for a GPU: numbers read from tensors, and results whose size depends on values.

    Whole numbers are let through: they are seeds and places of images, drawn on the CPU.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        whole = isinstance(args[0], torch.Tensor) and args[0].dtype == torch.int64 if args else True
        masked = name.startswith("aten.index.") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if not whole and (masked or name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal."))):
            self.seen.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("recipe", sorted(LOSSES.keys() - {"portable-i2i"}))
def test_no_step_reads_a_number_from_the_device(recipe, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    get = Images.__getitem__

    def loaded(self, indices):
        with _disable_current_modes():  # files and their cache lie on the CPU
            return get(self, indices)

    monkeypatch.setattr(Images, "__getitem__", loaded)
    changes = [("schedule.batch_size", 4), ("schedule.accumulate", 1), *BRIEFLY.get(recipe, [])]
    plan = make_plan(Request(str(tiny_teacher), recipe, overrides=changes, data=str(tiny_data), out=tmp_path / "run", device="cpu", steps=20))
    trainer, batches = loop.Trainer(plan.trained, plan.loss, plan.recipe), running._batches(plan, plan.recipe.schedule)
    with Waits() as watch:
        for trainer.step in (0, 9, 10):  # tinygan's adversarial step is one in five
            trainer.train_step(batches)
        assert not watch.seen
        bool(torch.isfinite(trainer.sums.popitem()[1]))
    assert watch.seen  # it would have been noticed


# ----------------------------------------------------------------------------------------------------------------- torch.compile

#: two of them quickly: with BatchNorm, with spectral norm; the rest takes a minute
FIRST = [("dcgan", 0), ("tinygan", 1)]
COMPILED = [pytest.param(f, i, marks=[] if (f, i) in FIRST else pytest.mark.slow) for f, variants in SMALL.items() for i in range(len(variants))]


@pytest.mark.parametrize(("family", "variant"), COMPILED)
def test_a_compiled_network_is_one_graph_and_gives_what_it_gave_before(family, variant):
    """fullgraph: torch raises where Python would have to step in."""
    gan, nets, given = networks_of(family, SMALL[family][variant])
    states = [copy.deepcopy(net.state_dict()) for net in nets]

    def step():
        for net, state in zip(nets, states, strict=True):
            net.load_state_dict(state)
            net.zero_grad()
        found = outputs_of(gan, *given)
        torch.stack([x.square().mean() for x in found]).sum().backward()
        gradients = [p.grad.clone() for net in nets for p in net.parameters() if p.grad is not None]
        return [x.detach() for x in found], gradients, [t.clone() for net in nets for t in net.buffers()]

    exact = step()
    with applied(nets, "fp32", "aot_eager"):
        found = step()
        assert copy.deepcopy(nets[0]).state_dict().keys() == states[0].keys()
    largest = max(float(g.abs().max()) for g in exact[1])
    for ours, theirs in zip(found, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * largest)


def test_a_compiled_run_takes_the_steps_of_the_eager_one(tiny_teacher, tiny_data, tmp_path):
    """With critic steps that no graph of the student is kept for, and a penalty that is differentiated twice."""
    students = []
    for name, compiler in (("eager", None), ("compiled", "aot_eager")):
        plan = plan_of("joint-wgan-gp", tiny_teacher, tiny_data, tmp_path / name, steps=3)
        plan.compiler = compiler
        students.append(load_file(run_plan(plan, Notes())))
    assert all(torch.allclose(value, students[1][key], atol=1e-4) for key, value in students[0].items())
    identities = [(tmp_path / name / "run.json").read_text() for name in ("eager", "compiled")]
    assert identities[0].replace("eager", "compiled") == identities[1]


def test_what_cannot_be_compiled_is_told_and_not_run_as_it_is():
    class Broken(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x + 1

    with applied([net := Broken()], backend="eager"), pytest.raises(MissingError, match=r"--compile: Broken\.forward cannot be compiled") as caught:
        net(torch.zeros(2))
    assert caught.value.exit_code == 4


def test_a_machine_without_a_compiler_is_told_before_anything_is_trained(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda x: (_ for _ in ()).throw(RuntimeError("No working C++ compiler found\nmore")))
    with pytest.raises(MissingError, match=r"--compile: nothing can be compiled here \(No working C\+\+ compiler found\)"):
        make_plan(Request(str(tiny_teacher), "mse", out=tmp_path / "run", device="cpu", compiled=True))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------- folded teachers


@pytest.mark.parametrize(("family", "variant"), [("dcgan", 1), ("sngan", 2), ("biggan", 0), ("unet", 0)])
def test_a_teacher_draws_with_its_norms_folded_and_stays_as_it_is(family, variant):
    gan = small_gan(family, SMALL[family][variant])
    hashed, given = gan.sha256(), gan.sample(4, torch.Generator().manual_seed(0))
    lighter = folded(gan)
    assert len(lighter.generator.state_dict()) < len(gan.generator.state_dict())
    assert torch.allclose(lighter.generator(*given), gan.generator(*given), atol=1e-5)
    assert gan.sha256() == hashed
    assert lighter.discriminator is gan.discriminator


def test_a_teacher_without_norms_or_of_a_family_of_somebody_s_own_is_not_folded():
    plain = small_gan("mlp", SMALL["mlp"][0])
    assert folded(plain) is plain
    own = small_gan("dcgan", SMALL["dcgan"][0])
    own.family = dataclasses.replace(own.family, name="dcgan", options=frozenset())
    assert folded(own) is own


def test_a_run_folds_a_live_teacher_and_records_the_one_it_was_given(tiny_teacher, tiny_data, tmp_path):
    plan = plan_of("joint", tiny_teacher, tiny_data, tmp_path / "run", steps=2)
    batches = running._batches(plan, plan.recipe.schedule)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in plan.teacher.generator.modules())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in batches.teacher.generator.modules())
    assert plan.identity["teacher"]["sha256"] == plan.teacher.sha256()
    assert len(running._frozen(plan, batches)) == 3  # the generator, the folded one, and the discriminator of both
