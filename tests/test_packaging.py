"""What is shipped: the recipes and the bundled teacher are where the code looks, installed or not."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LOOK = """
import gancompress, json
from gancompress.config import recipe_dir, recipe_names, recipe_path
print(json.dumps([gancompress.__file__, str(recipe_dir()), recipe_names(), recipe_path("mse").read_text()]))
"""


def look(place, cwd):
    """What a fresh Python finds with ``place`` in front of its path (None: as it is installed)."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ({"PYTHONPATH": str(place)} if place else {})
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_the_repository(folder):
    return sorted(p.stem for p in (REPO / folder).glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed, so no wheel can be built here")
    from hatchling.builders.wheel import WheelBuilder

    return Path(next(WheelBuilder(str(REPO)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])))


def test_the_wheel_holds_the_recipes_the_samples_and_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("gancompress/recipes/mse.yaml") == (REPO / "recipes" / "mse.yaml").read_bytes()
    assert {f"gancompress/recipes/{name}.yaml" for name in in_the_repository("recipes")} <= names
    for suffix in ("*.py", "samples/**/*.safetensors"):
        assert {str(p.relative_to(REPO)) for p in (REPO / "gancompress").rglob(suffix)} <= names
    assert any(n.endswith("entry_points.txt") for n in names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/")) or "__pycache__" in n]


def test_the_samples_are_at_most_three_megabytes():
    assert sum(p.stat().st_size for p in (REPO / "gancompress" / "samples").rglob("*") if p.is_file()) <= 3e6


def test_an_unpacked_wheel_finds_its_own_recipes(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    module, folder, names, text = look(tmp_path / "site", tmp_path)
    assert Path(module).is_relative_to(tmp_path / "site")
    assert Path(folder) == tmp_path / "site" / "gancompress" / "recipes"
    assert names == in_the_repository("recipes")
    assert text == (REPO / "recipes" / "mse.yaml").read_text()


def test_a_clone_finds_the_recipes_beside_the_package(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(REPO / "gancompress", clone / "gancompress", ignore=shutil.ignore_patterns("__pycache__", "samples"))
    shutil.copytree(REPO / "recipes", clone / "recipes")
    module, folder, names, _ = look(clone, tmp_path)
    assert Path(module).is_relative_to(clone)
    assert Path(folder) == clone / "recipes"
    assert names == in_the_repository("recipes")


def test_the_installed_package_finds_its_recipes_from_anywhere(tmp_path):
    """Editable or not: whichever this environment has."""
    try:
        version("gancompress")
    except PackageNotFoundError:
        pytest.skip("gancompress is not installed in this environment")
    _, folder, names, text = look(None, tmp_path)
    assert names == in_the_repository("recipes")
    assert text == (REPO / "recipes" / "mse.yaml").read_text()
    assert Path(folder).name == "recipes"
