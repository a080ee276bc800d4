"""gancompress: compress a pretrained GAN. ``load`` reads any checkpoint we know; the rest is what the command line calls."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gancompress.api import distill as distill
    from gancompress.api import inspect as inspect
    from gancompress.api import sample as sample
    from gancompress.collecting import collect as collect
    from gancompress.comparing import compare as compare
    from gancompress.exporter import convert as convert
    from gancompress.exporter import export as export
    from gancompress.loading import load as load
    from gancompress.metrics import evaluate as evaluate

__version__ = "0.1.0"

# imported when first used: ``import gancompress`` and ``--help`` do not pay for torch
_PUBLIC = {
    "collect": "gancompress.collecting",
    "compare": "gancompress.comparing",
    "convert": "gancompress.exporter",
    "distill": "gancompress.api",
    "evaluate": "gancompress.metrics",
    "export": "gancompress.exporter",
    "inspect": "gancompress.api",
    "load": "gancompress.loading",
    "sample": "gancompress.api",
}

__all__ = ["collect", "compare", "convert", "distill", "evaluate", "export", "inspect", "load", "sample"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'gancompress' has no attribute {name!r}")
