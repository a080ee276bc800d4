"""The architectures we know: one file each. A test holds this list equal to the files."""

from typing import Any

from gancompress.families import dcgan, mlp, pggan, sngan, sngan24, stylegan3, tinygan
from gancompress.gan import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (dcgan.FAMILY, mlp.FAMILY, pggan.FAMILY, sngan.FAMILY, sngan24.FAMILY, stylegan3.FAMILY, tinygan.FAMILY)}


def family_of(arch: Any) -> Family | None:
    """The family whose Arch this is."""
    return next((f for f in FAMILIES.values() if isinstance(arch, f.Arch)), None)
