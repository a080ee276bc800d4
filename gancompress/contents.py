"""What lies in an opened checkpoint: state dicts, wherever they are nested, and the settings saved beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancompress.errors import printable
from gancompress.gan import StateDict
from gancompress.inert import Inert

EMA_NAMES = {"g_ema", "ema", "avgg", "netg_ema", "params_ema", "generator_ema", "ema_generator", "gs"}
G_NAMES = {"g", "netg", "generator", "gen", "netg_state_dict", "g_state_dict", "generator_state_dict", *EMA_NAMES}
D_NAMES = {"d", "netd", "discriminator", "disc", "critic", "netd_state_dict", "d_state_dict", "discriminator_state_dict"}
#: attributes that people keep their one network in; they say nothing of which it is
WRAPPERS = {"model", "net", "network"}
#: keys under which training code saves its settings beside the weights
CONFIG_NAMES = {"config", "args", "opt", "options", "hparams"}
#: the three networks of a pickle written by NVlabs' TensorFlow code, in its order
TF_TRIPLE = ("G", "D", "Gs")


@dataclass(frozen=True)
class Content:
    """One state dict: its ``place`` in the file, its tensors, and ``config``: settings and single tensors found beside it.

    A config is a hint and may hold anything; a reader checks what it takes from it.
    """

    place: str
    state: StateDict
    config: dict[str, Any] = field(default_factory=dict)


#: nodes of a file that are looked at, tensors among them: more than any checkpoint has, so that what holds itself many times over ends
MAX_NODES = 50_000
#: settings that are taken from beside one network
MAX_SETTINGS = 2000


def contents(content: Any) -> tuple[list[Content], list[str]]:
    """(every state dict, what else is worth naming, to stand behind ``file:``) of an opened file."""
    if isinstance(content, tuple) and len(content) == len(TF_TRIPLE) and all(isinstance(c, Inert) for c in content):
        content = dict(zip(TF_TRIPLE, content, strict=True))
    return _walk(content, "", 0, {}, [0])


def word(key: Any) -> str:
    """A key of a file as a name: what is no plain word or number says its type only."""
    if isinstance(key, str):
        return printable(key)
    return str(key) if isinstance(key, float | None) or (isinstance(key, int) and abs(key) < 1 << 64) else f"<{type(key).__name__}>"


def _walk(content: Any, name: str, depth: int, config: Mapping[str, Any], seen: list[int]) -> tuple[list[Content], list[str]]:
    seen[0] += 1
    if seen[0] > MAX_NODES:
        return [], []
    if isinstance(content, Inert):
        state = _module_state(content)
        return ([Content(name, state, {**config, **_module_config(content)})] if state else []), []
    if not isinstance(content, dict) or depth > 3:
        return [], []
    if "param_groups" in content and "state" in content:
        return [], [f"{name}: an optimizer's state" if name else " an optimizer's state"]
    tensors = {word(k): v for k, v in content.items() if isinstance(v, Tensor)}
    seen[0] += len(tensors)
    if any(t.ndim >= 2 for t in tensors.values()) and 2 * len(tensors) > len(content):
        return [Content(name, tensors, dict(config))], []
    small = [(k, t) for k, t in tensors.items() if t.layout == torch.strided and t.device.type == "cpu" and t.numel() < 1 << 20]
    beside = {**config, **dict(small[:MAX_SETTINGS])}
    for key, value in content.items():
        if word(key).lower() in CONFIG_NAMES and len(beside) < MAX_SETTINGS:
            beside |= plain(value)
    found: list[Content] = []
    others: list[str] = []
    for key, value in content.items():
        inner = _walk(value, f"{name}.{word(key)}" if name else word(key), depth + 1, beside, seen)
        found += inner[0]
        others += inner[1]
    return found, others


def plain(settings: Any, depth: int = 0, seen: list[int] | None = None) -> dict[str, Any]:
    """The numbers, words, lists and dicts of a settings object (a dict, a namespace, an inert object), the first ``MAX_SETTINGS`` of them."""
    seen = [0] if seen is None else seen
    if isinstance(settings, Inert):
        settings = {**vars(settings).get("inert_items", {}), **{k: v for k, v in vars(settings).items() if not k.startswith("inert_")}}
    if not isinstance(settings, dict) or depth > 3:
        return {}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        seen[0] += 1
        if seen[0] > MAX_SETTINGS:
            break
        if isinstance(value, dict | Inert):
            found[word(key)] = plain(value, depth + 1, seen)
        elif isinstance(value, np.generic):
            found[word(key)] = value.item()
        elif value is None or isinstance(value, bool | int | float | str) or (isinstance(value, list | tuple) and _is_flat(value, seen)):
            found[word(key)] = value
    return found


def _is_flat(values: list[Any] | tuple[Any, ...], seen: list[int], depth: int = 0) -> bool:
    """Whether a list holds numbers and words, or lists of them, and few enough to be compared and shown."""
    seen[0] += len(values)
    if seen[0] > MAX_SETTINGS or depth > 3:
        return False
    return all(_is_flat(v, seen, depth + 1) if isinstance(v, list | tuple) else v is None or isinstance(v, bool | int | float | str) for v in values)


def _attributes(module: Inert) -> dict[str, Any]:
    """What a pickled object holds; NVlabs' persistent classes hand it over as an argument beside their source text."""
    attributes = vars(module)
    first = next(iter(attributes["inert_args"]), None)
    if isinstance(first, dict) and isinstance(first.get("state"), dict):
        return {**first["state"], **{k: v for k, v in attributes.items() if k != "inert_args"}}
    return attributes


def _module_config(module: Inert) -> dict[str, Any]:
    attributes = _attributes(module)
    # TensorFlow networks of several papers have the same names of variables; this tells them apart
    function = {k: v for k, v in attributes.items() if k == "build_func_name"}
    return plain(attributes.get("_init_kwargs")) | plain(attributes.get("static_kwargs")) | plain(function)


def _module_state(module: Inert) -> StateDict:
    """The state dict of a pickled network whose class we did not import, in its order."""
    if isinstance(_attributes(module).get("variables"), list):
        return _tf_variables(module)
    out: StateDict = {}
    pending = [("", 0, module)]
    for _ in range(20_000):  # more than any network has: modules that hold one another would never end
        if not pending or len(out) > MAX_NODES:
            break
        prefix, depth, current = pending.pop()
        attributes = _attributes(current)
        tensors = [v if isinstance(v := attributes.get(name), dict) else {} for name in ("_parameters", "_buffers")]
        skip = v if isinstance(v := attributes.get("_non_persistent_buffers_set"), set) else ()
        for name, value in [*tensors[0].items(), *tensors[1].items()]:
            if isinstance(value, Tensor) and name not in skip:
                out[prefix + word(name)] = value
        children = attributes.get("_modules")
        if isinstance(children, dict) and depth < 60:
            pending += [(f"{prefix}{word(name)}.", depth + 1, child) for name, child in reversed(children.items()) if isinstance(child, Inert)]
    return out


def _tf_variables(network: Inert, prefix: str = "", depth: int = 0, read: dict[int, Tensor] | None = None) -> StateDict:
    """TensorFlow variables pickled as (name, array), those of a sub-network behind its name: PGGAN, StyleGAN, StyleGAN2.

    ``read``: the tensors made so far, by their array, so that one that is named often is copied once.
    """
    attributes, read = _attributes(network), {} if read is None else read
    variables, components = attributes.get("variables"), attributes.get("components")
    found: StateDict = {}
    for pair in variables if isinstance(variables, list) else []:
        # a variable of no dimension is pickled as a numpy number
        if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], np.ndarray | np.generic) and pair[1].dtype.kind in "fiu":
            if id(pair[1]) not in read:
                read[id(pair[1])] = torch.from_numpy(np.array(pair[1], pair[1].dtype.newbyteorder("=")))
            found[f"{prefix}{word(pair[0])}"] = read[id(pair[1])]
    for name, part in list(components.items())[:100] if isinstance(components, dict) and depth < 2 else []:
        if isinstance(part, Inert) and len(found) < MAX_NODES:
            found |= _tf_variables(part, f"{prefix}{word(name)}/", depth + 1, read)
    return found


def strip(state: StateDict) -> StateDict:
    """Without the prefixes of wrappers (DataParallel, torch.compile)."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            return strip({k.removeprefix(prefix): v for k, v in state.items()})
    return state


def split(state: StateDict) -> dict[str, StateDict]:
    """A flat dict of networks (``netG.main.0.weight``, ``netD.main.0.weight``) by its first names; of one without the name before it."""
    groups: dict[str, StateDict] = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    named = {head: group for head, group in groups.items() if head.lower() in G_NAMES | D_NAMES}
    return named or (groups if len(groups) == 1 and set(groups) <= WRAPPERS else {})


def is_ema(place: str, stem: str) -> bool:
    """Whether a place in a file, or the file's own name, says that these weights are an average."""
    stem = re.sub(r"([_.-]?(epoch|iter|steps?|best|copy))*[_.-]?\d*$", "", stem.lower())
    return bool({stem, *place.lower().split(".")} & EMA_NAMES)
