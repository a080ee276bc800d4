"""The architectures we know: one file each. A test holds this list equal to the files."""

from gancompress.families import dcgan, mlp, stylegan2
from gancompress.gan import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (dcgan.FAMILY, mlp.FAMILY, stylegan2.FAMILY)}
