"""The losses of the recipes: one file per paper's equation. A test holds this list equal to the files (a - in a name is a _ in the file's)."""

from gancompress.losses.akdg import Akdg
from gancompress.losses.base import DistillationLoss
from gancompress.losses.dgl import Dgl
from gancompress.losses.imitate import Imitate
from gancompress.losses.joint import Joint
from gancompress.losses.mse import Mse
from gancompress.losses.portable_i2i import PortableI2i
from gancompress.losses.scratch import Scratch
from gancompress.losses.tinygan_blackbox import TinyganBlackbox

LOSSES: dict[str, type[DistillationLoss]] = {
    "akdg": Akdg,
    "dgl": Dgl,
    "imitate": Imitate,
    "joint": Joint,
    "mse": Mse,
    "portable-i2i": PortableI2i,
    "scratch": Scratch,
    "tinygan-blackbox": TinyganBlackbox,
}
