"""The architectures we know: one file each. A test holds this list equal to the files.

The order is the reader's: a PatchGAN is a chain of convolutions as a DCGAN's discriminator is, so what goes by names comes first.
"""

from typing import Any

from gancompress.families import biggan, biggan_deep, dcgan, mlp, pggan, resnet, sngan, sngan24, stylegan2, stylegan3, tinygan, unet
from gancompress.gan import Family

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        resnet.FAMILY,
        unet.FAMILY,
        biggan.FAMILY,
        biggan_deep.FAMILY,
        pggan.FAMILY,
        sngan.FAMILY,
        sngan24.FAMILY,
        stylegan2.FAMILY,
        stylegan3.FAMILY,
        tinygan.FAMILY,
        dcgan.FAMILY,
        mlp.FAMILY,
    )
}


def family_of(arch: Any) -> Family | None:
    """The family whose Arch this is."""
    return next((f for f in FAMILIES.values() if isinstance(arch, f.Arch)), None)
