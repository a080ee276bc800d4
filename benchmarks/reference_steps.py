"""Training steps of reference repositories, run as they stand beside ours by benchmarks/training.py on the same weights and batch size.

A developer's script: it imports and runs the code of checkouts that the person fetched and trusts (gancompress itself never runs what it reads).
What a loop does between its batches is a step; progress bars, TensorFlow, data loaders and pictures are stood in for, so that only the step is
left. Networks narrower than a repository's own are made by scaling the numbers of channels in the text of its module as it is read.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor
from training_cases import random_gan

from gancompress.checkpoint import save_networks


class Stepped:
    """A foreign loop as a function of one step: it runs in a thread that waits whenever the loop asks its loader for a batch."""

    def __init__(self, loop: Callable[[Any], object], batch: Callable[[], Any]) -> None:
        self._batch, self._go, self._done = batch, threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self.dataset = range(1 << 40)  # a loader has one, and is asked how long it is
        threads = torch.get_num_threads()

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                loop(self)
            except BaseException as error:
                self._error = error
            self._done.release()

        threading.Thread(target=run, daemon=True).start()
        self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error:
            raise self._error

    def __iter__(self) -> Stepped:
        return self

    def __next__(self) -> Any:
        self._done.release()
        self._go.acquire()
        return self._batch()

    def __call__(self) -> None:
        self._go.release()
        self._wait()


@dataclass
class Reference:
    """Its step, and what ours needs for the same: the teacher, the networks that student and critic begin with, and the recipe's changes."""

    step: Callable[[], object]
    recipe: str
    teacher: Path
    student: Path
    resolution: int
    classes: int
    changes: list[tuple[str, Any]] = field(default_factory=list)
    remark: str = ""


@contextlib.contextmanager
def imports_of(checkout: Path, *absent: str) -> Iterator[None]:
    """Modules of the checkout can be imported; ``absent`` ones stand empty. All are forgotten afterwards: repositories share names."""
    before = set(sys.modules)
    sys.path.insert(0, str(checkout))
    for name in absent:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))  # torch looks for a spec
    try:
        with contextlib.chdir(checkout) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
            yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name in absent or (isinstance(file, str) and Path(file).is_relative_to(checkout)):
                del sys.modules[name]


def narrowed(checkout: Path, name: str, width: int) -> types.ModuleType:
    """A module whose table of channels by resolution is scaled from 512 to ``width``."""
    path = checkout / f"{name}.py"
    text = re.sub(r"(\n\s+\d+: )(\d+)", lambda m: f"{m[1]}{max(1, int(m[2]) * width // 512)}", path.read_text())
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), vars(module))
    return module


def rosinality(checkout: Path, folder: Path, full: bool, device: torch.device) -> Reference:
    """StyleGAN2's own training step, which is stage I of dgl: no discriminator of a teacher."""
    import torch.utils.cpp_extension as extension

    side, width, dim, batch = (256, 512, 512, 32) if full else (32, 32, 64, 4)
    if device.type != "cuda":
        extension.load = lambda *_, **__: None  # its operations have a path without the extension
    with imports_of(checkout, "dataset", "wandb"):
        model, train = narrowed(checkout, "model", width), importlib.import_module("train")
    torch.manual_seed(0)
    g, d = model.Generator(side, dim, 8).to(device), model.Discriminator(side).to(device)
    averaged = copy.deepcopy(g).eval()
    path = folder / "rosinality.pt"
    saved = {"g": g.state_dict(), "d": d.state_dict(), "g_ema": averaged.state_dict(), "args": argparse.Namespace(size=side)}
    torch.save({k: {n: t.cpu() for n, t in v.items()} if isinstance(v, dict) else v for k, v in saved.items()}, path)
    train.tqdm, train.utils = (lambda steps, **_: MagicMock(__iter__=lambda _: iter(steps))), MagicMock()
    train.get_rank = lambda: 0
    g_opt = torch.optim.Adam(g.parameters(), lr=0.002 * 4 / 5, betas=(0.0, 0.99 ** (4 / 5)))
    d_opt = torch.optim.Adam(d.parameters(), lr=0.002 * 16 / 17, betas=(0.0, 0.99 ** (16 / 17)))
    args = argparse.Namespace(
        iter=1 << 40, start_iter=16, batch=batch, latent=dim, mixing=0.9, n_sample=1, distributed=False, wandb=False, augment=False, augment_p=0,
        r1=10, d_reg_every=16, path_regularize=2, path_batch_shrink=2, g_reg_every=4,
    )  # fmt: skip
    images = torch.rand(batch, 3, side, side) * 2 - 1
    step = Stepped(lambda loader: train.train(args, loader, g, d, g_opt, d_opt, averaged, device), lambda: images.clone())
    changes = [("schedule.batch_size", batch), ("student.ch_mul", 1), ("weights.guide_from_kimg", 15000)]
    return Reference(step, "dgl", path, path, side, 0, changes, "ours before the guide begins: upstream has no teacher")


def dgl_biggan(checkout: Path, folder: Path, full: bool, device: torch.device) -> Reference:
    """DGL-GAN's BigGAN step, with the teacher's discriminator in G's loss."""
    root = checkout / "BigGAN-PyTorch-code" if (checkout / "BigGAN-PyTorch-code").is_dir() else checkout
    side, classes, width, batch = (128, 1000, 96, 64) if full else (32, 10, 16, 8)
    with imports_of(root, "datasets", "h5py", "tensorboardX", "sync_batchnorm", "animal_hash"):
        model, functions, utils = (importlib.import_module(name) for name in ("BigGAN", "train_fns", "utils"))
    common = {"resolution": side, "n_classes": classes, "dim_z": 120 if full else 80, "shared_dim": 128, "G_shared": True, "hier": True, "SN_eps": 1e-6}
    common |= {"G_activation": torch.nn.ReLU(inplace=True), "D_activation": torch.nn.ReLU(inplace=True), "G_attn": "64", "D_attn": "64", "adam_eps": 1e-6}
    common |= {"G_lr": 1e-4, "D_lr": 4e-4, "BN_eps": 1e-5}
    torch.manual_seed(0)
    nets = {w: (model.Generator(**common, G_ch=w).to(device), model.Discriminator(**common, D_ch=w).to(device)) for w in (width, width // 2)}
    paths = {w: folder / f"dgl-{w}" for w in nets}
    for w, (g, d) in nets.items():
        paths[w].mkdir()
        torch.save({k: t.cpu() for k, t in g.state_dict().items()}, paths[w] / "G_ema.pth")
        torch.save({k: t.cpu() for k, t in d.state_dict().items()}, paths[w] / "D.pth")
        torch.save({"itr": 0, "config": {**common, "G_ch": w, "D_ch": w}}, paths[w] / "state_dict.pth")
    g, d = nets[width // 2]
    config = {"batch_size": batch, "num_D_steps": 1, "num_D_accumulations": 1, "num_G_accumulations": 1, "toggle_grads": True, "split_D": False}
    config |= {"D_ortho": 0.0, "G_ortho": 0.0, "d_loss": "loss_hinge_dis", "g_loss": "loss_hinge_genDual", "ema": True}
    z, y = utils.prepare_z_y(batch, g.dim_z, classes, device=device)
    averaged = utils.ema(g, copy.deepcopy(g), 0.9999, 20000)
    pair = model.G_D_compre(g, d, nets[width][1])
    train = functions.GAN_training_compression_function(g, d, pair, z, y, averaged, {"itr": 1}, config, {"writer": MagicMock(), "global_steps": 0})
    images, labels = torch.rand(batch, 3, side, side, device=device) * 2 - 1, torch.randint(classes, (batch,), device=device)
    changes = [("schedule.batch_size", batch), ("weights.guide_from_kimg", 0), ("student.ch_mul", 0.5)]
    return Reference(lambda: train(images, labels), "dgl-biggan", paths[width], paths[width // 2], side, classes, changes)


def tinygan(checkout: Path, folder: Path, full: bool, device: torch.device) -> Reference:
    """TinyGAN's solver, which reads pictures that its teacher drew before."""
    side, channels, batch = (128, 32, 32) if full else (64, 16, 8)
    teacher = random_gan("biggan", {"resolution": side, "classes": 1000, "width": 96 if full else 8, "d_width": 8})
    path = folder / "tinygan-teacher.safetensors"
    save_networks(path, teacher.family, teacher.arch, teacher.networks, {})
    foreign = ("tensorflow", "tensorflow.python", "tensorflow.python.ops", "inception_tf", "numpy_fid", "scipy", "scipy.stats")
    with imports_of(checkout, *foreign):
        module, nz, depth = importlib.import_module("solver"), teacher.arch.nz, side.bit_length() - 3
        config = argparse.Namespace(**dict.fromkeys(("log_dir", "sample_dir", "model_save_dir", "result_dir", "real_incep_stat_dir", "real_fid_stat_dir")))
        vars(config).update(z_dim=nz, c_dim=128, image_size=side, g_conv_dim=channels, d_conv_dim=channels, g_repeat_num=depth, d_repeat_num=depth)
        vars(config).update(lambda_gan=0.01, batch_size=batch, num_epoch=1, lr_decay_start=1 << 40, g_lr=2e-4, d_lr=2e-4, beta1=0.0, beta2=0.9)
        vars(config).update(n_critic=5, resume_epoch=0, use_tensorboard=False, use_numpy_fid=True, log_step=1 << 40, sample_step=1, model_save_step=1)
        config.mode = "train"
        module.tqdm, module.utils.truncated_normal = (lambda items: items), (lambda n: torch.randn(n).clamp_(-2, 2).mul_(0.5).numpy())
        torch.manual_seed(0)
        solver = module.Solver(None, None, None, config)
    solver.device = device
    solver.G.to(device), solver.D.to(device)
    student = folder / "model.tar"
    torch.save({name: {k: t.cpu() for k, t in net.state_dict().items()} for name, net in (("G", solver.G), ("D", solver.D))}, student)

    def pictures() -> tuple[Tensor, Tensor]:
        return torch.rand(batch, 3, side, side) * 2 - 1, torch.randint(1000, (batch,))

    images, labels = pictures()
    z, real = torch.randn(batch, nz), pictures()
    solver.real_loader = [real] * (1 << 16)

    def loop(loader: Any) -> None:
        solver.train_loader = loader
        solver.train()

    step = Stepped(loop, lambda: (images, z, labels))
    fields = {"ch": channels, "d_ch": channels, "embedding": 128}
    changes: list[tuple[str, Any]] = [("schedule.batch_size", batch), ("student.arch", fields), ("schedule.teacher_pool", 4 * batch)]
    return Reference(step, "tinygan-blackbox", path, student, side, 1000, changes, "both on the teacher's stored images")


#: by name: (where to fetch it, what builds its step)
REFERENCES: dict[str, tuple[str, Callable[[Path, Path, bool, torch.device], Reference]]] = {
    "tinygan": ("terarachang/ACCV_TinyGAN", tinygan),
    "dgl": ("yuesongtian/DGL-GAN", dgl_biggan),
    "rosinality": ("rosinality/stylegan2-pytorch", rosinality),
}
