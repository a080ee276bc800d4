"""What images are compared by: Inception-v3 (the only one whose distance is called FID), MobileNetV2, a digit classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gancompress import weights as files
from gancompress.errors import CheckpointError, MissingError
from gancompress.gan import StateDict, state_hash
from gancompress.unpickle import open_checkpoint

INCEPTION_URL, INCEPTION_FILE = files.INCEPTION.url, files.INCEPTION.file


class Extractor(ABC):
    """``name`` labels every number made with it; ``distance`` and ``score`` are what its numbers are called; ``resize``: what brings
    images to its size."""

    name: str
    distance: str
    score: str
    weights_sha256: str
    resize: str = "none"

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, C, H, W) -> features (N, F) and class logits (N, K), float32 on the device of the images."""


class Inception(Extractor):
    """torch-fidelity's Inception-v3 of December 2015, on which FID and IS are defined: its network and weights, run faster.

    BatchNorm is folded into the convolutions, TensorFlow's bilinear resize is two matrix products, memory lies channels-last, and a CPU gets
    few images at a time, whose activations fit its cache; features differ by less than 1e-6 of their size. No TF32, whatever the default is.
    """

    name, distance, score = "inception-v3", "FID", "IS"
    resize = "299 x 299 bilinear as TensorFlow 1"
    LAYERS = (
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
        "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
    )  # fmt: skip

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.weights_sha256 = files.check(weights, files.INCEPTION)
        net = stock_inception(open_checkpoint(weights).content)
        for module in net.modules():
            if isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        self.trunk = nn.Sequential(*(getattr(net, name) for name in self.LAYERS), nn.Flatten()).to(device).to(memory_format=torch.channels_last)
        self.classes = net.fc.weight.detach().T.to(device)
        self.chunk = 8 if device.type == "cpu" else 256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (_resize_matrix(side, str(images.device)) for side in images.shape[2:])
        found = []
        with torch.backends.cudnn.flags(enabled=True, benchmark=images.is_cuda, allow_tf32=False):
            for part in images.split(self.chunk):
                x = (rows @ (part.float() @ columns.T)).div_(128).sub_(1)
                found.append(self.trunk(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)))
        features = torch.cat(found)
        return features, features @ self.classes  # without the bias, as torch-fidelity's logits_unbiased


def stock_inception(state: StateDict) -> Any:
    """torch-fidelity's own Inception-v3 with these weights, giving layers "2048" and "logits_unbiased".

    Raises:
        CheckpointError: the weights are not its.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as module

    # given a path, it would unpickle the file whatever it holds; given none, it asks this function
    with patch.object(module, "load_state_dict_from_url", lambda *args, **kwargs: state):
        try:
            return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f"not the weights of Inception-v3: {str(error).splitlines()[-1].strip()}") from None


@lru_cache(maxsize=8)
def _resize_matrix(side: int, device: str, to: int = 299) -> Tensor:
    """(to, side): TensorFlow 1's bilinear resize of one axis (corner to corner, no half-pixel centres) as a matrix."""
    place = torch.arange(to, dtype=torch.float32) * torch.tensor(side / to, dtype=torch.float32)
    low = place.long()
    share = place - low
    matrix = torch.zeros(to, side)
    matrix[torch.arange(to), low] += 1 - share
    matrix[torch.arange(to), (low + 1).clamp_max(side - 1)] += share
    return matrix.to(device)


class MobileNetV2(Extractor):
    """torchvision's MobileNetV2 trained on ImageNet: 1280 pooled features at 128 x 128. Its distance is its own metric, not FID."""

    name, distance, score = "mobilenet-v2", "Frechet distance (MobileNetV2 features)", "inception score (MobileNetV2 classes)"
    resize = "128 x 128 bilinear, antialiased"

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
    resize = "32 x 32 bilinear, antialiased"

    def __init__(self, device: torch.device) -> None:
        path = Path(str(resources.files("gancompress"))) / "samples" / "digits" / "classifier.safetensors"
        self.weights_sha256 = files.file_sha256(path)
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


class RandomFeatures(Extractor):
    """A tiny convolutional network with fixed random weights, for tests: 64 features and 10 classes of no meaning."""

    name, distance, score = "random", "Frechet distance (random features)", "inception score (random classes)"
    resize = "32 x 32 bilinear, antialiased"

    def __init__(self, device: torch.device) -> None:
        rng = torch.Generator().manual_seed(0)
        self.first, self.second, self.last = (
            torch.randn(s, generator=rng) / s[1:].numel() ** 0.5 for s in map(torch.Size, [(16, 3, 5, 5), (64, 16, 5, 5), (10, 64)])
        )
        self.weights_sha256 = state_hash({"first": self.first, "second": self.second, "last": self.last})
        self.first, self.second, self.last = self.first.to(device), self.second.to(device), self.last.to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().expand(-1, 3, -1, -1) / 127.5 - 1
        if x.shape[2] != 32:
            x = F.interpolate(x, (32, 32), mode="bilinear", antialias=True, align_corners=False)
        features = F.leaky_relu(F.conv2d(F.leaky_relu(F.conv2d(x, self.first, stride=2), 0.2), self.second, stride=2), 0.2).mean((2, 3))
        return features, features @ self.last.T


def inception_path(weights: str | None) -> Path:
    """The Inception weights: as given, from torch's cache, or downloaded into it.

    Raises:
        MissingError: not there and not to be had; the message says which file, where to put it and which flag takes it.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise MissingError(f"--weights {weights}: no such file")
        return Path(weights)
    remedy = "--weights FILE; --feature-extractor digits or a torchvision MobileNetV2 file measures other distances"
    return files.fetch(files.INCEPTION, remedy)


def make_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """``inception``, ``digits``, ``random`` (for tests), or the path of a torchvision MobileNetV2 state dict.

    Raises:
        MissingError, CheckpointError: weights that are not there or not what they should be.
    """
    check_torchvision()
    if name == "inception":
        return Inception(inception_path(weights), device)
    if name == "digits":
        return Digits(device)
    if name == "random":
        return RandomFeatures(device)
    path = Path(name)
    if not path.is_file():
        raise MissingError(f"--feature-extractor {name}: no such file", "inception, digits, random, or the path of a torchvision MobileNetV2 state dict")
    state: Any = open_checkpoint(path).content
    if not isinstance(state, dict) or "features.18.0.weight" not in state:
        raise CheckpointError(f"{path}: not a torchvision MobileNetV2 state dict (no features.18.0.weight)")
    try:
        return MobileNetV2(state, files.file_sha256(path), device)
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
