"""Our arithmetic against torch-fidelity's on the same features, against closed forms, and its files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gancompress.distances import (
    Moments,
    Statistics,
    frechet,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    read_statistics,
    spread,
    statistics_of,
    write_statistics,
)
from gancompress.errors import CheckpointError, UsageError
from gancompress.extractors import make_extractor
from gancompress.fidelity import diversity, features_of, generated, latents

CPU = torch.device("cpu")


def features(n, d=24, shift=0.0, seed=0):
    """Skewed, correlated and all positive, as those of a ReLU are."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=torch.Generator().manual_seed(9)) + shift).relu() / d**0.5


def oracle(a, b):
    found = fid_statistics_to_metric(fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), False)
    return found["frechet_inception_distance"]


@pytest.mark.parametrize(("n", "m"), [(200, 300), (15, 12), (12, 300)])
def test_the_frechet_distance_is_torch_fidelity_s(n, m):
    """Also with fewer images than features, where a covariance has no full rank."""
    a, b = features(n), features(m, shift=0.5, seed=1)
    assert frechet_distance(a, b) == pytest.approx(oracle(a, b), rel=1e-5, abs=1e-4)
    assert frechet(statistics_of(a), statistics_of(b)) == pytest.approx(oracle(a, b), rel=1e-5, abs=1e-4)
    assert oracle(a, b) > 0.1


@pytest.mark.parametrize("d", [3, 40])
def test_the_frechet_distance_of_gaussians_is_the_closed_form(d):
    """Commuting covariances: |mu|^2 + sum (sqrt(a) - sqrt(b))^2 of their eigenvalues."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64)).Q
    a, b = (torch.rand(d, generator=rng, dtype=torch.float64) + 0.1 for _ in range(2))
    mu = torch.randn(d, generator=rng, dtype=torch.float64)
    one, other = Statistics(mu, basis @ a.diag() @ basis.T, None), Statistics(torch.zeros_like(mu), basis @ b.diag() @ basis.T, None)
    assert frechet(one, other) == pytest.approx(float(mu.square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-8)
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)


def test_the_frechet_distance_of_turned_gaussians_is_that_of_two_by_two_matrices():
    """Covariances that do not commute: tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB)) in two dimensions."""
    a, b = torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double(), torch.tensor([[1.0, -0.6], [-0.6, 3.0]]).double()
    common = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float((a @ b).det())))
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet(Statistics(zero, a, None), Statistics(zero, b, None)) == pytest.approx(float(a.trace() + b.trace()) - 2 * common, rel=1e-8)


def test_moments_that_stream_by_are_those_of_all_features_at_once():
    x = features(101) + 1000  # a mean far from zero, where sums of squares would lose digits
    moments = Moments()
    for part in x.split(7):
        moments.add(part)
    found = moments.statistics()
    assert torch.allclose(found.mu, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(found.sigma, x.double().T.cov(), rtol=1e-9, atol=1e-12)
    assert found.count == 101
    with pytest.raises(UsageError, match="1 images"):
        statistics_of(x[:1])


def test_moments_of_several_processes_are_those_of_all_features_at_once():
    x = features(101) + 1000
    parts = [Moments() for _ in range(4)]  # the last is given nothing
    for i, part in enumerate(x.split(7)):
        parts[i % 3].add(part)
    found = Moments.of_all(parts).statistics()
    assert torch.allclose(found.mu, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(found.sigma, x.double().T.cov(), rtol=1e-9, atol=1e-12)
    assert found.count == 101


def test_the_kernel_distance_is_torch_fidelity_s():
    a, b = features(150), features(130, shift=1.0, seed=1)
    theirs = kid_features_to_metric(a, b, kid_subsets=10, kid_subset_size=100, rng_seed=7, verbose=False)
    mean, sd = kernel_distance(a, b, 7, subsets=10, size=100)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert sd == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert mean > 0.1


def test_the_kernel_distance_of_two_samples_of_one_kind_is_about_nothing_however_few():
    """The Frechet distance of the same samples is not: that is its bias."""
    a, b = features(60), features(60, seed=1)
    mean, _ = kernel_distance(a, b, 0, subsets=50, size=50)
    far, _ = kernel_distance(a, features(60, shift=2.0, seed=1), 0, subsets=50, size=50)
    assert abs(mean) < 0.1 * far
    assert frechet_distance(a, b) > 0.1


def test_a_kernel_distance_of_subsets_that_are_all_the_same_has_no_deviation():
    a, b = features(60), features(60, seed=1)
    assert kernel_distance(a, b, 0, subsets=3, size=60)[1] is None
    assert kernel_distance(a, b, 0, subsets=1, size=50)[1] is None
    assert kernel_distance(a, features(61, seed=1), 0, subsets=3, size=60)[1] > 0


def test_a_kernel_distance_of_fewer_images_than_a_subset_is_refused():
    with pytest.raises(UsageError, match="1,000 images, and there are 1,200 and 999") as caught:
        kernel_distance(torch.zeros(1200, 2), torch.zeros(999, 2), 0)
    assert "--num-images" in caught.value.hint


def test_precision_and_recall_are_torch_fidelity_s():
    a, b = features(120, d=4), features(90, d=4, shift=0.4, seed=1)
    theirs = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    found = precision_recall(a, b, chunk=50)
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-3)
    assert 0 < found[0] != found[1] < 1
    with pytest.raises(UsageError, match="at least 4"):
        precision_recall(a[:3], b)


def test_one_mode_of_two_is_precise_and_does_not_recall():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=rng) + torch.tensor([[0.0, 0.0], [50.0, 0.0]]).repeat(100, 1)
    precision, recall = precision_recall(real[0::2] + 0.01, real)
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.05)


def test_the_score_is_torch_fidelity_s():
    logits = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    assert inception_score(logits) == pytest.approx(isc_features_to_metric(logits)["inception_score_mean"], rel=1e-6)


# -------------------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("family", ["dcgan", "biggan", "stylegan2"])
def test_images_are_a_function_of_seed_and_index_whatever_the_batch(family):
    gan = small_gan(family, SMALL[family][0])
    (z, labels), images = latents(gan, 0, 20, 3), {}
    for size in (1, 7, 64):
        parts = [latents(gan, start, min(size, 20 - start), 3) for start in range(0, 20, size)]
        assert torch.equal(torch.cat([p[0] for p in parts]), z)
        assert labels is None or torch.equal(torch.cat([p[1] for p in parts]), labels)
        images[size] = torch.cat(list(generated(gan, 20, 3, CPU, size)))
        assert torch.allclose(images[size], images[1], atol=1e-5)
    assert not torch.equal(latents(gan, 0, 1, 4)[0], z[:1])
    assert len(z.unique(dim=0)) == 20


def test_features_are_the_same_whatever_the_batch():
    gan, extractor = make_gan(), make_extractor("random", None, CPU)
    found = {size: features_of(generated(gan, 65, 3, CPU, size), extractor)[0] for size in (1, 7, 64)}
    assert torch.allclose(found[1], found[64], atol=1e-5)
    assert torch.allclose(found[7], found[64], atol=1e-5)


def test_noise_drawn_inside_a_network_is_a_function_of_seed_and_index_too():
    gan = small_gan("stylegan2", SMALL["stylegan2"][0] | {"noise": "random"})
    torch.manual_seed(1)
    one = torch.cat(list(generated(gan, 5, 0, CPU, 2)))
    before = torch.random.get_rng_state()
    other = torch.cat(list(generated(gan, 5, 0, CPU, 5)))
    assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    plain = gan.generator(latents(gan, 0, 1, 0)[0])
    assert not torch.allclose(plain, gan.generator(latents(gan, 0, 1, 0)[0]))  # it is drawn anew elsewhere


def test_diversity_is_the_mean_distance_of_images():
    gan = make_gan()
    x = torch.cat(list(generated(gan, 128, 0, CPU))).flatten(1)
    by_hand = sum(float((x[i] - x[j]).square().mean().sqrt()) for i in range(128) for j in range(i)) / (128 * 127 / 2)
    assert diversity(gan, 0, CPU) == pytest.approx(by_hand, rel=1e-4)


def test_the_spread_of_images_is_their_mean_distance_and_nothing_of_a_single_one():
    images = torch.tensor([0.0, 0.0, 0.6])[:, None, None, None].expand(3, 1, 2, 2)
    assert spread(images) == pytest.approx(0.4)  # of three pairs two differ by 0.6
    assert spread(images[:1]) == 0


# -------------------------------------------------------------------------------------------------------------- statistics files


def test_statistics_are_written_as_pytorch_fid_reads_them_and_read_back(tmp_path):
    found = statistics_of(features(50))
    write_statistics(tmp_path / "s.npz", found, {"reference_images": 50, "extractor": "random"})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (24,)
        assert file["sigma"].dtype == np.float64
    again = read_statistics(tmp_path / "s.npz")
    assert torch.equal(again.mu, found.mu)
    assert torch.equal(again.sigma, found.sigma)
    assert (again.count, again.facts["extractor"]) == (50, "random")


def test_statistics_of_pytorch_fid_are_read(tmp_path):
    x = features(50).numpy()
    np.savez_compressed(tmp_path / "s.npz", mu=np.mean(x, 0), sigma=np.cov(x, rowvar=False))
    assert frechet(read_statistics(tmp_path / "s.npz"), statistics_of(features(50))) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("wrong", ["shape", "nan", "text", "pickle"])
def test_statistics_that_are_none_are_refused_by_name(wrong, tmp_path):
    mu, sigma = np.zeros(3), np.eye(3)
    arrays = {
        "shape": (mu, np.eye(4)),
        "nan": (mu * np.nan, sigma),
        "text": (np.array(["a"] * 3), sigma),
        "pickle": (np.array([{}] * 3, dtype=object), sigma),
    }[wrong]
    np.savez(tmp_path / "s.npz", mu=arrays[0], sigma=arrays[1])
    with pytest.raises(CheckpointError, match=r"s\.npz"):
        read_statistics(tmp_path / "s.npz")


def test_images_in_an_npz_are_no_statistics(tiny_data, tmp_path):
    assert read_statistics(tiny_data) is None
    assert read_statistics(tmp_path) is None
