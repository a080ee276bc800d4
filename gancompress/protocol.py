"""How a number was made. Two numbers may stand in one comparison only where these facts agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: what a metric depends on. A field that neither of two protocols has does not divide them
FIELDS = (
    "extractor",  # its name; "none" where no features were taken
    "weights_sha256",  # of the extractor's file
    "resize",  # what brings images to the extractor's size
    "quantisation",  # of images, before features are taken
    "dtype",  # in which features are computed
    "num_images",  # generated ones (of each class, where classes are measured apart)
    "num_images_per_class",
    "classes",  # the classes measured apart
    "reference_sha256",  # of the images, of the statistics, or of the network whose samples they are
    "reference_images",  # how many of them; None where a statistics file does not say
    "reference_resize",  # what brought real images to the generator's size
    "truncation",  # of the latents, None where the family has none
    "seed",
    "sampling",  # the rule that makes latents of a seed
    "kid_subsets",
    "kid_subset_size",
    "is_splits",
    "pr_neighbours",
    "ppl_pairs",
    "ppl_epsilon",
    "lpips_sha256",
)
#: what milliseconds depend on besides
TIMED = ("device", "torch")


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """sha256 (first 16 digits) over the fields a metric depends on; device and versions are recorded beside it and do not count."""
    said = {key: protocol[key] for key in FIELDS if protocol.get(key) is not None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def disagreements(a: Mapping[str, Any], b: Mapping[str, Any], *, timed: bool = False) -> list[str]:
    """``field: value of a, value of b`` wherever two protocols differ in what counts; ``timed``: for latencies, where the device counts too."""
    fields = FIELDS + TIMED if timed else FIELDS
    return [f"{key}: {a.get(key)}, {b.get(key)}" for key in fields if a.get(key) != b.get(key)]


def comparable(a: Mapping[str, Any], b: Mapping[str, Any], *, timed: bool = False) -> bool:
    """Whether numbers of these two protocols (``result["protocol"]`` of an evaluation) may be put in one comparison."""
    return not disagreements(a, b, timed=timed)
