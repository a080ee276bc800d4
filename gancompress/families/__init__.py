"""The architectures we know: one file each. A test holds this list equal to the files."""

from gancompress.families import dcgan, mlp, sngan, sngan24
from gancompress.gan import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (dcgan.FAMILY, mlp.FAMILY, sngan.FAMILY, sngan24.FAMILY)}
