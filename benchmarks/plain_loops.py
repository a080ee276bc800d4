"""The training loops that benchmarks/training.py holds ours against: what a competent person writes for a recipe in eager float32 PyTorch.

Each gets copies of the networks that our run begins with, draws its batches with a line of torch, and does generator, critics, losses and Adam
alone: no log, no average of the weights, no check for infinities, no seeds of its own for every step. Critics are frozen in the student's step.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, relu, softplus

from gancompress.planning import Plan

Maybe = Tensor | None
#: latents (or a translator's inputs) and labels, real images and labels, latents and labels of their own
Drawn = tuple[Tensor, Maybe, Tensor, Maybe, Tensor, Maybe]
Draw = Callable[[], Drawn]
#: one step; gives the losses that it went down by
Step = Callable[[], dict[str, Tensor]]

GAMES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "nonsaturating": (lambda d: softplus(-d).mean(), lambda d: softplus(d).mean(), lambda d: softplus(-d).mean()),
    "hinge": (lambda d: relu(1 - d).mean(), lambda d: relu(1 + d).mean(), lambda d: -d.mean()),
    "lsgan": (lambda d: (d - 1).square().mean(), lambda d: d.square().mean(), lambda d: (d - 1).square().mean()),
}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def r1(critic: nn.Module, x: Tensor, y: Maybe) -> Tensor:
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x, y).sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


@dataclass
class Loop:
    """The networks of one run, its optimisers and its weights ``w``."""

    teacher: Any
    judge: Any
    student: Any
    critics: Any
    adapters: Any
    w: dict[str, Any]
    game: str
    draw: Draw
    g_opt: torch.optim.Optimizer
    d_opt: torch.optim.Optimizer | None
    steps: int = 0
    path_mean: Tensor | float = 0.0

    def taught(self, z: Tensor, y: Maybe) -> Tensor:
        with torch.no_grad():
            images: Tensor = self.teacher(z, y)
        return images

    def train_critics(self, loss: Callable[[], Tensor]) -> Tensor:
        assert self.d_opt is not None
        self.critics.requires_grad_(True)
        found = descend(self.d_opt, loss())
        self.critics.requires_grad_(False)
        return found

    # ------------------------------------------------------------------------------------------------------------ one step each

    def mse(self) -> dict[str, Tensor]:
        z, y, *_ = self.draw()
        return {"g": descend(self.g_opt, mse_loss(self.student(z, y), self.taught(z, y)))}

    def joint(self) -> dict[str, Tensor]:
        z, y, x, yx, *_ = self.draw()
        real, fake, g = GAMES[self.game]
        critic, alpha, target, images = self.critics["student"], self.w["alpha"], self.taught(z, y), self.student(z, y)
        d_loss = self.train_critics(lambda: real(critic(x, yx)) + fake(critic(images.detach(), y)))
        return {"d": d_loss, "g": descend(self.g_opt, alpha * g(critic(images, y)) + (1 - alpha) * mse_loss(images, target))}

    def scratch(self) -> dict[str, Tensor]:
        z, y, x, yx, *_ = self.draw()
        real, fake, g = GAMES[self.game]
        critic, images = self.critics["student"], self.student(z, y)
        d_loss = self.train_critics(lambda: real(critic(x, yx)) + fake(critic(images.detach(), y)))
        return {"d": d_loss, "g": descend(self.g_opt, g(critic(images, y)))}

    def akdg(self) -> dict[str, Tensor]:
        z, y, x, yx, z2, y2 = self.draw()
        real, fake, g = GAMES[self.game]
        images, others = self.student(z, y), self.taught(z2, y2)
        pairs = ((self.critics["student"], x, yx), (self.critics["kd"], others, y2))

        def d_loss() -> Tensor:
            seen = images.detach()
            return torch.stack([real(d(a, b)) + fake(d(seen, y)) + self.w["r1"] * r1(d, a, b) for d, a, b in pairs]).sum()

        return {"d": self.train_critics(d_loss), "g": descend(self.g_opt, sum(g(d(images, y)) for d, _, _ in pairs))}

    def dgl(self) -> dict[str, Tensor]:
        return self.styled(lambda images, z, y: self.w["guide"] * GAMES[self.game][2](self.judge(images, y)))

    def imitate(self) -> dict[str, Tensor]:
        return self.styled(self.imitated)

    def imitated(self, found: list[Tensor], z: Tensor, y: Maybe) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher.features(z, y)
        layers = self.adapters["generator"]
        pairs = [[next(f for f in reversed(side[:-1]) if f.ndim == 4 and f.shape[2] == int(size)) for side in (found, wanted)] for size in layers]
        return self.w["g_inter"] * sum(l1_loss(layers[size](mine), theirs) for size, (mine, theirs) in zip(layers, pairs, strict=True))

    def styled(self, extra: Callable[[Any, Tensor, Maybe], Tensor]) -> dict[str, Tensor]:
        """A StyleGAN2 loop, lazy regularisers included where there are any, with one term more for the student."""
        z, y, x, yx, *_ = self.draw()
        real, fake, g = GAMES[self.game]
        critic, every = self.critics["student"], self.w["r1_every"]
        found = self.student.features(z, y) if self.adapters else self.mixed(z, y)
        images = found[-1] if self.adapters else found
        d_loss = self.train_critics(lambda: real(critic(x, yx)) + fake(critic(images.detach(), y)))
        if self.w["r1"] and self.steps % every == 0:
            self.train_critics(lambda: every * self.w["r1"] * r1(critic, x, yx))
        g_loss = descend(self.g_opt, g(critic(images, y)) + extra(found, z, y))
        if self.w["path_length"] and hasattr(self.student, "styles") and self.steps % self.w["path_length_every"] == 0:
            n = len(z) // 2
            descend(self.g_opt, self.w["path_length_every"] * self.w["path_length"] * self.path_length(z[:n], None if y is None else y[:n]))
        self.steps += 1
        return {"d": d_loss, "g": g_loss}

    def mixed(self, z: Tensor, y: Maybe) -> Tensor:
        if not hasattr(self.student, "styles"):
            return self.student(z, y)
        styles = self.student.styles(z, y)
        if random.random() < self.w["style_mixing"]:
            k = random.randrange(1, styles.shape[1])
            styles = torch.cat([styles[:, :k], self.student.styles(torch.randn_like(z), y)[:, k:]], 1)
        return self.student(styles)

    def path_length(self, z: Tensor, y: Maybe) -> Tensor:
        styles = self.student.styles(z, y)
        images = self.student(styles)
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        self.path_mean = self.path_mean + 0.01 * (lengths.detach().mean() - self.path_mean)
        return (lengths - self.path_mean).square().mean()

    def tinygan_blackbox(self) -> dict[str, Tensor]:
        z, y, x, yx, z2, _ = self.draw()
        real, fake, g = GAMES["hinge"]
        w, critic, target, images = self.w, self.critics["student"], self.taught(z, y), self.student(z, y)

        def d_loss() -> Tensor:
            with torch.no_grad():
                imagined = self.student(z2, yx)
            taught = real(critic(target, y)) + fake(critic(images.detach(), y))
            return w["d_kd"] * taught + w["d_gan"] * (real(critic(x, yx)) + fake(critic(imagined, yx)))

        lost = {"d": self.train_critics(d_loss)}
        *mine, logits = critic.features(images, y)
        with torch.no_grad():
            *theirs, _ = critic.features(target, y)
        shares = [0.5 ** (len(mine) - i) for i in range(len(mine) - 1)] + [1.0]
        g_loss = w["feat"] * sum(a * l1_loss(p, q) for a, p, q in zip(shares, mine, theirs, strict=True)) + w["pix"] * l1_loss(images, target)
        self.steps += 1
        if self.steps % w["adversarial_every"] == 0:
            g_loss = g_loss + w["kd"] * g(logits) + w["gan"] * g(critic(self.student(z2, yx), yx))
        return lost | {"g": descend(self.g_opt, g_loss)}

    def portable_i2i(self) -> dict[str, Tensor]:
        z, y, x, yx, *_ = self.draw()
        real, fake, g = GAMES[self.game]
        w, critic, target, images = self.w, self.critics["student"], self.taught(z, y), self.student(z, y)

        def apart(a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().flatten(1).mean(1)

        def d_loss() -> Tensor:
            a, b, c = critic.features(x, yx), critic.features(images.detach(), y), critic.features(target, y)
            triplet = relu(apart(a[-2], c[-2]) - apart(a[-2], b[-2]) + w["margin"]).mean()
            return w["d_loss"] * (real(a[-1]) + fake(b[-1]) + w["beta2"] * real(c[-1]) + w["gamma2"] * triplet)

        lost = {"d": self.train_critics(d_loss)}
        with torch.no_grad():
            wanted = self.judge.features(target, y)[: w["layers"]]
        found = self.judge.features(images, y)[: w["layers"]]
        perceived = torch.stack([l1_loss(a, b) for a, b in zip(found, wanted, strict=True)]).mean()
        g_loss = w["adv"] * g(critic(images, y)) + w["truth"] * l1_loss(images, x) + w["beta1"] * l1_loss(images, target) + w["gamma1"] * perceived
        return lost | {"g": descend(self.g_opt, g_loss)}


def plain_loop(plan: Plan, draw: Draw) -> Step:
    """A loop of the plan's recipe on copies of its networks; the plan is on the device, and untrained."""
    student, critics, adapters = (copy.deepcopy(net) for net in (plan.student.generator, plan.loss.critics, plan.loss.adapters))
    optim, teacher = plan.recipe.optim, plan.teacher
    trained = [*student.parameters(), *adapters.parameters()]
    g_opt = torch.optim.Adam(trained, optim.g_lr, optim.g_betas, optim.eps)
    d_opt = torch.optim.Adam(critics.parameters(), optim.d_lr, optim.d_betas, optim.eps) if len(critics) else None
    if d_opt:
        critics.requires_grad_(False)
    game = plan.recipe.weights.get("game") or plan.student.family.game
    given = (teacher.generator, teacher.discriminator) if teacher else (None, None)
    loop = Loop(*given, student, critics, adapters, plan.recipe.weights, game, draw, g_opt, d_opt)
    return getattr(loop, plan.recipe.loss.replace("-", "_"))
