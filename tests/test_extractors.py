"""Our extractor gives the features of torch-fidelity's own, on random weights of the right shapes: the real ones must be downloaded."""

from __future__ import annotations

import dataclasses
import urllib.error
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as stock
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from typer.testing import CliRunner

from gancompress import extractors, weights
from gancompress.cli import app
from gancompress.errors import CheckpointError
from gancompress.extractors import Inception, inception_path, make_extractor, stock_inception
from gancompress.unpickle import open_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """(torch-fidelity's network with random weights and statistics that are not neutral, the file of its weights)."""
    torch.manual_seed(0)
    with (
        patch.object(stock, "load_state_dict_from_url", lambda *a, **k: {}),
        patch.object(stock.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None),
    ):
        net = stock.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.05, 0.3), (module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                tensor.uniform_(low, high)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(net.state_dict(), path)
    return net, path


@pytest.fixture
def ours(inception, monkeypatch):
    known = dataclasses.replace(weights.INCEPTION, sha256=weights.file_sha256(inception[1])[:8])
    monkeypatch.setattr(weights, "INCEPTION", known)
    return Inception(inception[1], CPU)


def test_features_are_those_of_the_stock_extractor(inception, ours):
    images = torch.randint(0, 256, (3, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[0] //= 4
    ours.chunk = 2  # more than one part, the last of another size
    for mine, theirs in zip(ours(images), inception[0](images), strict=True):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-6
        assert float((theirs[0] - theirs[1]).norm() / theirs[0].norm()) > 1e-3  # images do differ


@pytest.mark.network
def test_features_of_the_real_weights_are_those_of_the_stock_extractor():
    path = inception_path(None)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(Inception(path, CPU)(images), stock_inception(open_checkpoint(path).content)(images), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-6


def test_grey_images_are_taken_as_rgb(ours):
    grey = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(ours(grey)[0], ours(grey.expand(-1, 3, -1, -1))[0])


@pytest.mark.parametrize("side", [8, 32, 299, 400])
def test_the_resize_is_tensorflow_s(side):
    x = torch.randint(0, 256, (1, 1, side, side)).float()
    matrix = extractors._resize_matrix(side, "cpu")
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert torch.allclose(matrix @ (x @ matrix.T), theirs, atol=1e-3)


def test_the_hash_alone_does_not_make_a_file_inception_s(tmp_path, monkeypatch):
    """Eight digits can be forged: the file is still opened without running anything in it."""
    path = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    monkeypatch.setattr(weights, "INCEPTION", dataclasses.replace(weights.INCEPTION, sha256=weights.file_sha256(path)[:8]))
    with pytest.raises(CheckpointError, match="not the weights of Inception"):
        Inception(path, CPU)


def test_the_random_extractor_is_the_same_every_time_and_says_what_it_is():
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    one, other = (make_extractor("random", None, CPU) for _ in range(2))
    assert torch.equal(one(images)[0], other(images)[0])
    assert one.weights_sha256 == other.weights_sha256
    assert (one.name, one(images)[0].shape, one(images)[1].shape) == ("random", (2, 64), (2, 10))
    assert "FID" not in one.distance


# ---------------------------------------------------------------------------------------------------------------------- weights


def test_fetching_without_a_network_names_the_file_its_hash_and_its_place(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    done = CliRunner().invoke(app, ["env", "--fetch-weights"])
    assert done.exit_code == 4
    for said in (weights.INCEPTION.file, "6726825d", str(tmp_path), weights.INCEPTION.url):
        assert said in done.output


def test_fetching_checks_what_is_there_already(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights.INCEPTION.cached.parent.mkdir(parents=True)
    weights.INCEPTION.cached.write_bytes(b"half a file")
    done = CliRunner().invoke(app, ["env", "--fetch-weights"])
    assert (done.exit_code, "sha256" in done.output) == (3, True)


def test_fetching_downloads_each_file_with_its_hash(tmp_path, monkeypatch):
    fetched = []

    def download(url, path, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        open(path, "wb").close()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(weights, "check", lambda path, which: "")
    done = CliRunner().invoke(app, ["env", "--fetch-weights"])
    assert done.exit_code == 0, done.output
    assert fetched == [(w.url, w.sha256) for w in (weights.INCEPTION, weights.LPIPS, weights.VGG16)]
    assert str(weights.VGG16.cached) in done.output
