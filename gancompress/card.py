"""The model card of a published student: front matter that the Hugging Face Hub reads, and a page for people."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from gancompress import __version__
from gancompress.cost import Cost
from gancompress.gan import GAN
from gancompress.hub import Name

HUB = "https://huggingface.co"
#: what is measured by features of an extractor, and of images besides; the other entries of an evaluation are cost
OF_FEATURES = ("fid", "frechet_distance", "kid", "kernel_distance", "inception_score", "precision", "recall")
OF_IMAGES = ("variance_of_laplacian", "diversity", "ppl_z", "ppl_w", "ppl_z_cropped", "ppl_w_cropped")
#: numbers that mean something else on features that are not Inception's, and what they are there
OWN_NAMES = {"fid": "Frechet distance", "kid": "kernel distance", "inception_score": "class score"}
#: a place on this machine at the beginning of a word, or behind its = or :
_PLACE = re.compile(r"(?:(?<=[=:])|^)(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^/\\]*[/\\])*(?=[^/\\]+$)|(?:(?<=[=:])|^)~[^/\\]*[/\\](?:[^/\\]*[/\\])*(?=[^/\\]+$)")
KNOWN_FILES = {
    "model.safetensors": "the weights; its metadata describes the network",
    "config.json": "architecture, latents, range of the output, parity with the source",
    "recipe.yaml": "every number of the training",
    "eval.json": "what was measured, with its protocol",
    "samples.png": "pictures of the same latents",
    "parity.json": "largest differences between the source network and each file",
    "original.pth": "the weights under the names of the project the family comes from",
    "model.onnx": "for onnxruntime and others",
    "model.int8.onnx": "the same in 8-bit integers",
    "model.pt2": "for torch.export.load",
}


@dataclass(frozen=True)
class Licence:
    """As a model card spells it; ``name`` and ``link`` where it is "other"."""

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that a card tells. ``teacher``: what the world may call it; ``base``: where it lies on the Hub; ``student``: whether it was distilled here."""

    repo: str
    gan: GAN
    cost: Cost
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    licence: Licence
    files: Mapping[str, int]  # name in the repository -> bytes
    student: bool = True
    base: Name | None = None
    teacher: str = ""
    teacher_cost: Cost | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)


def public(text: str) -> str:
    """A word without the folders of this machine that it names: /home/me/faces -> faces, --data=../faces -> --data=faces."""
    return text if "://" in text else _PLACE.sub("", text.rstrip("/\\") or text)


def public_tree(content: Any) -> Any:
    """The same for every text in nested dicts and lists."""
    if isinstance(content, dict):
        return {key: public_tree(value) for key, value in content.items()}
    if isinstance(content, list):
        return [public_tree(value) for value in content]
    return public(content) if isinstance(content, str) else content


def public_command(command: str) -> str:
    """A command line as anybody could type it; empty where it cannot be taken apart."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not words:
        return ""
    program = PurePath(words[0]).name
    return shlex.join(["gancompress" if program == "__main__.py" else program, *(public(word) for word in words[1:])])


def model_card(facts: Facts) -> str:
    """README.md: YAML front matter between two lines of dashes, then Markdown."""
    front = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=1000)
    parts = [_title(facts), _sizes(facts), _loading(facts), _making(facts), _figures(facts), _limits(facts)]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the Hub reads of a card, made by huggingface_hub. A distilled student is said to be a finetune: the Hub knows no nearer relation."""
    from huggingface_hub import ModelCardData

    arch, half = facts.gan.arch, facts.config.get("dtype") == "float16"
    relation = ("finetune" if facts.student else "quantized" if half else None) if facts.base else None
    data = ModelCardData(
        library_name="gancompress",
        license=facts.licence.id,
        license_name=facts.licence.name,
        license_link=facts.licence.link,
        base_model=facts.base.repo if facts.base else None,
        base_model_relation=relation,
        pipeline_tag="unconditional-image-generation" if arch.nz else "image-to-image",
        tags=[
            "gan",
            facts.gan.family.name,
            *(["distillation", "knowledge-distillation"] if facts.student else []),
            *(["class-conditional"] * bool(arch.classes)),
        ],
        model_name=facts.repo.partition("/")[2],
        eval_results=_results(facts) or None,
    )
    return dict(data.to_dict())


# ------------------------------------------------------------------------------------------------------------------- the measured


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _called(key: str, protocol: Mapping[str, Any]) -> str:
    """What a number is called. FID, KID and IS are of Inception features; of others each has a name of its own."""
    named = {"fid": "distance", "frechet_distance": "distance", "inception_score": "score"}.get(key)
    if _of_inception(protocol):
        return {"fid": "FID", "inception_score": "IS", "kid": "KID"}.get(key, key.replace("_", " "))
    if named and isinstance(protocol.get(named), str) and protocol[named] not in ("FID", "IS"):
        return str(protocol[named])
    of = f" ({protocol.get('extractor', 'unknown')} features)" if key in OF_FEATURES else ""
    return OWN_NAMES.get(key, key.replace("_", " ")) + of


def _of_inception(protocol: Mapping[str, Any]) -> bool:
    return str(protocol.get("extractor", "")).startswith("inception")


def _results(facts: Facts) -> list[Any]:
    """The measured numbers as the Hub's model-index has them, each with its protocol."""
    from huggingface_hub import EvalResult

    protocol = facts.evaluation.get("protocol") or {}
    column, paired = facts.evaluation.get("student") or {}, facts.evaluation.get("paired") or {}
    against = str(protocol.get("reference", "generated images"))
    of_features = set(protocol) - {"distance", "score"}  # the other numbers may be of fewer images
    rows = [(key, _called(key, protocol), value, against) for key, value in column.items() if key in OF_FEATURES + OF_IMAGES and _number(value)]
    rows += [(key, f"{key.upper()} to the teacher", value, "the teacher's images of the same latents") for key, value in paired.items() if _number(value)]
    return [
        EvalResult(
            task_type="unconditional-image-generation" if facts.gan.arch.nz else "image-to-image",
            dataset_type=_slug(data),
            dataset_name=data,
            metric_type=key if key not in OF_FEATURES or _of_inception(protocol) else _slug(called),
            metric_name=called + _briefly(protocol, key in OF_FEATURES),
            metric_value=round(value, 6),
            metric_args={k: v for k, v in protocol.items() if v is not None and k in (of_features if key in OF_FEATURES else ("seed",))},
        )
        for key, called, value, data in rows
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _briefly(protocol: Mapping[str, Any], of_features: bool) -> str:
    """The protocol in a few words, in brackets: a number without it says nothing."""
    said = [f"seed {protocol['seed']}"] if "seed" in protocol else []
    if of_features:
        said += [f"{protocol['num_images']:,} images"] if isinstance(protocol.get("num_images"), int) else []
        said += [f"{protocol['extractor']} {str(protocol.get('weights_sha256', ''))[:8]}".strip()] if protocol.get("extractor") else []
    return f" ({', '.join(said)})" if said else ""


def _figures(facts: Facts) -> str:
    protocol = facts.evaluation.get("protocol")
    if not protocol:
        return "## Figures\n\nNone were measured for this card."
    columns = {name: facts.evaluation.get(name) or {} for name in ("student", "teacher")}
    keys = [k for k, v in columns["student"].items() if _number(v) and (k in OF_FEATURES + OF_IMAGES or k.startswith("latency_ms"))]
    lines = ["## Figures", "", "| | this network | teacher |", "|---|---|---|"]
    for key in keys:
        cells = [f"{v:,.6g}" if _number(v := columns[name].get(key)) else "–" for name in columns]
        lines.append(f"| {_plain(_called(key, protocol))} | {' | '.join(cells)} |")
    if paired := facts.evaluation.get("paired"):
        said = ", ".join(f"{k.upper()} {v:.4g}" for k, v in paired.items() if _number(v))
        lines += ["", f"Against the teacher's images of the same latents (pixels in [-1, 1]): {said}."]
    if not _of_inception(protocol) and protocol.get("extractor"):
        lines += ["", f"The distance is one of {_code(protocol['extractor'])} features: it is no FID and is compared with none."]
    if notes := [_plain(note) for note in facts.evaluation.get("notes") or []]:
        lines += ["", *(f"- {note}" for note in notes)]
    elif "fid" in columns["student"] and protocol.get("num_images", 0) < 10_000:
        lines += ["", "FID of fewer than 10,000 images is biased upwards."]
    lines += ["", "Protocol: " + "; ".join(f"{_plain(k.replace('_', ' '))} {_code(v)}" for k, v in protocol.items() if v is not None) + "."]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------- the page


def _plain(text: Any) -> str:
    """Text that may come from a file, on one line and without Markdown's or HTML's signs."""
    return re.sub(r"[\x00-\x1f\x7f|`<>\[\]]+", " ", str(text)).strip()


def _code(text: Any) -> str:
    return f"`{_plain(text)}`"


def _title(facts: Facts) -> str:
    arch = facts.gan.arch
    kind = {1: "grey", 3: "RGB"}.get(arch.nc, f"{arch.nc}-channel")
    conditional = f" of {arch.classes} classes" if arch.classes else ""
    made = f"A {facts.gan.family.name} {'generator' if arch.nz else 'translator'} of {arch.resolution} x {arch.resolution} {kind} images{conditional}"
    teacher = _code(facts.teacher) if facts.teacher else "a teacher that is not published"
    if facts.base:
        at = f"/tree/{facts.base.revision}" if facts.base.revision else ""
        teacher = f"[{facts.base.repo}]({HUB}/{facts.base.repo}{at})" + (f" at `{facts.base.revision}`" if facts.base.revision else "")
    if not facts.student:
        how = f", the weights of {teacher} written by gancompress"
    elif facts.record and not (facts.record.get("identity") or {}).get("teacher"):
        how = ", trained without a teacher by gancompress"
    else:
        how = f", distilled from {teacher} by gancompress"
    picture = "\n\n![samples](samples.png)" if "samples.png" in facts.files else ""
    both = "\n\nTeacher above student, of the same latents." if picture and facts.student and facts.record else ""
    return f"# {facts.repo.partition('/')[2]}\n\n{made}{how}.{picture}{both}"


def _sizes(facts: Facts) -> str:
    small, big = facts.cost, facts.teacher_cost
    stored = facts.files["model.safetensors"]
    lines = ["| | parameters | MACs, input positions | MACs, output positions | bytes in float32 |", "|---|---|---|---|---|"]
    rows = {"teacher": big, "this network": small} if big and facts.student else {"this network": small}
    for name, cost in rows.items():
        lines.append(f"| {name} | {cost.parameters:,} | {cost.macs_in:,} | {cost.macs_out:,} | {cost.bytes:,} |")
    if big and facts.student:
        pairs = ((big.parameters, small.parameters), (big.macs_in, small.macs_in), (big.macs_out, small.macs_out), (big.bytes, small.bytes))
        lines.append("| smaller by | " + " | ".join(f"{a / max(1, b):.1f}x" for a, b in pairs) + " |")
    return "\n".join([*lines, "", f"`model.safetensors` has {stored:,} bytes ({facts.config.get('dtype', 'float32')})."])


def _loading(facts: Facts) -> str:
    arch = facts.gan.arch
    inputs = f"torch.randn(4, {arch.nz})" if arch.nz else f"torch.rand(4, {getattr(arch, 'nc_in', arch.nc)}, {arch.resolution}, {arch.resolution}) * 2 - 1"
    labels = f", torch.randint({arch.classes}, (4,))" if arch.classes else ""
    lines = [
        "## Load it",
        "",
        "```python",
        "import gancompress  # pip install gancompress",
        "import torch",
        "",
        f'G = gancompress.load("{facts.repo}")',
        f"images = G({inputs}{labels})  # (4, {arch.nc}, {arch.resolution}, {arch.resolution}) in [-1, 1]",
        "```",
        "",
        'Without gancompress, `safetensors.torch.load_file("model.safetensors")` gives the tensors; `generator.` stands before each name, and the file\'s',
        "metadata has the architecture. Nothing in this repository is run when it is loaded.",
        "",
        "| file | what it is |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| `{_plain(name)}` | {KNOWN_FILES.get(name, 'an export of the same network')} |" for name in facts.files])


def _making(facts: Facts) -> str:
    if not facts.student and not facts.metadata.get("recipe"):
        return ""
    told, recipe = facts.metadata, (facts.record.get("identity") or {}).get("recipe") or {}
    lines = ["## How it was made", ""]
    if told.get("recipe"):
        paper = f" ({_plain(recipe['paper'])})" if recipe.get("paper") else ""
        lines.append(f"- recipe {_code(public(str(told['recipe'])))}{paper}{', in full in `recipe.yaml`' if 'recipe.yaml' in facts.files else ''}")
    if told.get("kimg") is not None:
        lines.append(f"- {_plain(told['kimg'])} thousand images, seed {_plain(told.get('seed', 'unknown'))}")
    if command := public_command(str(facts.record.get("command", ""))):
        lines.append(f"- command {_code(command)}")
    if told.get("teacher_sha256"):
        lines.append(f"- sha256 of the teacher's tensors {_code(told['teacher_sha256'])}")
    versions = ", ".join(f"{_plain(k)} {_plain(v)}" for k, v in (facts.record.get("versions") or {"gancompress": __version__}).items())
    return "\n".join([*lines, f"- versions {versions}"])


def _limits(facts: Facts) -> str:
    lines = ["## Limits", ""]
    if facts.student:
        lines.append(
            "- It imitates its teacher: what that draws badly or leaves out is the same here, and often worse; so is what its training data brought with them."
        )
    lines.append(
        "- Numbers hold for their protocol alone; those of another extractor, count of images or reference cannot be set beside them."
        if facts.evaluation.get("protocol")
        else "- Nothing is known of the quality of its images beyond the picture."
    )
    if facts.licence.name or facts.licence.id == "other":
        called = _plain(facts.licence.name or "other")
        lines.append(f"- Licence: {called}{f', {facts.licence.link}' if facts.licence.link else ''}.")
    return "\n".join(lines)
