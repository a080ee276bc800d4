"""Trains the bundled digit classifier on MNIST and writes it where the package looks for it.

    python benchmarks/train_digits.py mnist_70k.npz

The .npz holds x_train, y_train, x_test, y_test. The last line printed is one JSON object with the test accuracy.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from gancompress.data import Images, to_float
from gancompress.extractors import DigitNet


def main(path: str) -> None:
    torch.manual_seed(0)
    images = Images(path, 32, 1)
    x = to_float(images[torch.arange(len(images))][0])
    y = images.labels
    assert y is not None
    net = DigitNet()
    epochs, batch = 6, 128
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // batch))
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with np.load(path) as arrays, tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/test.npz", x_train=arrays["x_test"], y_train=arrays["y_test"])
        test = Images(f"{folder}/test.npz", 32, 1)
    assert test.labels is not None
    with torch.no_grad():
        right = (net(to_float(test[torch.arange(len(test))][0])).argmax(1) == test.labels).double().mean()
    target = Path(__file__).parent.parent / "gancompress" / "samples" / "digits" / "classifier.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), target)
    print(json.dumps({"test_accuracy": float(right), "epochs": epochs, "seed": 0, "bytes": target.stat().st_size}))


if __name__ == "__main__":
    main(sys.argv[1])
