"""Outputs of our networks beside those of the reference repositories, on random small configurations saved and loaded as checkpoints.

    python benchmarks/reference_parity.py mimicry PATH_TO_CHECKOUT [biggan PATH_TO_CHECKOUT ...] [--rounds 3] [--seed 0]

A developer's script: it imports and runs the code at the paths given, git checkouts that the person fetched and trusts (gancompress itself never runs
what it reads). For every configuration it builds upstream's G and D, moves all weights and statistics away from their initial values, saves them as
upstream's training does, loads them through ``gancompress.load`` and compares outputs in evaluation mode. StyleGAN3's filters need scipy.

Prints a Markdown table and, as the last line, one JSON object. A difference above 1e-3 of the standard deviation of upstream's outputs ends the script
with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import pickle
import random
import subprocess
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from common import finish
from torch import Tensor, nn
from torch.nn import functional as F

import gancompress

TOLERANCE = 1e-3


class Table:
    """The rows of one repository, by network; ``rnd`` draws the configurations, ``folder`` takes the checkpoints."""

    def __init__(self, checkout: Path, folder: Path, seed: int) -> None:
        self.checkout, self.folder, self.rnd, self.rows = checkout, folder, random.Random(seed), dict[str, dict[str, Any]]()

    def pick(self, *values: Any) -> Any:
        return self.rnd.choice(values)

    def new(self) -> Path:
        """An empty folder: files beside a checkpoint would be read as hints."""
        path = self.folder / str(len(list(self.folder.iterdir())))
        path.mkdir()
        return path

    def save(self, **files: Any) -> Path:
        """A folder with these files, NAME_EXTENSION each."""
        path = self.new()
        for name, content in files.items():
            torch.save(content, path / ".".join(name.rsplit("_", 1)))
        return path

    def add(self, network: str, ours: Tensor, theirs: Tensor) -> None:
        if ours.shape != theirs.shape:
            raise AssertionError(f"{network}: ours has shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
        row = self.rows.setdefault(network, {"network": network, "configurations": 0, "difference": 0.0, "relative": 0.0})
        difference = (ours - theirs).abs().max().item()
        row["configurations"] += 1
        row["difference"] = max(row["difference"], difference)
        row["relative"] = max(row["relative"], difference / max(theirs.std().item(), 1e-12))

    def critic(self, network: str, path: Path, images: Tensor, y: Tensor | None, theirs: Tensor, **options: Any) -> None:
        self.add(f"{network} D", gancompress.load(path, part="discriminator", **options)(images, y), theirs.flatten())


def shake(net: nn.Module) -> nn.Module:
    """Weights and statistics away from the initial zeros and ones that would hide a mistake; not filters, counters and spectral vectors."""
    weights = {name for name, _ in net.named_parameters()}
    for name, tensor in net.state_dict().items():
        leaf = name.rpartition(".")[2]
        if leaf.startswith(("u0", "sv0", "sn_", "num_")) or leaf.endswith(("_u", "_v", "counter")):
            continue
        if "var" in leaf or leaf == "magnitude_ema":
            tensor.uniform_(0.5, 2)
        elif "running_mean" in leaf or leaf in ("stored_mean", "w_avg"):
            tensor.normal_(0, 0.3)
        elif name in weights and tensor.ndim > 1:
            tensor.add_(0.03 * torch.randn_like(tensor))
        elif name in weights:
            tensor.copy_(torch.rand_like(tensor) + 0.5 if leaf in ("weight", "gain") else 0.3 * torch.randn_like(tensor))
    return net.eval()


def warm(net: nn.Module, *inputs: Any) -> Any:
    """The last output of training-mode passes, which set spectral norms and running statistics; the network is left in evaluation mode."""
    net.train()
    out = [net(*inputs) for _ in range(3)][-1]
    net.eval()
    return out


def stub(name: str, **members: Any) -> None:
    """A module that stands for a package upstream imports beside its networks."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def absent(*names: str) -> None:
    """Mocks for those packages that upstream imports, does not call here, and that are not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()


def pictures(n: int, nc: int, side: int) -> Tensor:
    """Random images of large patches in [-1, 1]: a critic gives much the same for all of white noise."""
    return F.interpolate(torch.rand(n, nc, 4, 4) * 2 - 1, size=side)


def draw(n: int, classes: int) -> tuple[Tensor | None, Tensor]:
    """Labels (n,), or None without classes, and the same one-hot (n, classes)."""
    y = torch.randint(max(classes, 1), (n,))
    return (y, F.one_hot(y, classes).float()) if classes else (None, torch.zeros(n, 0))


# ------------------------------------------------------------------------------------------------------------- the repositories


def mimicry(table: Table) -> None:
    """Every network of its zoo, at every size."""
    stub("torch_mimicry", __path__=[str(table.checkout / "torch_mimicry")])  # its own __init__ wants TensorFlow
    sizes: dict[str, tuple[int | str, ...]] = dict.fromkeys(("SNGAN", "SSGAN", "InfoMaxGAN", "WGANGP"), (32, 48, 64, 128))
    sizes |= {"DCGAN": (32, 48, 64, 128, "CIFAR"), "CGANPD": (32, 128), "SAGAN": (32, 128)}
    files = {"InfoMaxGAN": "infomax_gan", "WGANGP": "wgan_gp", "CGANPD": "cgan_pd"}
    for name, size in ((kind, side) for kind in sizes for side in sizes[kind]):
        file, unit = files.get(name, name.lower()), size == "CIFAR"  # CIFAR's DCGAN makes and judges images in [0, 1]
        module, side = importlib.import_module(f"torch_mimicry.nets.{file}.{file}_{str(size).lower()}"), 32 if unit else int(size)
        classes, nz = table.rnd.randint(2, 7) if name in ("CGANPD", "SAGAN") else 0, table.rnd.randint(8, 40)
        known, widths = {"num_classes": classes} if classes else {}, (16, 32) if side == 32 else (128, 192)
        g = getattr(module, f"{name}Generator{size}")(nz=nz, ngf=table.pick(*widths), **known)
        d = getattr(module, f"{name}Discriminator{size}")(ndf=table.pick(*widths), **known)
        z, (y, _), images, path = torch.randn(4, nz), draw(4, classes), pictures(4, 3, side), table.new()
        given = (y,) if classes else ()
        warm(shake(d), warm(shake(g), z, *given), *given)
        g.save_checkpoint(str(path / "netG"), 3)
        d.save_checkpoint(str(path / "netD"), 3)
        # what no tensor tells
        options = {"d_pooling": "mean"} if name == "WGANGP" else {"unit_pixels": "true"} if unit else {}
        options |= {"resolution": "48"} if side == 48 and name in ("InfoMaxGAN", "WGANGP") else {}
        made, logits = g(z, *given), d((images + 1) / 2 if unit else images, *given)
        table.add(f"{name} G", gancompress.load(path / "netG", **options)(z, y), made * 2 - 1 if unit else made)
        table.critic(name, path / "netD", images, y, logits[0] if isinstance(logits, tuple) else logits, **options)


def zoo(table: Table) -> None:
    """PGAN and DCGAN, with and without labels, raw and averaged."""
    from models.DCGAN import DCGAN
    from models.progressive_gan import ProgressiveGAN

    for kind in (ProgressiveGAN, DCGAN):
        name, classes, nz, path = kind.__name__, table.pick(0, 0, 3), table.rnd.randint(4, 12), table.new() / "model_s3_i100.pt"
        kind.getOptimizerD = kind.getOptimizerG = lambda _: MagicMock()  # they give Adam betas that today's torch refuses
        common = {"useGPU": False, "lossMode": table.pick("WGANGP", "DCGAN"), "weightConditionD": bool(classes), "weightConditionG": bool(classes)}
        common |= {"attribKeysOrder": {"shape": {"order": 0, "values": ["a", "b", "c"]}} if classes else None}
        if kind is DCGAN:
            gan = DCGAN(nz, table.pick(4, 6), table.pick(4, 8), table.pick(2, 3), **common)
        else:
            gan = ProgressiveGAN(nz, table.pick(6, 9), leakyness=table.pick(0.1, 0.2), miniBatchStdDev=table.pick(True, False), **common)
            for _ in range(table.pick(0, 1, 2, 3)):
                gan.addScale(table.rnd.randint(4, 10))
        z, (y, one_hot) = torch.randn(4, nz), draw(4, classes)
        full, gan.avgG = torch.cat([z, one_hot], 1), shake(copy.deepcopy(gan.netG))
        images = pictures(*warm(shake(gan.netG), full).shape[:3])
        warm(gan.avgG, full)
        warm(shake(gan.netD), images)
        gan.save(str(path))
        table.add(f"{name} G", gancompress.load(path, ema=False)(z, y), gan.netG(full))
        table.add(f"{name} G averaged", gancompress.load(path)(z, y), gan.avgG(full))
        table.critic(name, path, images, y, gan.netD(images)[:, 0])


def rosinality(table: Table) -> None:
    """StyleGAN2: raw and averaged G, truncation, latents by layer, D."""
    import torch.utils.cpp_extension as extension

    extension.load = lambda *_, **__: None  # its operations have a path without the extension
    from model import Discriminator, Generator

    side, w_dim = table.pick(8, 16, 32, 64), table.pick(16, 20)
    g, d = shake(Generator(side, w_dim, table.pick(1, 3), channel_multiplier=1)), shake(Discriminator(side, 1))
    averaged = shake(copy.deepcopy(g))
    mean, images = averaged.mean_latent(100), pictures(table.pick(3, 4, 8), 3, side)
    saved = {"g": g.state_dict(), "d": d.state_dict(), "g_ema": averaged.state_dict(), "latent_avg": mean, "args": argparse.Namespace(size=side)}
    path = table.save(checkpoint_pt=saved) / "checkpoint.pt"
    z, per_layer, still = torch.randn(3, w_dim), torch.randn(3, g.n_latent, w_dim), {"randomize_noise": False}
    table.add("StyleGAN2 G", gancompress.load(path, ema=False)(z), g([z], **still)[0])
    table.add("StyleGAN2 G averaged", gancompress.load(path)(z), averaged([z], **still)[0])
    table.add("StyleGAN2 G truncated", gancompress.load(path, truncation=0.6)(z), averaged([z], truncation=0.6, truncation_latent=mean, **still)[0])
    table.add("StyleGAN2 G w+", gancompress.load(path)(per_layer), averaged([per_layer], input_is_latent=True, **still)[0])
    table.critic("StyleGAN2", path, images, None, d(images))


def _nvlabs(table: Table, label: str, g: nn.Module, d: nn.Module, **constant: Any) -> None:
    """One pickle of NVlabs' PyTorch repositories. ``constant``: arguments under which upstream draws no noise."""
    averaged, path = shake(copy.deepcopy(g)), table.new() / "network-snapshot-000100.pkl"
    path.write_bytes(pickle.dumps({"training_set_kwargs": {}, "G": shake(g), "D": shake(d), "G_ema": averaged, "augment_pipe": None}))
    z, (y, one_hot), images = torch.randn(4, g.z_dim), draw(4, g.c_dim), pictures(4, g.img_channels, g.img_resolution)
    constant["force_fp32"] = True
    table.add(f"{label} G", gancompress.load(path, ema=False)(z, y), g(z, one_hot, **constant))
    table.add(f"{label} G averaged", gancompress.load(path)(z, y), averaged(z, one_hot, **constant))
    table.add(f"{label} G truncated", gancompress.load(path, truncation=0.6)(z, y), averaged(z, one_hot, truncation_psi=0.6, **constant))
    table.critic("StyleGAN2", path, images, y, d(images, one_hot, force_fp32=True), family="stylegan2")


def _stylegan2(table: Table, networks: types.ModuleType, nested: bool) -> tuple[nn.Module, nn.Module]:
    """Random G and D; ``nested``: the synthesis takes its arguments in a dict of their own."""
    common = {"c_dim": table.pick(0, 1, 4), "img_resolution": table.pick(8, 16, 32), "img_channels": table.pick(1, 3)}
    shape = {"channel_base": table.pick(64, 256), "channel_max": table.pick(12, 16), "conv_clamp": table.pick(None, 0.7, 256)}
    mapping = {"num_layers": table.pick(1, 2, 3), "lr_multiplier": table.pick(0.01, 0.1), "embed_features": table.pick(None, 7)}
    synthesis = {**shape, "architecture": table.pick("skip", "resnet", "orig")}
    latent = {"z_dim": table.pick(8, 11), "w_dim": table.pick(8, 10), "mapping_kwargs": mapping}
    g = networks.Generator(**latent, **common, **({"synthesis_kwargs": synthesis} if nested else synthesis))
    epilogue = {"mbstd_group_size": table.pick(None, 2, 4), "mbstd_num_channels": table.pick(0, 1)}
    return g, networks.Discriminator(**common, **shape, architecture=table.pick("resnet", "skip", "orig"), epilogue_kwargs=epilogue)


def stylegan2_ada(table: Table) -> None:
    absent("requests")
    from training import networks

    _nvlabs(table, "StyleGAN2", *_stylegan2(table, networks, True), noise_mode="const")


def stylegan3(table: Table) -> None:
    """Configurations T and R, with the critic of StyleGAN2, and its StyleGAN2."""
    absent("requests")
    stub("pkg_resources", parse_version=lambda version: tuple(map(int, version.split("+")[0].split(".")[:2])))  # gone from setuptools
    from training import networks_stylegan2, networks_stylegan3

    g, d = _stylegan2(table, networks_stylegan2, False)
    _nvlabs(table, "StyleGAN2", g, d, noise_mode="const")
    shape = {"channel_base": table.pick(200, 512), "channel_max": table.pick(12, 16), "num_layers": table.pick(7, 14), "margin_size": table.pick(4, 10)}
    shape |= {"c_dim": g.c_dim, "img_resolution": g.img_resolution, "img_channels": g.img_channels, "conv_clamp": table.pick(None, 2, 256)}
    for label, kind in (("StyleGAN3-T", {}), ("StyleGAN3-R", {"conv_kernel": 1, "use_radial_filters": True})):
        _nvlabs(table, label, networks_stylegan3.Generator(z_dim=10, w_dim=12, **shape, **kind), d)


def biggan(table: Table) -> None:
    """BigGAN and BigGAN-deep. Not the cross-replica norm, whose path on one device adds the gain."""
    for label in ("BigGAN", "BigGANdeep"):
        module, deep = importlib.import_module(label), label == "BigGANdeep"
        shared, standing, classes = deep or table.pick(True, False), table.pick(True, False), table.pick(1, 5, 7)
        config = {"resolution": table.pick(32, 64), "n_classes": classes, "dim_z": table.pick(20, 24), "G_ch": 8, "D_ch": 8, "G_shared": shared}
        config |= {"shared_dim": table.pick(0, 6) if shared else 0, "hier": deep or (shared and table.pick(True, False)), "BN_eps": table.pick(1e-5, 1e-3)}
        config |= {"G_attn": table.pick("0", "16"), "D_attn": table.pick("0", "16"), "SN_eps": 1e-6, "mybn": standing, "D_wide": table.pick(True, False)}
        config |= {"G_depth": 2, "D_depth": table.pick(1, 2, 3), "no_optim": True}
        g, d = shake(module.Generator(**config)), shake(module.Discriminator(**config))
        z, y, images = torch.randn(3, g.dim_z), torch.randint(classes, (3,)), pictures(3, 3, config["resolution"])
        for part in g.modules() if standing else ():
            if hasattr(part, "accumulate_standing"):
                part.reset_stats()
                part.accumulate_standing = True
        warm(d, warm(g, z, g.shared(y)), y)
        state = {"itr": 3, "config": {**config, "G_activation": nn.ReLU()}}
        path = table.save(G_ema_pth=g.state_dict(), D_pth=d.state_dict(), state_dict_pth=state)
        table.add(f"{label} G", gancompress.load(path)(z, y), g(z, g.shared(y)))
        table.critic(label, path, images, y, d(images, y))


def huggingface_biggan(table: Table) -> None:
    """BigGAN-deep's generator at random truncations."""
    absent("boto3", "botocore", "botocore.exceptions", "requests", "tqdm")
    stub("pytorch_pretrained_biggan", __path__=[str(table.checkout / "pytorch_pretrained_biggan")])  # its own __init__ wants nltk
    config = importlib.import_module("pytorch_pretrained_biggan.config").BigGANConfig
    stages = table.pick([16, 16, 8], [16, 8, 4, 2], [16, 16, 8, 4, 2])
    layers = [step for a, b in zip(stages, [*stages[1:], 1], strict=True) for step in ((False, a, a), (True, a, b))]
    width, nz, classes, attention = table.pick(8, 12), table.pick(6, 9), table.pick(5, 8), table.rnd.randint(1, len(stages) - 1) * 2
    asked = config(4 << len(stages), nz, nz, width, classes, layers, attention, table.pick(1e-4, 1e-3))
    net = shake(importlib.import_module("pytorch_pretrained_biggan.model").BigGAN(asked))
    z, (y, one_hot), truncation = torch.randn(3, nz), draw(3, classes), table.pick(0.4, 0.55, 0.7, 1.0)
    warm(net, z, one_hot, truncation)
    path = table.save(pytorch_model_bin=net.state_dict())
    (path / "config.json").write_text(json.dumps(asked.to_dict()))
    table.add("BigGAN-deep G", gancompress.load(path, truncation=truncation)(z, y), net(z, one_hot, truncation))


def wgan(table: Table) -> None:
    """DCGANs with and without BatchNorm, and MLPs. Its critics give the mean of a batch."""
    from models import dcgan, mlp

    side, nz, nc, extra = table.pick(16, 32, 64), table.pick(8, 20), table.pick(1, 3), table.pick(0, 1, 2)
    plain = ("DCGAN without norm", dcgan.DCGAN_G_nobn, dcgan.DCGAN_D_nobn, extra)
    for label, generator, critic, *more in (("DCGAN", dcgan.DCGAN_G, dcgan.DCGAN_D, extra), plain, ("MLP", mlp.MLP_G, mlp.MLP_D)):
        g, d = shake(generator(side, nz, nc, table.pick(8, 12), 1, *more)), shake(critic(side, nz, nc, table.pick(4, 8), 1, *more))
        z, images, options = torch.randn(4, nz, 1, 1), pictures(4, nc, side), {} if more else {"nc": nc}
        warm(d, warm(g, z))
        path = table.save(netG_epoch_3_pth=g.state_dict(), netD_epoch_3_pth=d.state_dict())
        table.add(f"{label} G", gancompress.load(path, **options)(z), g(z))
        table.critic(label, path, images, None, torch.cat([d(image) for image in images.split(1)]), **options)


def tinygan(table: Table) -> None:
    """Its released form, depthwise. G takes its embeddings of classes from a file in the working directory; D has 1000 classes."""
    side, nz, beside = table.pick(32, 64, 128), table.pick(8, 20), table.new()
    depth, model = side.bit_length() - 3, importlib.import_module("model")
    np.save(beside / "cls_weight_reduce.npy", torch.randn(1000, 128).numpy())
    with contextlib.chdir(beside):
        g, d = shake(model.Generator(side, table.pick(4, 6), nz, 128, depth)), shake(model.Discriminator(side, table.pick(2, 4), depth))
    z, y, images = torch.randn(4, nz), torch.randint(1000, (4,)), pictures(4, 3, side)
    warm(d, warm(g, z, y), y)
    path = table.save(model_tar={"G": g.state_dict(), "D": d.state_dict(), "g_optimizer": torch.optim.Adam(g.parameters()).state_dict()}) / "model.tar"
    table.add("TinyGAN G", gancompress.load(path)(z, y), g(z, y))
    table.critic("TinyGAN", path, images, y, d(images, y)[0])


def huggan(table: Table) -> None:
    """Generators of the sprint's DCGAN, CycleGAN and pix2pix scripts (all that they upload), and their critics."""
    stub("huggan.pytorch.huggan_mixin", HugGANModelHubMixin=object)  # uploads
    dcgan, cyclegan, pix2pix = (importlib.import_module(f"huggan.pytorch.{name}.modeling_{name}") for name in ("dcgan", "cyclegan", "pix2pix"))
    nz, nc, z, images = table.pick(20, 100), table.pick(1, 3), None, pictures(2, 3, 256)
    g, d, z, small = dcgan.Generator(nc, nz, table.pick(4, 8)), dcgan.Discriminator(nc, 8), torch.randn(4, nz, 1, 1), pictures(4, nc, 64)
    warm(shake(d), warm(shake(g), z))
    table.add("DCGAN G", gancompress.load(table.save(pytorch_model_bin=g.state_dict()))(z), g(z))
    table.critic("DCGAN", table.save(discriminator_pth=d.state_dict()), small, None, d.model[:-1](small))  # its logits
    g = shake(cyclegan.GeneratorResNet((3, 64, 64), table.pick(2, 6, 9)))
    table.add("CycleGAN G", gancompress.load(table.save(pytorch_model_bin=g.state_dict()))(images[:, :, :64, :64]), g(images[:, :, :64, :64]))
    g = shake(pix2pix.GeneratorUNet(nc, 3))
    table.add("pix2pix G", gancompress.load(table.save(pytorch_model_bin=g.state_dict()))(images[:, :nc]), g(images[:, :nc]))
    for name, d, inputs in (("CycleGAN", cyclegan.Discriminator(3), (images,)), ("pix2pix", pix2pix.Discriminator(3), (images, images.flip(0)))):
        ours = gancompress.load(table.save(discriminator_pth=shake(d).state_dict()), part="discriminator")(torch.cat(inputs, 1))
        table.add(f"{name} D", ours, d(*inputs).flatten(1))


REPOSITORIES = {
    "mimicry": ("kwotsin/mimicry", mimicry),
    "zoo": ("facebookresearch/pytorch_GAN_zoo", zoo),
    "rosinality": ("rosinality/stylegan2-pytorch", rosinality),
    "stylegan2-ada": ("NVlabs/stylegan2-ada-pytorch", stylegan2_ada),
    "stylegan3": ("NVlabs/stylegan3", stylegan3),
    "biggan": ("ajbrock/BigGAN-PyTorch", biggan),
    "huggingface-biggan": ("huggingface/pytorch-pretrained-BigGAN", huggingface_biggan),
    "wgan": ("martinarjovsky/WassersteinGAN", wgan),
    "tinygan": ("terarachang/ACCV_TinyGAN", tinygan),
    "huggan": ("huggingface/community-events", huggan),
}


def compare(name: str, checkout: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one repository. Runs in a process of its own, since modules of several repositories have the same names."""
    repository, function = REPOSITORIES[name]
    asked = ["git", "--git-dir", str(checkout / ".git"), "rev-parse", "--short", "HEAD"]
    found = {"repository": repository, "commit": subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"}
    sys.path.insert(0, str(checkout))
    torch.manual_seed(seed)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), torch.no_grad():  # upstream prints as it builds
        table = Table(checkout, Path(folder), seed)
        for _ in range(rounds):
            function(table)
    return [{**found, **row} for row in table.rows.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="NAME PATH", help=f"NAME: {', '.join(REPOSITORIES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names, paths = args.pairs[::2], [Path(p).resolve() for p in args.pairs[1::2]]
    if len(names) != len(paths) or not set(names) <= set(REPOSITORIES):
        parser.error(f"give pairs of NAME PATH, with NAME one of {', '.join(REPOSITORIES)}")
    rows: list[dict[str, Any]] = []
    print("| repository | commit | network | configurations | max \\|difference\\| | relative |\n|---|---|---|---|---|---|")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name, path in zip(names, paths, strict=True):
            for row in pool.submit(compare, name, path, args.rounds, args.seed).result():
                rows.append(row)
                print("| {repository} | {commit} | {network} | {configurations} | {difference:.1e} | {relative:.1e} |".format(**row), flush=True)
    finish("reference_parity", {"rounds": args.rounds, "seed": args.seed, "rows": rows})
    sys.exit(1 if max(row["relative"] for row in rows) > TOLERANCE else 0)


if __name__ == "__main__":
    main()
