"""Checkpoints on the Hugging Face Hub: ``owner/name``, ``owner/name@revision``, ``owner/name:file``, each also as ``hf://...``, and the addresses of its pages.

One file is chosen and fetched, and the config.json beside it; the code of a repository never is. Cache, endpoint, token and offline mode are
huggingface_hub's own: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from gancompress.console import stderr
from gancompress.errors import CheckpointError, GanCompressError, MissingError, UsageError, printable

T = TypeVar("T")

SCHEME = "hf://"
#: suffixes of weights by kind, the kind we would rather read first
KINDS = ((".safetensors",), (".bin",), (".pt", ".pth", ".ckpt", ".tar", ".pkl"))
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind)
#: names that weights usually have, and names that never are weights, both without the suffix
USUAL = ("model", "student", "pytorch_model", "diffusion_pytorch_model")
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)([_-]?\d+)?")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+")
CONFIGS = ("config.json", "generator_config.json")

_REPO = r"(?P<repo>\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?)"
_PLAIN = re.compile(rf"{_REPO}(?:@(?P<revision>[^:]+))?(?::(?P<file>.+))?", re.ASCII)
#: a page of the Hub: a model's, a folder's at a revision, a file's; the browser writes %2F for a slash in a revision
_PAGE = re.compile(r"/(?P<repo>[^/]+/[^/]+)(?:/(?:(?:tree|commit)/(?P<at>[^/]+)|(?:blob|resolve|raw)/(?P<revision>[^/]+)/(?P<file>.+)))?/?")
_URI = re.compile(rf"{_REPO}(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(?:/(?P<file>.+))?", re.ASCII)  # the Hub's own way: the file after a slash


@dataclass(frozen=True)
class Name:
    """A source on the Hub. ``revision``: a branch, tag or commit, None for the main branch; ``file``: None where one is to be chosen."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


def parse(source: str) -> Name | None:
    """The repository that a source may name, or None where it can only be a path: not two parts, or a last part that ends as files do.

    Raises:
        UsageError: it begins with hf:// or https:// and goes on with no repository's name, or on another host.
    """
    if re.match(r"https?://", source, re.IGNORECASE):
        return _parse_url(source)
    uri, rest = source.startswith(SCHEME), source.removeprefix(SCHEME)
    found = (_URI if uri and ":" not in rest else _PLAIN).fullmatch(rest)
    if found and (uri or not re.search(r"\.([A-Za-z]{2,}|h5)$", found["repo"])) and _tame(*found.groups()):
        return Name(found["repo"], found["revision"], found["file"])
    if uri:
        raise UsageError(f"{source!r}: expected {SCHEME}owner/name, @revision and :file after it where they are needed")
    return None


def _parse_url(source: str) -> Name:
    """The repository of a page's address, as a browser has it."""
    parts = urlsplit(source)
    ours = {"huggingface.co", "www.huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc}
    if parts.netloc.lower() not in ours:
        raise UsageError(f"{source!r}: of addresses, those of models on huggingface.co are taken", "download the file and give its path")
    found = _PAGE.fullmatch(parts.path)
    if found and re.fullmatch(_REPO, found["repo"], re.ASCII) and found["repo"].split("/")[0] not in ("datasets", "spaces", "api", "docs"):
        revision, file = (unquote(text) if text else None for text in (found["revision"] or found["at"], found["file"]))
        if _tame(found["repo"], revision, file):
            return Name(found["repo"], revision, file)
    raise UsageError(f"{source!r}: no model's page", "https://huggingface.co/owner/name, or a file's: https://huggingface.co/owner/name/blob/main/FILE")


def _tame(repo: str, revision: str | None, file: str | None) -> bool:
    """Whether a name stays within the cache's folder for it, and on one line."""
    if re.search(r"--|\.\.", repo) or (revision and re.search(r"\.\.|^/|[\\\x00-\x20\x7f]", revision)):
        return False
    return file is None or _is_plain(file)


def fetch(name: Name) -> tuple[Path, Name]:
    """(path of the file in the cache, its name with commit and file). What was chosen is said on stderr.

    Raises:
        MissingError: no such repository, revision or file, none that this account may read, no way to the Hub, or several files that could be meant.
        CheckpointError: it holds no weights that we read. The messages do not repeat the source.
    """
    from huggingface_hub import hf_hub_download

    files, cached = _listing(name)
    file = _choose(name, files)

    def get(wanted: str, revision: str | None) -> Path:
        return cached / wanted if cached else asked(name, lambda: Path(hf_hub_download(name.repo, wanted, revision=revision)))

    path, folder = get(file, name.revision), PurePosixPath(file).parent
    commit = path.parents[len(folder.parts)].name  # the cache has a folder for each
    for config in CONFIGS:
        if (beside := str(folder / config)) in files:
            get(beside, commit)
    others = [f for f in files if _is_weights(f) and f != file]
    also = f"; also there: {', '.join(others[:5])}" if others else ""
    stderr.print(f"{name}: {file} at {commit[:12]}{' from the cache' if cached else ''}{also}", highlight=False, markup=False)
    return path, Name(name.repo, commit, file)


def in_cache(source: str) -> bool:
    """Whether a source pinned as ``fetch`` pins it can be read without anything being fetched."""
    from huggingface_hub import try_to_load_from_cache

    try:
        name = parse(source)
        found = name and name.file and try_to_load_from_cache(name.repo, name.file, revision=name.revision)
    except (UsageError, ValueError):
        return False
    return isinstance(found, str)


def _listing(name: Name) -> tuple[list[str], Path | None]:
    """(every file of the repository, None); where the Hub gives no answer, those in the cache and the folder they are in."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import RevisionNotFoundError

    def ask() -> tuple[list[str], Path | None]:
        try:
            info = HfApi().model_info(name.repo, revision=name.revision, timeout=10)
            return [file.rfilename for file in info.siblings or [] if _is_plain(file.rfilename)], None  # others are somebody's trick
        except RevisionNotFoundError:
            raise
        except Exception:  # as huggingface_hub does: what was fetched once serves whenever the Hub does not
            try:
                folder = Path(snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[]))
            except Exception:
                folder = None
            files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()] if folder else []
            if not any(f == name.file if name.file else _is_weights(f) for f in files):
                raise
            return files, folder

    return asked(name, ask)


def asked(name: Name, ask: Callable[[], T]) -> T:
    """What huggingface_hub answers, with its errors as ours."""
    from huggingface_hub import HfApi
    from huggingface_hub import utils as hub

    repo, endpoint = name.repo, HfApi().endpoint
    try:
        return ask()
    except GanCompressError:
        raise
    except hub.GatedRepoError:
        hint = f"ask for it at {endpoint}/{repo}, then `hf auth login` or set HF_TOKEN"
        raise MissingError(f"the Hub repository {repo} is gated, and access was not granted", hint) from None
    except hub.RepositoryNotFoundError:
        hint = "check the name; for a private one `hf auth login` or set HF_TOKEN"
        raise MissingError(f"no Hub repository {repo}, or a private one that this account cannot see", hint) from None
    except hub.RevisionNotFoundError:
        raise MissingError(f"the Hub repository {repo} has no revision {name.revision}", f"its branches and tags are at {endpoint}/{repo}/tree/main") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise  # the disk's
        cause = error.__cause__ if isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, hub.OfflineModeIsEnabled):
            raise MissingError(f"the Hub repository {repo} is not in the cache, and HF_HUB_OFFLINE is set", "fetch it once without HF_HUB_OFFLINE") from None
        if isinstance(cause, hub.HfHubHTTPError) and getattr(cause, "response", None) is not None:
            said = printable(f"{cause.response.status_code} {cause.server_message or ''}".strip(), 300)
            raise MissingError(f"the Hub answered {said} for {repo}", "try again later; for 401 and 403 look at HF_TOKEN") from None
        # an error of requests, httpx or httpx2, as the version of huggingface_hub has it
        said = f"{type(cause).__name__}: {str(cause).splitlines()[0][:150] if str(cause) else 'no reason given'}"
        raise MissingError(f"the Hub at {endpoint} could not be asked for {repo} ({said})", "check the network, the proxy and HF_ENDPOINT") from None


def _is_plain(file: str) -> bool:
    """Whether a name of a repository stays within a folder and can be shown."""
    return printable(file) == file and "\\" not in file and ".." not in (parts := PurePosixPath(file).parts) and bool(parts) and parts[0] != "/"


def _is_weights(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in SUFFIXES and not NO_WEIGHTS.fullmatch(path.stem)


def _choose(name: Name, files: list[str]) -> str:
    """The file that is named, else the first kind of weights there is, at the top of the repository before its folders; its usual name, or its only file."""
    weights = [f for f in files if _is_weights(f)]
    if name.file:
        if name.file not in files:
            raise MissingError(f"the Hub repository {name.repo} has no file {name.file}", f"weights there: {', '.join(weights[:8]) or 'none'}")
        return name.file
    whole = [f for f in weights if not SHARD.search(f)]
    for level in ([f for f in whole if "/" not in f], whole):
        for kind in KINDS:
            these = [f for f in level if f.endswith(kind)]
            usual = [f for stem in USUAL for f in these if PurePosixPath(f).stem == stem]
            if usual or len(these) == 1:
                return (usual or these)[0]
            if these:
                hint = f"name one: {Name(name.repo, name.revision, 'FILE')}, and the discriminator's file so with --discriminator"
                raise MissingError(f"several files of the Hub repository {name.repo} could be meant: {', '.join(these[:8])}", hint)
    if weights:
        raise CheckpointError(f"the weights of the Hub repository {name.repo} are in {len(weights)} pieces, such as {weights[0]}: they are not read")
    raise CheckpointError(f"no checkpoint in the Hub repository {name.repo}", f"looked for {', '.join('*' + s for s in SUFFIXES)}")
