"""The architectures we know: one file each. A test holds this list equal to the files.

The order is the reader's: a PatchGAN is a chain of convolutions as a DCGAN's discriminator is, so what goes by names comes first.
"""

from gancompress.families import dcgan, mlp, resnet, unet
from gancompress.gan import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (unet.FAMILY, resnet.FAMILY, dcgan.FAMILY, mlp.FAMILY)}
