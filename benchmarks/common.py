"""What the benchmark scripts share: plain progress, the commit, and the last line of JSON that is also kept in results/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gancompress.cost import device_name
from gancompress.devices import choose_device
from gancompress.runs import versions

RESULTS = Path(__file__).parent / "results"


class Notes:
    """Reporter that prints what matters for a long benchmark."""

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def finish(name: str, result: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Print the result as one line of JSON and keep it in the folder; returns all that was kept."""
    result = {"benchmark": name, "commit": commit(), "device": device_name(choose_device("auto")), **versions(), **result}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result
