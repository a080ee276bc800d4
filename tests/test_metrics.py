"""Every number against one worked by hand, and every number under its own name."""

from __future__ import annotations

import math
import urllib.error

import pytest
import torch

from gancompress.data import Images
from gancompress.distances import frechet_distance, inception_score
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.extractors import INCEPTION_FILE, INCEPTION_URL, Extractor, Inception, inception_path, make_extractor
from gancompress.families import FAMILIES
from gancompress.fidelity import features_of, generated, paired_fidelity, psnr, ssim, variance_of_laplacian
from gancompress.gan import GAN
from gancompress.loading import load_gan
from gancompress.metrics import evaluate

CPU = torch.device("cpu")


def constant(value, size=16):
    return torch.full((2, 1, size, size), float(value))


def test_psnr_is_that_of_a_range_of_two():
    # error 0.2 everywhere: 10 log10(2^2 / 0.04) = 20
    assert psnr(constant(0.5), constant(0.3)).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    # one pixel of 256 differs by 2: MSE 4 / 256, so 10 log10(256)
    other = constant(1.0)
    other[0, 0, 3, 3] = -1.0
    assert float(psnr(constant(1.0), other)[0]) == pytest.approx(10 * math.log10(256), abs=1e-4)


@pytest.mark.parametrize("size", [8, 11, 16])
def test_ssim_of_an_image_with_itself_is_one(size):
    images = torch.rand(3, 3, size, size) * 2 - 1
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (-1.0, 1.0), (0.0, 0.9)])
def test_ssim_of_constants_is_the_luminance_term(a, b):
    # no variance: (2uv + c1) / (u^2 + v^2 + c1) of the intensities u, v in [0, 1], c1 = 0.01^2
    u, v, c1 = (a + 1) / 2, (b + 1) / 2, 1e-4
    found = ssim(constant(a).double(), constant(b).double())
    assert found.tolist() == pytest.approx([(2 * u * v + c1) / (u * u + v * v + c1)] * 2, abs=1e-6)


def test_ssim_of_nearly_equal_greys_is_nearly_one():
    assert float(ssim(constant(0.02), constant(-0.02))[0]) > 0.99


def test_ssim_of_the_negative_is_negative():
    images = torch.rand(2, 1, 16, 16) - 0.5
    images -= images.mean((2, 3), keepdim=True)
    assert (ssim(images, -images) < 0).all()


def test_variance_of_laplacian_by_hand():
    # on the scale 0 ... 255: a single white pixel in black, 5 x 5, in the middle of the 3 x 3 that have four neighbours
    image = -torch.ones(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    # Laplacian: -4 * 255 in the middle, 255 at its four neighbours, 0 at the four corners: mean 0
    by_hand = ((4 * 255) ** 2 + 4 * 255**2) / 9
    assert float(variance_of_laplacian(image)) == pytest.approx(by_hand, rel=1e-5)
    assert float(variance_of_laplacian(constant(0.3))[0]) == pytest.approx(0, abs=1e-6)


def test_variance_of_laplacian_of_colour_is_that_of_its_mean():
    colour = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.allclose(variance_of_laplacian(colour), variance_of_laplacian(colour.mean(1, keepdim=True)))


def cross(scales, centre):
    """Points whose mean is ``centre`` and whose covariance (divided by n - 1) is diag(scales^2): +-s_i a on axis i."""
    d = len(scales)
    n = 2 * d
    points = torch.zeros(n, d, dtype=torch.float64)
    for i, s in enumerate(scales):
        points[2 * i, i], points[2 * i + 1, i] = s, -s
    return points * math.sqrt((n - 1) / 2) + torch.tensor(centre, dtype=torch.float64)


def test_frechet_distance_is_that_of_the_two_gaussians():
    a, b = cross([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]), cross([2.0, 2.0, 1.0], [3.0, 4.0, 0.0])
    assert torch.allclose(torch.cov(a.T), torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)))
    # |mu|^2 + sum (s_a - s_b)^2 = 9 + 16 + 1 + 0 + 4
    assert frechet_distance(a, b) == pytest.approx(30.0, abs=1e-3)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-3)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-3)


def test_inception_score_of_sure_and_balanced_classes_is_their_number():
    logits = 1000 * torch.eye(5, dtype=torch.float64).repeat(200, 1)
    assert inception_score(logits) == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("n", [2, 5])
def test_inception_score_of_few_images_is_a_number(n):
    assert inception_score(torch.eye(n).double() * 50) == pytest.approx(1)  # one image a split: no split has two classes


def test_inception_score_of_one_class_or_of_no_opinion_is_one():
    assert inception_score(torch.zeros(500, 5, dtype=torch.float64)) == pytest.approx(1.0, abs=1e-6)
    assert inception_score(100 * torch.eye(5, dtype=torch.float64)[[2]].repeat(500, 1)) == pytest.approx(1.0, abs=1e-6)


# -------------------------------------------------------------------------------------------------------------------- evaluate


class Pixels(Extractor):
    """The first four pixels as features and as logits."""

    name, distance, score = "pixels", "Frechet distance (pixels)", "inception score (pixels)"
    weights_sha256 = "none"

    def __call__(self, images):
        x = images.flatten(1)[:, :4].float() / 255
        return x, x


@pytest.fixture
def pair():
    family = FAMILIES["mlp"]
    arch = family.build_arch(None, {"resolution": 8, "nc": 1, "nz": 4, "width": 8})
    torch.manual_seed(0)
    return [GAN(family, arch, family.generator(arch)).freeze() for _ in range(2)]


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch):
    monkeypatch.setattr("gancompress.metrics.latency", lambda gan, batch_size, device: (1.0, 0.1))


def test_paired_fidelity_of_a_network_with_itself_is_perfect(pair):
    found = paired_fidelity(pair[0], pair[0], 70, 0, CPU)
    assert found["mse"] == 0
    assert found["ssim"] == pytest.approx(1)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 1e-12), rel=1e-5)


def test_paired_error_is_the_mean_over_shared_latents(pair):
    student, teacher = pair
    both = [torch.cat(list(generated(gan, 70, 3, CPU))) for gan in pair]
    assert len(both[0]) == 70
    found = paired_fidelity(student, teacher, 70, 3, CPU)
    assert found["mse"] == pytest.approx(float((both[0] - both[1]).square().mean()), rel=1e-5)
    assert found["psnr"] == pytest.approx(float(psnr(*both).mean()), rel=1e-5)


def test_networks_that_share_no_latents_have_no_paired_error(pair):
    family = pair[0].family
    arch = family.build_arch(pair[0].arch, {"nz": 5})
    other = GAN(family, arch, family.generator(arch)).freeze()
    assert paired_fidelity(other, pair[0], 4, 0, CPU) is None
    assert evaluate(other, pair[0], num_images=4)["paired"] is None


def test_generated_images_depend_on_the_seed_alone(pair):
    one, again, other = (torch.cat(list(generated(pair[0], 70, seed, CPU))) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_features_are_of_the_eight_bit_images(pair):
    class Noted(Pixels):
        seen = None

        def __call__(self, images):
            Noted.seen = images
            return super().__call__(images)

    batch = torch.tensor([-1.0, 0.0, 1.0, 0.1]).reshape(1, 1, 2, 2).repeat(1, 1, 4, 4)
    features_of(iter([batch]), Noted())
    assert Noted.seen.dtype == torch.uint8
    assert set(Noted.seen.flatten().tolist()) == {0, 128, 255, 140}  # 1.1 * 127.5 = 140.25


@pytest.mark.parametrize("with_data", [True, False])
def test_a_distance_on_other_features_is_never_called_fid(with_data, pair, tiny_data):
    result = evaluate(*pair, Images(str(tiny_data), 8, 1) if with_data else None, num_images=64, extractor=Pixels())
    for column in ("student", "teacher"):
        assert "fid" not in result[column]
        assert result[column]["frechet_distance"] >= 0
    assert "fid" not in str(result).lower()
    assert result["protocol"]["distance"] == "Frechet distance (pixels)"
    assert result["protocol"]["extractor"] == "pixels"


def test_a_distance_on_inception_features_is_called_fid(pair, tiny_data):
    class Named(Pixels):
        name = "inception-v3"

    result = evaluate(pair[0], None, Images(str(tiny_data), 8, 1), num_images=64, extractor=Named())
    assert "fid" in result["student"]
    assert "frechet_distance" not in result["student"]


def test_the_reference_is_named(pair, tiny_data):
    images = Images(str(tiny_data), 8, 1)
    protocol = evaluate(*pair, images, num_images=100, extractor=Pixels())["protocol"]
    assert (protocol["reference"], protocol["reference_sha256"], protocol["reference_images"]) == (str(tiny_data), images.fingerprint, 64)
    protocol = evaluate(*pair, num_images=100, extractor=Pixels())["protocol"]
    assert (protocol["reference"], protocol["reference_sha256"]) == ("the teacher's samples", pair[1].sha256())


def test_the_teachers_distance_to_its_own_samples_is_not_nothing(pair):
    """The reference is drawn from other latents, so that the teacher's figure is the floor and not zero."""
    assert evaluate(*pair, num_images=64, extractor=Pixels())["teacher"]["frechet_distance"] > 0


def test_without_an_extractor_the_metrics_that_need_one_are_left_out(pair):
    result = evaluate(*pair, num_images=8)
    wanted = {"family", "parameters", "macs_input_convention", "macs_output_convention", "bytes", "variance_of_laplacian", "latency_ms_batch_1"}
    assert wanted <= result["student"].keys()
    assert not {"fid", "frechet_distance", "inception_score"} & result["student"].keys()
    assert result["paired"].keys() == {"mse", "psnr", "ssim"}


def test_too_few_images_are_refused(pair):
    with pytest.raises(UsageError, match="at least 2"):
        evaluate(pair[0], num_images=1)


# ------------------------------------------------------------------------------------------------------------------ extractors


def test_missing_inception_weights_say_which_file_where_and_which_flag(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(MissingError) as caught:
        make_extractor("inception", None, CPU)
    assert caught.value.exit_code == 4
    assert INCEPTION_FILE in str(caught.value)
    assert INCEPTION_URL in caught.value.hint
    assert "--weights" in caught.value.hint
    assert str(tmp_path) in caught.value.hint
    assert "--feature-extractor" in caught.value.hint


def test_weights_in_the_cache_are_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("it was downloaded"))
    cached = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert inception_path(None) == cached


def test_inception_weights_with_another_hash_are_refused_and_not_opened(tmp_path, monkeypatch):
    import torch_fidelity.feature_extractor_inceptionv3 as module

    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", lambda *a, **k: pytest.fail("it was opened"))
    path = tmp_path / INCEPTION_FILE
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="sha256"):
        Inception(path, CPU)
    with pytest.raises(MissingError, match="no such file"):
        inception_path(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", ["nothing", "another network"])
def test_a_feature_extractor_that_is_none_is_refused(content, tmp_path):
    path = tmp_path / "net.pth"
    if content == "another network":
        torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(MissingError if content == "nothing" else CheckpointError, match=r"net\.pth"):
        make_extractor(str(path), None, CPU)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (1, 32), (3, 64)])
def test_the_digit_classifier_takes_images_of_any_size(channels, size):
    extractor = make_extractor("digits", None, CPU)
    features, logits = extractor(torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8))
    assert features.shape == (3, 128)
    assert logits.shape == (3, 10)
    assert len(extractor.weights_sha256) == 64


def test_the_digit_classifier_is_sure_of_the_bundled_teachers_digits():
    gan = load_gan("sample:dcgan-mnist")
    _, logits, _ = features_of(generated(gan, 64, 0, CPU), make_extractor("digits", None, CPU))
    assert logits.softmax(1).max(1).values.mean() > 0.8
    assert len(logits.argmax(1).unique()) >= 7
