"""What StyleGAN2 trains its generator with beside the game, for every recipe that follows its settings: path length, style mixing."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from gancompress import distributed as ranks
from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, PathLength


class StyledWeights(AdversarialWeights):
    """``path_length`` (every ``path_length_every`` steps) and ``style_mixing`` (its probability) are for generators with styles; 0: off."""

    path_length: float = Field(0.0, ge=0)
    path_length_every: int = Field(4, ge=1)
    style_mixing: float = Field(0.0, ge=0, le=1)


class StyledLoss(DistillationLoss):
    """A loss whose student may have styles; of one without, the plan tells that both are off."""

    def __init__(self, student: GAN, weights: StyledWeights) -> None:
        super().__init__()
        self.path_length, self.path_length_weight = PathLength(), weights.path_length
        styled = hasattr(student.generator, "styles")
        self.g_every = weights.path_length_every if weights.path_length and styled else 0
        self.mixing = weights.style_mixing if styled else 0.0
        if not styled and (weights.path_length or weights.style_mixing):
            self.notes.append(f"a generator of family {student.family.name} has no styles: path length and style mixing are off")

    def make_fake(self, generator: nn.Module, batch: Batch) -> Tensor:
        return mixed(generator, batch, self.mixing) if self.mixing else super().make_fake(generator, batch)

    def generator_regulariser(self, batch: Batch, generator: nn.Module) -> dict[str, Tensor]:
        n = max(1, len(batch.inputs) // 2)  # half a batch, as in StyleGAN2's code
        labels = None if batch.condition is None else batch.condition[:n]
        return {"path_length": self.path_length_weight * self.path_length(generator, batch.inputs[:n], labels)}


def mixed(generator: nn.Module, batch: Batch, probability: float) -> Tensor:
    """Images whose layers from a random one on take the styles of other latents (Karras et al. 2019, arXiv:1812.04948, §3.1)."""
    styles = generator.styles(batch.inputs, batch.condition)  # type: ignore[operator]
    others = generator.styles(ranks.normal(batch.inputs), batch.condition)  # type: ignore[operator]
    layers = styles.shape[1]
    device = styles.device
    crossover = torch.where(torch.rand((), device=device) < probability, torch.randint(1, layers, (), device=device), layers)
    own = torch.arange(layers, device=device)[None, :, None] < crossover
    images: Tensor = generator(torch.where(own, styles, others))
    return images
