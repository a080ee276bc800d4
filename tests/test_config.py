"""Recipes, their errors, the lists that must equal the files, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gancompress
from gancompress.config import load_recipe, parse_override, recipe_dir, recipe_names, recipe_path
from gancompress.errors import UsageError
from gancompress.families import FAMILIES
from gancompress.losses import LOSSES

PACKAGE = Path(gancompress.__file__).parent


def modules(folder):
    return {p.stem for p in (PACKAGE / folder).glob("*.py")} - {"__init__"}


@pytest.fixture
def edited(tmp_path):
    """Writes the mse recipe with changes and returns its path."""

    def write(**changes):
        values = yaml.safe_load(recipe_path("mse").read_text()) | changes
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def test_losses_are_the_files_of_their_folder():
    assert {name.replace("-", "_") for name in LOSSES} == modules("losses") - {"base", "cycle", "gan", "styled"}


def test_families_are_the_files_of_their_folder():
    assert set(FAMILIES) == modules("families")
    assert all(family.name == name for name, family in FAMILIES.items())


def test_recipe_names_are_the_files_of_their_folder():
    assert recipe_names() == sorted(p.stem for p in recipe_dir().iterdir())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_names_its_paper(name):
    recipe = load_recipe(name)
    assert recipe.paper
    assert recipe.loss in LOSSES
    assert recipe.schedule.steps > 0
    assert load_recipe(str(recipe_path(name))) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_every_number_itself(name):
    """What the loss's weights may be is written in the YAML, not hidden in a default."""
    values = yaml.safe_load(recipe_path(name).read_text())
    assert set(values["weights"]) == set(LOSSES[values["loss"]].Weights.model_fields)


def test_every_loss_has_a_recipe():
    assert {load_recipe(name).loss for name in recipe_names()} == set(LOSSES)


def test_all_errors_are_reported_at_once(edited):
    path = edited(loss="joint", weights={"alpha": 2, "gmae": "wasserstein"}, student={"ch_mul": 5}, optim={"g_lr": "fast", "g_betas": [0.5, 0.9]}, sed=1)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    said = str(caught.value)
    for part in ("weights.alpha=2", "weights.gmae", "did you mean 'game'", "student.ch_mul=5", "optim.g_lr='fast'", "sed: unknown key; did you mean 'seed'"):
        assert part in said


def test_a_missing_section_is_named(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("loss: mse\npaper: none\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(str(path))
    assert all(f"{section}: missing" in str(caught.value) for section in ("student", "optim", "schedule", "output"))


@pytest.mark.parametrize(("key", "near"), [("schedule.kimgs", "kimg"), ("student.chmul", "ch_mul"), ("optim.glr", "g_lr"), ("outputt", "output")])
def test_a_misspelt_key_is_offered_its_nearest(key, near):
    with pytest.raises(UsageError, match=f"did you mean '{near}'"):
        load_recipe("mse", [(key, 1)])


@pytest.mark.parametrize(("wrong", "near"), [("mes", "mse"), ("joints", "joint"), ("scracth", "scratch"), ("MSE", "mse")])
def test_a_misspelt_recipe_is_offered_its_nearest(wrong, near):
    with pytest.raises(UsageError) as caught:
        load_recipe(wrong)
    if wrong != "MSE":
        assert f"did you mean {near!r}" in str(caught.value)
    assert all(name in caught.value.hint for name in recipe_names())


def test_a_misspelt_loss_is_offered_its_nearest(edited):
    with pytest.raises(UsageError, match="did you mean 'joint'"):
        load_recipe(edited(loss="jiont"))


@pytest.mark.parametrize("value", ["1e-3", "0.001", "1.0e-3", 1e-3])
def test_an_exponent_without_a_dot_is_a_number(value, edited):
    assert load_recipe("mse", [("optim.g_lr", value)]).optim.g_lr == 0.001
    assert load_recipe("mse", [parse_override(f"optim.g_lr={value}")]).optim.g_lr == 0.001


@pytest.mark.parametrize(("key", "value"), [("student.ch_mul", v) for v in (0, -1, 5)] + [("schedule.kimg", 0), ("schedule.batch_size", 0), ("seed", -1)])
def test_values_out_of_range_are_refused_with_key_and_value(key, value):
    with pytest.raises(UsageError, match=f"{key}={value}"):
        load_recipe("mse", [(key, value)])


def test_overrides_come_after_the_file_and_later_ones_win():
    assert load_recipe("mse", [("schedule.kimg", 5), ("schedule.kimg", 7)]).schedule.kimg == 7
    assert load_recipe("mse").schedule.kimg == 200
    assert load_recipe("scratch", [parse_override("optim.d_betas=[0.0,0.9]")]).optim.d_betas == (0.0, 0.9)


@pytest.mark.parametrize("text", ["novalue", "=3", " =3"])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(UsageError, match="key=value"):
        parse_override(text)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just words", "a: [1,\n", "\x00\x01"])
def test_a_file_that_is_no_recipe_is_refused(content, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match="not a recipe"):
        load_recipe(str(path))


def test_a_value_where_a_section_belongs_is_refused():
    with pytest.raises(UsageError, match=r"seed.x"):
        load_recipe("mse", [("seed.x", 1)])


@pytest.mark.parametrize(("kimg", "batch", "steps"), [(1, 100, 10), (1, 300, 4), (0.001, 64, 1), (0.012, 4, 3)])
def test_steps_are_the_images_in_whole_batches(kimg, batch, steps):
    assert load_recipe("mse", [("schedule.kimg", kimg), ("schedule.batch_size", batch)]).schedule.steps == steps


# ---------------------------------------------------------------------------------------------------------- the way of imports

#: lowest first; a module imports from levels below its own only. Within families and losses, the package gathers its files
LEVELS = [
    {"errors", "htmlreport"},
    {"console", "charts", "distributed", "speed"},
    {"gan", "opcodes", "inert"},
    {"layers", "augment"},
    {"patchgan", "brock"},
    {"families", "losses"},
    {"config"},
    {"data", "scaling", "unpickle", "checkpoint", "cost", "hub", "user_module", "protocol", "devices"},
    {"contents", "pairs", "weights"},
    {"reading", "sources"},
    {"loading", "report", "extractors", "distances", "perceptual", "runs", "shards"},
    {"comparison"},
    {"loop", "fidelity", "folding", "students", "recorded", "segmentation", "fitting"},
    {"runreport", "way_back", "request"},
    {"opening", "building", "classwise", "references", "describing", "onnx_export", "original_keys"},
    {"planning", "collecting", "metrics"},
    {"running", "comparing", "exporter"},
    {"api", "screens", "sweeping", "card"},
    {"quickstart", "toys", "publishing"},
    {"cli"},
]
OUTSIDE = {"__init__", "__main__"}  # the two doors: they open what is asked for


def imports_of(path: Path) -> set[str]:
    """First-level modules of ours that a file imports, anywhere in it; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "gancompress":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("a relative import")
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gancompress.")}
    return found


def test_every_module_has_a_level():
    here = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert here - OUTSIDE == set().union(*LEVELS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name in OUTSIDE:
        return
    level = next(i for i, names in enumerate(LEVELS) if name in names)
    below = set().union(*LEVELS[:level])
    upwards = imports_of(path) - below - {name, "__version__"}
    assert not upwards, f"{path.name} imports {', '.join(sorted(upwards))}"


def test_help_does_not_import_torch():
    """Nor of any subcommand; one process for all of them."""
    code = """
import sys
from typer.testing import CliRunner
from gancompress.cli import app
from typer.main import get_command
names = sorted(get_command(app).commands)
for words in [[], *([n] for n in names), ["recipes", "show"], ["recipes", "copy"]]:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, (words, result.output)
    assert "Usage" in result.output
    heavy = {"torch", "numpy", "PIL", "matplotlib"} & set(sys.modules)
    assert not heavy, (words, heavy)
print(",".join(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"distill", "eval", "export", "inspect", "sample", "recipes", "quickstart", "toy", "env"} <= set(done.stdout.strip().split(","))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, gancompress; assert 'torch' not in sys.modules; assert set(gancompress.__all__) >= {'load', 'distill'}"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_public_names_are_all_there():
    for name in gancompress.__all__:
        assert callable(getattr(gancompress, name))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = gancompress.distil
