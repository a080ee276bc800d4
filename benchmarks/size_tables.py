"""Parameters and multiply-adds of every family's published sizes beside ours, from shapes alone.

    python benchmarks/size_tables.py

Prints a Markdown table (docs/reproducing.md holds it) and, as the last line, one JSON object. Parameters are exact numbers; MACs were published in one
of two conventions, so that ours stand in both. A row whose parameters differ ends the script with exit code 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from common import finish

from gancompress.cost import generator_cost
from gancompress.families import FAMILIES


@dataclass(frozen=True)
class Row:
    """``parameters``: published, to the unit; ``macs``: published, in G."""

    what: str
    family: str
    fields: dict[str, Any]
    ch_mul: float = 1.0
    part: str = "generator"
    parameters: int | None = None
    macs: str = ""


def _ladder(what: str, family: str, fields: dict[str, Any], counts: dict[float, int], macs: tuple[str, ...] = (), part: str = "generator") -> list[Row]:
    return [Row(f"{what}, ch_mul {c:g}", family, fields, c, part, n, macs[i] if macs else "") for i, (c, n) in enumerate(counts.items())]


AGUINALDO = {2: 28351, 4: 62077, 8: 145657, 16: 377329, 32: 1098721, 48: 2164177, 64: 3573697, 128: 12652417, 256: 47324929}
ROWS = [
    Row("pytorch/examples, 64 px", "dcgan", {}, parameters=3_576_704),
    *(Row(f"Aguinaldo et al., d {d}", "dcgan", {"nc": 1, "width": d, "g_bias": True, "g_norm": "batch-noaffine"}, parameters=n) for d, n in AGUINALDO.items()),
    Row("SNGAN 32 px (mimicry)", "sngan", {"resolution": 32}, parameters=4_276_739),
    *_ladder(
        "StyleGAN2 1024 px",
        "stylegan2",
        {"resolution": 1024},
        {1: 30_370_060, 0.5: 11_064_988, 0.25: 5_392_036, 0.125: 3_550_456},
        ("74.27, 141.9", "18.63, 35.5", "4.69, 8.9", "1.19, 2.2"),
    ),
    *_ladder("StyleGAN2 256 px", "stylegan2", {"resolution": 256}, {1: 30_034_338, 0.5: 10_931_682, 0.25: 5_334_018, 0.125: 3_523_602}),
    *_ladder("StyleGAN2 1024 px, D", "stylegan2", {"resolution": 1024}, {1: 29_012_513, 0.5: 7_256_081, 0.25: 1_815_497, 0.125: 454_613}, part="discriminator"),
    *_ladder("BigGAN 128 px", "biggan", {}, {1: 70_433_988, 0.5: 18_383_460, 1 / 3: 8_543_300, 0.25: 5_031_348}, ("21.12", "5.42", "2.47", "1.42")),
    *_ladder("BigGAN 128 px, D", "biggan", {}, {1: 87_982_370, 0.5: 22_383_698, 1 / 3: 10_120_802, 0.25: 5_789_978}, part="discriminator"),
    Row("TinyGAN 128 px, depthwise 32", "tinygan", {"convolution": "depthwise", "ch": 32}, parameters=3_070_659, macs="0.429"),
    Row("TinyGAN 128 px, standard 32", "tinygan", {"convolution": "standard", "ch": 32}, parameters=9_329_283, macs="2.281"),
    Row("TinyGAN 128 px, standard 16", "tinygan", {"convolution": "standard", "ch": 16}, parameters=2_852_419, macs="0.574"),
    Row("TinyGAN 128 px, D", "tinygan", {}, part="discriminator", parameters=3_300_321),
    *_ladder("U-Net 256 px, batch norm, ngf 64", "unet", {}, {1: 54_413_955, 0.5: 13_608_259, 0.25: 3_404_451}, ("18.14", "4.65", "1.22")),
    *_ladder("ResNet 9 blocks, instance norm, ngf 64", "resnet", {}, {1: 11_378_179, 0.5: 2_850_563, 0.25: 715_651}, ("56.80", "14.51", "3.78")),
    Row("PatchGAN, 3 channels, instance norm", "resnet", {}, part="discriminator", parameters=2_764_737),
    Row("PatchGAN, 6 channels, batch norm", "unet", {"d_nc": 6}, part="discriminator", parameters=2_768_705),
]


def main() -> None:
    found, wrong = [], 0
    print("| | parameters, published | ours | MACs, published (G) | ours, input positions (G) | ours, output positions (G) |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        family = FAMILIES[row.family]
        arch = family.scale(family.build_arch(None, row.fields), row.ch_mul)
        macs: tuple[float, float] | None = None
        if row.part == "generator":
            cost = generator_cost(family, arch)
            ours, macs = cost.parameters, (cost.macs_in / 1e9, cost.macs_out / 1e9)
        else:
            with torch.device("meta"):
                ours = sum(p.numel() for p in family.discriminator(arch).parameters())
        wrong += row.parameters is not None and ours != row.parameters
        positions = [f"{m:.3f}" for m in macs] if macs else ["", ""]
        said = [f"{row.parameters:,}" if row.parameters else "", f"{ours:,}", row.macs, *positions]
        print(f"| {row.what} | {' | '.join(said)} |", flush=True)
        found.append({"what": row.what, "published": row.parameters, "ours": ours, "macs_published_g": row.macs, "macs_g": macs})
    finish("size_tables", {"rows": found})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
