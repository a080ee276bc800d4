"""What images are compared by: Inception-v3 (the only one whose distance is called FID), MobileNetV2, a digit classifier."""

from __future__ import annotations

import hashlib
import os
import urllib.error
from abc import ABC, abstractmethod
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import CheckpointError, MissingError
from gancompress.unpickle import open_checkpoint

INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_FILE = INCEPTION_URL.rpartition("/")[2]
INCEPTION_SHA256 = "6726825d"  # first digits, as in the file's name


class Extractor(ABC):
    """``name`` labels every number made with it; ``distance`` and ``score`` are what its numbers are called."""

    name: str
    distance: str
    score: str
    weights_sha256: str

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, C, H, W) -> features (N, F) and class logits (N, K)."""


class Inception(Extractor):
    """torch-fidelity's Inception-v3 of December 2015, on which FID and IS are defined."""

    name, distance, score = "inception-v3", "FID", "IS"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        if not self.weights_sha256.startswith(INCEPTION_SHA256):
            raise CheckpointError(f"{weights}: its sha256 begins {self.weights_sha256[:8]}, that of {INCEPTION_FILE} with {INCEPTION_SHA256}")
        # the hash is that of the known file, so that torch-fidelity may open it in its own way
        self.net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)).to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)
        return features, logits


class MobileNetV2(Extractor):
    """torchvision's MobileNetV2 trained on ImageNet: 1280 pooled features at 128 x 128. Its distance is its own metric, not FID."""

    name, distance, score = "mobilenet-v2", "Frechet distance (MobileNetV2 features)", "inception score (MobileNetV2 classes)"

    def __init__(self, state: dict[str, Tensor], sha256: str, device: torch.device) -> None:
        from torchvision.models import mobilenet_v2

        self.weights_sha256 = sha256
        self.net = mobilenet_v2(weights=None).eval()
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"not a torchvision MobileNetV2 of 1,000 classes: {str(error).splitlines()[-1].strip()}") from None
        self.net.to(device)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().expand(-1, 3, -1, -1) / 255
        x = F.interpolate(x, (128, 128), mode="bilinear", antialias=True, align_corners=False)
        features = self.net.features((x - self.mean) / self.std).mean((2, 3))
        return features, self.net.classifier(features)


class DigitNet(nn.Sequential):
    """Two convolutions and two linear layers for 32 x 32 digits: images (N, 1, 32, 32) in [-1, 1] -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 5, 2, 2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
            nn.Linear(1024, 128), nn.ReLU(),
            nn.Linear(128, 10),
        )  # fmt: skip


class Digits(Extractor):
    """The bundled MNIST classifier (benchmarks/train_digits.py): 128 features of its last hidden layer, 10 classes."""

    name, distance, score = "digits", "Frechet distance (digit features)", "inception score (digit classes)"

    def __init__(self, device: torch.device) -> None:
        path = Path(str(resources.files("gancompress"))) / "samples" / "digits" / "classifier.safetensors"
        self.weights_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.net = DigitNet().eval()
        self.net.load_state_dict(load_file(path))
        self.net.to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean(1, keepdim=True) / 127.5 - 1
        if x.shape[2] != 32:
            x = F.interpolate(x, (32, 32), mode="bilinear", antialias=True, align_corners=False)
        for layer in list(self.net)[:-1]:
            x = layer(x)
        return x, self.net[-1](x)


def inception_path(weights: str | None) -> Path:
    """The Inception weights: as given, from torch's cache, or downloaded into it.

    Raises:
        MissingError: not there and not to be had; the message says which file, where to put it and which flag takes it.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise MissingError(f"--weights {weights}: no such file")
        return Path(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(cached), hash_prefix=INCEPTION_SHA256, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise MissingError(
            f"FID needs {INCEPTION_FILE} (91 MB), which cannot be downloaded here ({error})",
            f"get it from {INCEPTION_URL}, then --weights FILE or put it into {cached.parent}{os.sep}; "
            "--feature-extractor digits or a torchvision MobileNetV2 file measures other distances",
        ) from None
    return cached


def make_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """``inception``, ``digits``, or the path of a torchvision MobileNetV2 state dict.

    Raises:
        MissingError, CheckpointError: weights that are not there or not what they should be.
    """
    check_torchvision()
    if name == "inception":
        return Inception(inception_path(weights), device)
    if name == "digits":
        return Digits(device)
    path = Path(name)
    if not path.is_file():
        raise MissingError(f"--feature-extractor {name}: no such file", "inception, digits, or the path of a torchvision MobileNetV2 state dict")
    state: Any = open_checkpoint(path).content
    if not isinstance(state, dict) or "features.18.0.weight" not in state:
        raise CheckpointError(f"{path}: not a torchvision MobileNetV2 state dict (no features.18.0.weight)")
    try:
        return MobileNetV2(state, hashlib.sha256(path.read_bytes()).hexdigest(), device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_torchvision() -> None:
    """torch-fidelity imports torchvision, which fails in its own ways beside a torch it was not built for."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingError(
            f"torchvision, which every distance and score needs, does not load beside torch {torch.__version__} ({error})",
            "install the torchvision that belongs to this torch, from the same index",
        ) from None
