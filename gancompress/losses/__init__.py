"""The losses of the recipes: one file per paper's equation. A test holds this list equal to the files."""

from gancompress.losses.akdg import Akdg
from gancompress.losses.base import DistillationLoss
from gancompress.losses.dgl import Dgl
from gancompress.losses.imitate import Imitate
from gancompress.losses.joint import Joint
from gancompress.losses.mse import Mse
from gancompress.losses.portable_i2i import PortableI2i
from gancompress.losses.scratch import Scratch

LOSSES: dict[str, type[DistillationLoss]] = {
    "akdg": Akdg, "dgl": Dgl, "imitate": Imitate, "joint": Joint, "mse": Mse, "portable_i2i": PortableI2i, "scratch": Scratch,
}  # fmt: skip
