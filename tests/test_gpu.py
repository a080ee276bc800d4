"""What we claim of CUDA; run by ``pytest -m gpu`` where there is a device."""

import numpy as np
import pytest
import torch
from conftest import BRIEFLY, SMALL, small_gan

import gancompress
from gancompress import running
from gancompress.checkpoint import save_networks
from gancompress.extractors import Digits
from gancompress.loading import load_gan
from gancompress.loop import Trainer
from gancompress.losses import LOSSES
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.speed import applied

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("recipe", sorted(LOSSES.keys() - {"portable-i2i"}))
def test_every_recipe_trains_on_cuda_and_its_student_loads_on_the_cpu(recipe, tiny_teacher, tiny_data, tmp_path):
    changes = [("schedule.batch_size", 8), ("schedule.accumulate", 2), *BRIEFLY.get(recipe, [])]
    path = gancompress.distill(str(tiny_teacher), recipe, overrides=changes, data=str(tiny_data), out=tmp_path / "run", steps=5, device="cuda")
    student = load_gan(str(path))
    assert torch.isfinite(student.generator(student.sample(4, torch.Generator().manual_seed(0))[0])).all()


def test_a_translator_trains_on_pairs_on_cuda_and_its_student_loads_on_the_cpu(tmp_path):
    gan = small_gan("unet", SMALL["unet"][0] | {"d_nc": 6})
    save_networks(tmp_path / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    drawn = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "pairs.npz", source=drawn[0], target=drawn[1])
    options = {"data": str(tmp_path / "pairs.npz"), "out": tmp_path / "run", "steps": 5, "device": "cuda"}
    student = load_gan(str(gancompress.distill(str(tmp_path / "teacher.safetensors"), "portable-i2i", **options)))
    assert torch.isfinite(student.generator(student.sample(4, torch.Generator().manual_seed(0))[0])).all()


def test_a_generator_gives_the_same_images_on_cuda_and_on_the_cpu():
    gan = load_gan("sample:dcgan-mnist")
    z = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    expected = gan.generator(z)
    torch.backends.cudnn.allow_tf32 = False
    assert torch.allclose(gan.to("cuda").generator(z.cuda()).cpu(), expected, atol=1e-4)


@pytest.mark.parametrize(("family", "fields"), [(f, v) for f, variants in SMALL.items() for v in variants])
def test_every_family_s_networks_give_the_same_on_cuda_and_on_the_cpu(family, fields):
    gan = small_gan(family, fields)
    inputs, labels = gan.sample(3, torch.Generator().manual_seed(0))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    images = gan.generator(inputs, labels)
    logits = gan.discriminator(images, labels) if gan.discriminator else None
    gan.to("cuda")
    on_device = (inputs.cuda(), None if labels is None else labels.cuda())
    assert torch.allclose(gan.generator(*on_device).cpu(), images, atol=1e-3)
    if gan.discriminator:
        assert torch.allclose(gan.discriminator(images.cuda(), on_device[1]).cpu(), logits, rtol=1e-3, atol=1e-3)


def test_latents_and_data_do_not_depend_on_the_device(tiny_teacher, tiny_data, tmp_path):
    runs = {}
    for device in ("cpu", "cuda"):
        path = gancompress.distill(str(tiny_teacher), "mse", overrides=[("optim.g_lr", 1e-12)], out=tmp_path / device, steps=3, device=device)
        runs[device] = (path.parent / "log.jsonl").read_text().splitlines()[0].split('"mse": ')[1].split(",")[0]
    assert float(runs["cpu"]) == pytest.approx(float(runs["cuda"]), rel=1e-3)


def test_evaluation_runs_on_cuda():
    gan, device = load_gan("sample:dcgan-mnist"), torch.device("cuda")
    found = gancompress.evaluate(gan, load_gan("sample:dcgan-mnist"), num_images=100, extractor=Digits(device), device=device)
    assert found["paired"]["mse"] == pytest.approx(0, abs=1e-9)


def test_distances_on_cuda_are_those_of_the_cpu():
    gan, found = load_gan("sample:dcgan-mnist"), {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        options = {"num_images": 100, "extractor": Digits(device), "device": device, "metrics": ["fid", "pr", "is", "diversity"]}
        found[name] = gancompress.evaluate(gan, load_gan("sample:dcgan-mnist"), **options)["student"]
    for key in ("frechet_distance", "precision", "recall", "inception_score", "diversity"):
        assert found["cuda"][key] == pytest.approx(found["cpu"][key], rel=0.02)  # single pixels are rounded the other way


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("recipe", ["mse", "joint", "dgl"])
def test_a_recipe_trains_in_every_precision_and_keeps_float32(precision, recipe, tiny_teacher, tiny_data, tmp_path):
    changes = [("schedule.batch_size", 8), ("precision", precision), *BRIEFLY.get(recipe, [])]
    path = gancompress.distill(str(tiny_teacher), recipe, overrides=changes, data=str(tiny_data), out=tmp_path / "run", steps=5, device="cuda")
    student = load_gan(str(path))
    images = student.generator(student.sample(4, torch.Generator().manual_seed(0))[0])
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(("family", "fields"), [(f, v) for f, variants in SMALL.items() for v in variants])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_family_s_networks_in_a_reduced_precision_are_near_float32_on_cuda(precision, family, fields):
    gan = small_gan(family, fields).to("cuda")
    inputs, labels = gan.sample(4, torch.Generator().manual_seed(0))
    given = (inputs.cuda(), None if labels is None else labels.cuda())
    exact = gan.generator(*given)
    with applied(gan.networks.values(), precision):
        images = gan.generator(*given)
        logits = gan.discriminator(images, given[1]) if gan.discriminator else images
    assert images.dtype == logits.dtype == torch.float32
    assert (images - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_compiled_run_on_cuda_ends_with_finite_weights(precision, tiny_teacher, tiny_data, tmp_path):
    changes = [("schedule.batch_size", 8), ("precision", precision), ("weights.game", "wasserstein"), ("weights.gradient_penalty", 10)]
    path = gancompress.distill(str(tiny_teacher), "joint", overrides=changes, data=str(tiny_data), out=tmp_path / "run", steps=5, device="cuda", compiled=True)
    assert all(torch.isfinite(p).all() for p in load_gan(str(path)).generator.parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("recipe", sorted(LOSSES.keys() - {"portable-i2i"}))
def test_no_step_waits_for_the_gpu(recipe, precision, tiny_teacher, tiny_data, tmp_path):
    changes = [("schedule.batch_size", 8), ("precision", precision), *BRIEFLY.get(recipe, [])]
    options = {"overrides": changes, "data": str(tiny_data), "out": tmp_path / "run", "device": "cuda", "steps": 20}
    plan = make_plan(Request(str(tiny_teacher), recipe, **options))
    for part in (plan.teacher, plan.student, plan.loss):
        part.to(plan.device)
    trainer, batches = Trainer(plan.trained, plan.loss, plan.recipe), running._batches(plan, plan.recipe.schedule)
    with applied([*trainer.trained, *running._frozen(plan, batches)], precision):
        trainer.train_step(batches)  # kernels are loaded and memory is taken
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                trainer.train_step(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
