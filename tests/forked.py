"""The program in processes of its own, forked from one that has imported torch already and huggingface_hub not yet: it reads its environment at import."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "torchvision", "matplotlib.pyplot", "gancompress.api", "gancompress.cli", "gancompress.screens", "gancompress.metrics"]
)


def _main(words: list[str], environment: dict[str, str], folder: Path, out: Path) -> None:
    for handle, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["gancompress", *words]
    from gancompress.cli import main

    main()


def start(words: list[str], environment: dict[str, str], folder: Path, out: Path) -> multiprocessing.process.BaseProcess:
    """``gancompress WORDS`` in a folder; its output goes into files of ``out``."""
    process = CONTEXT.Process(target=_main, args=(words, environment, folder, out))
    process.start()
    return process


def call(words: list[str], environment: dict[str, str], folder: Path, out: Path) -> SimpleNamespace:
    """The same, waited for: returncode, stdout, stderr."""
    process = start(words, environment, folder, out)
    process.join(120)
    return SimpleNamespace(returncode=process.exitcode, stdout=(out / "stdout").read_text(), stderr=(out / "stderr").read_text())
