"""Publishes an export on the Hugging Face Hub: its files, a model card, the recipe, a picture and the measured numbers, in one commit."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
import yaml

from gancompress import __version__
from gancompress.card import HUB, Facts, Licence, model_card, public, public_tree
from gancompress.console import stderr
from gancompress.cost import Cost, gan_cost, generator_cost
from gancompress.data import EVALUATION, draw, rng
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.gan import GAN, state_hash
from gancompress.hub import Name, asked, parse
from gancompress.loading import find, load_gan
from gancompress.report import save_comparison
from gancompress.runs import EVALUATION_FILE, record_of, teacher_of

T = TypeVar("T")

#: files beside the export: where this one has none, an older one is taken away
BESIDE = ("recipe.yaml", EVALUATION_FILE, "samples.png")
#: the licence of what is bundled here
OWN_LICENCE = "apache-2.0"
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class Publication:
    """What was found out before anything is written. ``commit``: the state of an existing repository that was looked at."""

    source: str
    repo: str
    private: bool
    licence: Licence
    base: Name | None = None
    commit: str | None = None
    new: bool = True
    there: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def prepare(source: str, repo: str | None, *, private: bool = False, licence: str | None = None, options: dict[str, Any] | None = None) -> Publication | None:
    """Check that an export of ``source`` may be published as ``repo`` ("owner/name"), before anything is written; None where ``repo`` is None.

    Raises:
        UsageError: an invalid name or licence, a licence that nobody knows or that is not the teacher's, a repository with somebody else's files.
        MissingError: no token, one that may not write, offline, no way to the Hub.
    """
    if repo is None:
        if private or licence:
            raise UsageError(f"--{'private' if private else 'license'} is for publishing", "--push-to-hub OWNER/NAME")
        return None
    _check_name(repo)
    if licence is not None and not LICENCE_ID.fullmatch(licence):
        raise UsageError(f"--license {licence}: expected an identifier of the Hub, in small letters", "such as mit, apache-2.0, cc-by-nc-4.0 or other")
    _check_token(repo)
    there = _look(repo, private)
    base, found = _origin(source, licence)
    return dataclasses.replace(there, source=source, licence=found, base=base, options=options or {})


def publish(publication: Publication, folder: Path) -> str:
    """Upload an export folder with its card as one commit; returns the commit's address.

    Raises:
        MissingError: the Hub refuses or breaks off; nothing is published then. GanCompressError: somebody changed the repository meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo, api = publication.repo, HfApi(library_name="gancompress", library_version=__version__)
    files = contents(publication, folder)
    stale = [name for name in BESIDE if name in publication.there and name not in files]
    if left := [name for name in publication.there if name not in files and name not in stale]:
        stderr.print(f"{repo}: left as they are there: {', '.join(left[:8])}", highlight=False, markup=False)
    if publication.new:
        hidden: dict[str, Any] = {"private": True} if publication.private else {}  # without it the Hub takes the owner's habit
        _written(repo, lambda: api.create_repo(repo, exist_ok=True, **hidden))
    changes: list[Any] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    changes += [CommitOperationDelete(path_in_repo=name) for name in stale]
    message = f"Published by gancompress {__version__}"
    done = _written(repo, lambda: api.create_commit(repo, changes, commit_message=message, parent_commit=publication.commit))
    return str(done.commit_url)


# ------------------------------------------------------------------------------------------------------------------- before


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise UsageError(f"--push-to-hub {repo}: expected OWNER/NAME of letters, digits, '-', '_' and '.'", "such as alice/faces-small")


def _check_token(repo: str) -> None:
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise MissingError(f"--push-to-hub {repo}: HF_HUB_OFFLINE is set", "publish without it")
    if not get_token():
        raise MissingError(f"--push-to-hub {repo}: no token of the Hugging Face Hub here", "`hf auth login`, or set HF_TOKEN to one that may write")
    who = _written(repo, lambda: HfApi().whoami())
    if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise MissingError(f"--push-to-hub {repo}: the token of {who.get('name')} may only read", "make one that may write at " + f"{HUB}/settings/tokens")


def _look(repo: str, private: bool) -> Publication:
    """What is at a name. Ours, empty or nothing is what may be written to."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

    def ask() -> Any:
        try:
            return HfApi().model_info(repo, timeout=10)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    unknown = Licence("")
    if (info := asked(Name(repo), ask)) is None:
        return Publication("", repo, private, unknown)
    if private and not info.private:
        raise UsageError(f"--private: the repository {repo} is there and public", "make it private on its settings page, or publish under another name")
    there = [file.rfilename for file in info.siblings or [] if file.rfilename != ".gitattributes"]
    if there and not ("config.json" in there and _ours(Path(asked(Name(repo), lambda: hf_hub_download(repo, "config.json", revision=info.sha))))):
        named = ", ".join(re.sub(r"[\x00-\x1f\x7f]", "?", name) for name in there[:8])
        raise UsageError(f"the repository {repo} holds files that gancompress did not write: {named}", "publish under another name, or empty it first")
    return Publication("", repo, bool(info.private), unknown, commit=info.sha, new=False, there=there)


def _ours(config: Path) -> bool:
    try:
        found = json.loads(config.read_text())
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("library") == "gancompress"


def _origin(source: str, given: str | None) -> tuple[Name | None, Licence]:
    """(where on the Hub the weights come from, their licence): the teacher's, or that of the source where it is no student of a run here.

    Raises:
        UsageError: the licence is unknown and none is given, or another than the known one is.
    """
    record, teacher = _made_from(source)
    base = None if teacher.startswith(("sample:", "module:")) or Path(teacher).expanduser().exists() else parse(teacher)
    known, why = (Licence(OWN_LICENCE), "") if teacher.startswith("sample:") else (None, "it lies on no Hub")
    if base:
        try:
            base, known, why = _of_base(base)
        except MissingError:
            if given is None:
                raise
    if record and not teacher:
        why = "it was recorded" if (record.get("sources") or {}).get("recorded") else "there was none"
    if known and given not in (None, known.id):
        raise UsageError(f"--license {given}: {teacher} has {known.id}, and what is made from it carries that on", "leave --license out")
    if known or given:
        return base, known or Licence(given or "")
    what = f"the licence of the teacher {public(teacher)}".rstrip() if record else f"the licence of {public(source)}"
    raise UsageError(f"{what} is unknown: {why}", "--license ID, as the teacher's owner allows it: mit, cc-by-nc-4.0, other")


def _made_from(source: str) -> tuple[dict[str, Any], str]:
    """(record of the run that made the source, if it is one's, the teacher); otherwise the source itself is what is published."""
    path = Path(source).expanduser()
    record = record_of(path if path.is_dir() else path.parent) if path.exists() else None
    if record is None or (path.is_file() and path.name != "student.safetensors"):
        return {}, source
    return record, "" if record["sources"].get("recorded") else str(record["sources"].get("teacher") or "")


def _of_base(base: Name) -> tuple[Name, Licence | None, str]:
    """(the repository at its commit, its licence, why it is unknown). A card is data: what no licence looks like is none."""
    from huggingface_hub import HfApi

    info: Any = asked(base, lambda: HfApi().model_info(base.repo, revision=base.revision, timeout=10))
    card = info.card_data.to_dict() if info.card_data else {}
    pinned = Name(base.repo, info.sha, base.file)
    found = card.get("license")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(found, str) or not LICENCE_ID.fullmatch(found) or found == "unknown":
        return pinned, None, f"the card of {base.repo} names {'several' if isinstance(found, list) else 'none'}"
    name, link = card.get("license_name"), card.get("license_link")
    if isinstance(link, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)*", link):  # a file of that repository
        link = f"{HUB}/{base.repo}/blob/{info.sha}/{link}"
    safe_name = name if isinstance(name, str) and re.fullmatch(r"[\w .+()-]{1,100}", name) else None
    return pinned, Licence(found, safe_name, link if isinstance(link, str) and re.fullmatch(r"https://[\w./%-]+", link) else None), ""


def _written(repo: str, write: Callable[[], T]) -> T:
    """What the Hub answers to a change, with its refusals as our errors."""

    def attempt() -> T:
        try:
            return write()
        except Exception as error:  # of which kind depends on the version of huggingface_hub
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status == 401:
                raise MissingError(f"{repo}: the Hub does not know this token", "`hf auth login` anew, or set HF_TOKEN") from None
            if status in (403, 404):
                raise MissingError(f"{repo}: this account may not write there ({status})", "a token with write access to that owner's models") from None
            if status == 412:
                raise GanCompressError(f"{repo} was changed by somebody meanwhile; nothing was published", "look at it, then run it again") from None
            if isinstance(error, ValueError) and "metadata" in str(error):
                said = " ".join(str(error).split())[:300]
                raise UsageError(f"{repo}: the Hub does not take the card: {said}", "--license ID of those the Hub knows") from None
            raise

    return asked(Name(repo), attempt)


# ----------------------------------------------------------------------------------------------------------------- the contents


def contents(publication: Publication, folder: Path) -> dict[str, bytes | Path]:
    """{name in the repository: content}: every file of the export folder, and beside them card, recipe, picture and numbers."""
    source = publication.source
    if not (folder / "model.safetensors").is_file():
        raise UsageError(f"{folder} holds no model.safetensors, which is what a repository is loaded from; nothing was published", "export safetensors too")
    record, teacher = _made_from(source)
    run = (Path(source) if Path(source).is_dir() else Path(source).parent) if record else None
    gan, found = load_gan(str(folder)), find(source, options=publication.options)
    config = json.loads((folder / "config.json").read_text())
    files: dict[str, bytes | Path] = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    beside: dict[str, bytes] = {}
    if record:
        beside["recipe.yaml"] = yaml.safe_dump(public_tree(record["identity"].get("recipe") or {}), sort_keys=False).encode()
    if picture := _picture(run, gan):
        beside["samples.png"] = picture
    evaluation = _evaluation(run, publication, str(config.get("dtype")))
    if evaluation:
        beside[EVALUATION_FILE] = (json.dumps(evaluation, indent=2) + "\n").encode()
    files |= beside
    sizes = {name: len(content) if isinstance(content, bytes) else content.stat().st_size for name, content in files.items()}
    facts = Facts(
        publication.repo, gan, gan_cost(gan), config, found.metadata, publication.licence, sizes, student=bool(record),
        base=publication.base, teacher=_called(teacher), teacher_cost=_teacher_cost(source), record=record, evaluation=evaluation,
    )  # fmt: skip
    return files | {"README.md": model_card(facts).encode()}


def _called(teacher: str) -> str:
    """A teacher's name for the world: of a path its last part."""
    return PurePosixPath(teacher).name if teacher and Path(teacher).expanduser().exists() else public(teacher)


def _teacher_cost(source: str) -> Cost | None:
    """What the teacher costs, where it is here to be counted."""
    teacher, options, _ = teacher_of(source)
    if teacher is None:
        return None
    try:
        found = find(teacher, options=options)
        return generator_cost(found.family, found.arch)
    except GanCompressError:
        return None


def _picture(run: Path | None, gan: GAN) -> bytes | None:
    """The run's last picture; without one the network's own images, and of a translator none."""
    if run and (drawn := sorted((run / "samples").glob("step-*.png"))):
        return drawn[-1].read_bytes()
    if not gan.arch.nz:
        return None
    with tempfile.TemporaryDirectory() as folder:
        save_comparison(Path(folder) / "samples.png", None, draw(gan, *gan.sample(16, rng(0, EVALUATION)), torch.device("cpu")))
        return (Path(folder) / "samples.png").read_bytes()


def _evaluation(run: Path | None, publication: Publication, dtype: str) -> dict[str, Any]:
    """What `eval` kept of this very student; empty, with a line that says why, where that is of another."""
    path = run / EVALUATION_FILE if run else None
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        measured = found["student_sha256"]
    except (ValueError, KeyError, TypeError):
        why = "it cannot be read"
    else:
        if dtype != "float32":
            why = f"it is of float32 weights, and these are {dtype}"
        elif measured != state_hash(load_gan(publication.source, options=publication.options).generator.state_dict()):
            why = "it is of another student"
        else:
            return {**public_tree(found), "source": publication.repo}
    stderr.print(f"{path} is left out: {why}; `gancompress eval {run}` measures anew", highlight=False, markup=False)
    return {}
