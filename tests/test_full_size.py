"""The largest networks we know, at their published size, once."""

import resource

import pytest
import torch

from gancompress.families import FAMILIES
from gancompress.gan import GAN

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("family", "fields"), [("stylegan2", {"resolution": 1024}), ("stylegan3", {"resolution": 256}), ("biggan", {}), ("biggan_deep", {})])
def test_a_full_size_generator_draws_within_24_gib(family, fields):
    record = FAMILIES[family]
    arch = record.build_arch(None, fields)
    gan = GAN(record, arch, record.generator(arch)).freeze()
    with torch.no_grad():
        images = gan.generator(*gan.sample(1, torch.Generator().manual_seed(0)))
    assert images.shape == (1, 3, arch.resolution, arch.resolution)
    assert torch.isfinite(images).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 << 20  # kilobytes
