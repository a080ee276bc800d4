"""A corpus of hostile and broken files through the real command line, and what foreign names may do to a terminal, a path or a run folder.

The corpus is made and run by ``hostile_files.py`` in one process of bounded memory with an audit hook; here its records are judged.
"""

import hashlib
import io
import json
import os
import pickletools
import subprocess
import sys
import time
from types import SimpleNamespace

import hostile_files
import pytest
import torch
from safetensors.torch import save, save_file
from typer.testing import CliRunner

import gancompress
from gancompress import api, opcodes
from gancompress.checkpoint import load_state
from gancompress.cli import app
from gancompress.config import load_recipe
from gancompress.contents import MAX_SETTINGS, plain
from gancompress.errors import CheckpointError, GanCompressError, UsageError, printable
from gancompress.hub import _is_plain
from gancompress.inert import Budget
from gancompress.loading import find
from gancompress.opcodes import check_pickle
from gancompress.runs import record_of
from gancompress.unpickle import open_checkpoint

NAMES = list(hostile_files.payloads("x"))


def run_script(folder, *words):
    """``hostile_files.py`` on a folder, done."""
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((os.path.dirname(here), here)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, os.path.join(here, "hostile_files.py"), str(folder), *words]
    return subprocess.run(script, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """What became of each file of the corpus, by name."""
    done = run_script(tmp_path_factory.mktemp("hostile"))
    assert done.returncode == 0, done.stderr[-2000:]  # a crash of the process would be here
    return {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}


def broken(records, rule):
    """What to print of the records that break a rule."""
    return [(name, record["code"], record["output"][:200], record["failed"], record["events"][:3]) for name, record in records.items() if not rule(record)]


def test_the_corpus_has_every_kind(records):
    assert len(records) > 150
    for kind in ("pickle-", "zip-", "legacy-", "safetensors-", "numpy-", "state-", "cut-at-", "link-", "beside-"):
        assert sum(name.startswith(kind) for name in records) >= 4, kind


def test_the_payloads_are_not_blanks_nor_is_the_audit_hook_blind(tmp_path):
    """The control: the ordinary reader makes the mark of each, and the hook sees what one does."""
    done = run_script(tmp_path, "control")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pickle.find_class" in done.stdout
    assert "os.system" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


def test_no_file_of_the_corpus_runs_anything(records):
    assert not broken(records, lambda r: not r["ran"])


def test_no_file_of_the_corpus_calls_connects_imports_compiles_or_writes(records):
    """As an audit hook sees it, which is below anything that Python code could hide."""
    assert not broken(records, lambda r: not r["events"])


def test_every_file_of_the_corpus_is_refused_with_a_code_and_a_line_and_no_traceback(records):
    assert not broken(records, lambda r: not r["failed"] and "Traceback" not in r["output"])
    assert not broken(records, lambda r: r["code"] == 0 if r["fine"] else r["code"] in (1, 2, 3, 4))
    assert not broken(records, lambda r: r["fine"] or r["output"].startswith("error: "))


def test_every_payload_is_refused_as_what_it_is(records):
    assert {records[f"{container}-{name}"]["code"] for container in ("pickle", "zip", "legacy") for name in NAMES} == {3}


def test_no_file_of_the_corpus_takes_more_memory_than_a_small_multiple_of_itself(records):
    """Eight times its size, and a hundred megabytes that any file may take."""
    assert not broken(records, lambda r: r["memory"] < 100e6 + 8 * r["bytes"]), {n: r["memory"] for n, r in records.items() if r["memory"] > 1e8}


def test_no_file_of_the_corpus_takes_long(records):
    assert not broken(records, lambda r: r["seconds"] < 10)


def test_nothing_of_the_corpus_reaches_the_terminal_as_a_control_character(records):
    assert not broken(records, lambda r: printable(r["output"], 10**9, lines=True) == r["output"])


# --------------------------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("safetensors-length-99-mb", "header has 99,000,002 bytes"),
        ("zip-bomb", "claims 150,000,002 bytes"),
        ("zip-overlapping", "claim"),
        ("zip-two-pickles", "several entries of one name"),
        ("zip-same-name-twice", "several entries of one name"),
        ("zip-escapes-in-a-name", "no network's weights"),
        ("pickle-hash-of-shared-tuples", "tuples that hold one another"),
        ("pickle-hash-of-deep-tuples", "tuples that hold one another"),
        ("pickle-memo-slot", "memory of 1,073,741,823 things"),
        ("pickle-names", "more than 1000 things to be imported"),
        ("pickle-the-same-array-often", "unfolds to far more"),
        ("pickle-the-same-text-encoded-often", "unfolds to far more"),
        ("pickle-the-same-list-copied-often", "unfolds to far more"),
        ("numpy-changes-our-function", "tries to change the program"),
        ("zip-offset-beyond", "outside its storage"),
        ("legacy-offset-beyond", "outside its storage"),
        ("legacy-storage-of-too-many", "claim more than"),
        ("state-sparse", "torch.sparse_coo tensor"),
        ("state-meta", "meta tensor"),
        ("state-too-large-for-float32", "infinite values, as float32"),
        ("pipe", "a pipe, a device or a directory"),
        ("link-zero", "a pipe, a device or a directory"),
        ("tar-with-links", "tar archive"),
        ("nvlabs-with-module-source", "no network's weights"),
        ("safetensors-family-of-a-module", "os.system"),
        ("sample-outside", "no bundled teacher"),
    ],
)
def test_what_is_wrong_is_said(name, words, records):
    assert words in records[name]["output"]


def test_a_pickle_of_more_operations_than_any_network_is_refused(monkeypatch):
    monkeypatch.setattr(opcodes, "MAX_OPERATIONS", 1000)
    check_pickle(io.BytesIO(b"\x80\x02](" + b"N" * 900 + b"e."))
    with pytest.raises(CheckpointError, match="more than 1,000 operations"):
        check_pickle(io.BytesIO(b"\x80\x02](" + b"N" * 1000 + b"e."))


@pytest.mark.parametrize("op", pickletools.opcodes, ids=lambda op: op.name)
def test_the_look_through_a_pickle_knows_every_operation_s_place_on_the_stack(op):
    """After a made-up stack below it, an operation leaves what pickletools says it leaves: the STOP finds exactly the one thing at the bottom."""
    arguments = {"decimalnl_short": b"0\n", "decimalnl_long": b"0L\n", "stringnl": b"'a'\n", "unicodestringnl": b"a\n", "floatnl": b"1\n"}
    arguments |= {"stringnl_noescape": b"a\n", "stringnl_noescape_pair": b"a\nb\n"}
    argument = (
        b"" if op.arg is None else arguments.get(op.arg.name, bytes(max(op.arg.n, 0) if op.arg.n >= 0 else {-2: 1, -3: 4, -4: 4, -5: 8}.get(op.arg.n, 0)))
    )
    if op.name in ("STOP", "MARK", "READONLY_BUFFER"):
        return
    below = b"".join(b"(" if o.name == "mark" else b"NN" if o.name == "stackslice" else b"N" for o in op.stack_before)
    below = b"N" + below if op.name in ("PUT", "BINPUT", "LONG_BINPUT") else b"Nq\x000" + below if "GET" in op.name else below
    left = len(op.stack_after) + (op.name in ("PUT", "BINPUT", "LONG_BINPUT"))
    data = b"N" + below + op.code.encode("latin1") + argument
    check_pickle(io.BytesIO(data + b"0" * left + b"."))
    with pytest.raises(CheckpointError):
        check_pickle(io.BytesIO(data + b"0" * (left + 1) + b"."))


def test_a_budget_ends():
    budget = Budget(100)
    budget.take((1 << 26) + 800)
    with pytest.raises(CheckpointError, match="far more than the file holds"):
        budget.take(1)


def test_settings_that_hold_one_another_are_cut_short():
    settings: dict = {"a": 1}
    for _ in range(4):
        settings = dict.fromkeys(map(str, range(100)), settings)
    started = time.process_time()
    found = plain(settings)
    assert len(json.dumps(found)) < 20 * MAX_SETTINGS
    assert time.process_time() - started < 1


@pytest.mark.parametrize("kind", ["zip", "legacy", "write"])
def test_a_run_s_state_is_never_more_than_numbers(kind, tmp_path, monkeypatch):
    """state.pt is read with weights_only whatever the environment says."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    corpus = hostile_files.Corpus.__new__(hostile_files.Corpus)
    corpus.folder, corpus.cases, corpus.fine = tmp_path, {}, set()
    getattr(corpus, kind)("state", hostile_files.payloads(tmp_path / "it-ran")["os.system"])
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data + hashlib.sha256(data).digest())  # whole, as far as its hash tells
    with pytest.raises(CheckpointError, match="state is damaged") as caught:
        load_state(tmp_path / "state.pt")
    assert "hash" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


# --------------------------------------------------------------------------------------------------------------------- names are data

ESCAPES = "\x1b[31mred\x1b]0;title\x07\r\x9b2J\u202e[bold]name[/bold]"


def test_printable_escapes_what_acts_on_a_terminal_and_keeps_everything_else():
    assert printable("ä 漢 [red] \\ 'x'") == "ä 漢 [red] \\ 'x'"
    assert printable("a\nb\tc\x1b\x7f\x9b\u202e\ud800") == "a\\nb\\tc\\x1b\\x7f\\x9b\\u202e\\ud800"
    assert printable("a\nb", lines=True) == "a\nb"
    assert printable("x" * 5000, 10) == "x" * 10 + " ... (4,990 more)"


def test_an_error_shows_escapes_and_does_not_send_them():
    error = GanCompressError(f"{ESCAPES}\nline", f"hint {ESCAPES}")
    assert "\x1b" not in str(error) + error.hint
    assert "\n" in str(error)
    assert "\\x1b[31m" in str(error)


def test_names_with_escapes_and_markup_are_shown_as_text(tmp_path):
    """Of a file's keys, of a class that was not imported, of our own metadata and of the file itself."""
    folder = tmp_path / ESCAPES.replace("/", "|")
    folder.mkdir()
    state = dict(hostile_files.STATE)
    path = folder / "a.pt"
    torch.save({f"g{ESCAPES}": state, f"other{ESCAPES}\nforged line": {"param_groups": [], "state": {}}}, path)
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert "[bold]name[|bold]" in result.output
    assert printable(result.output, 10**6, lines=True) == result.output
    assert "\nforged line" not in result.output
    code = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert printable(code.output, 10**6, lines=True) == code.output
    assert json.loads(code.output)["source"] == str(path)


def test_metadata_of_our_own_files_is_shown_as_text(tiny_teacher, tmp_path):
    from safetensors import safe_open

    with safe_open(tiny_teacher, "pt") as file:
        tensors, meta = {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["gancompress"])  # noqa: SIM118
    save_file(tensors, path := tmp_path / "a.safetensors", {"gancompress": json.dumps({**meta, "recipe": f"mse{ESCAPES}\n  forged  row", "seed": ESCAPES})})
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert printable(result.output, 10**6, lines=True) == result.output
    assert "\n  forged  row" not in result.output


@pytest.mark.parametrize("name", ["../a.pt", "a/../../b.pt", "/etc/a.pt", "a\\..\\b.pt", "a\n.pt", "a\x1b[31m.pt", "..", "", "a\u202etp.pt"])
def test_a_name_of_a_repository_that_leaves_its_folder_or_acts_on_a_terminal_is_none(name):
    assert not _is_plain(name)


@pytest.mark.parametrize("name", ["model.safetensors", "a/b c/net_G.pth", "weights..pt", "ä.pt", "..a/x.pt"])
def test_an_ordinary_name_of_a_repository_is_one(name):
    assert _is_plain(name)


def test_hostile_names_of_a_hub_repository_are_neither_fetched_nor_shown(tmp_path, monkeypatch):
    """The Hub's answers are made up here; tests/test_hub.py has a Hub that speaks its protocol."""
    import huggingface_hub

    names = ["../../outside.safetensors", "/tmp/absolute.safetensors", "a\nerror: forged.safetensors", f"{ESCAPES}.safetensors"]
    asked = []

    def listed(self, *_, **__):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in ["model.safetensors", "config.json", "evil.py", *names]])

    def download(repo, name, revision=None):
        asked.append(name)
        (folder := tmp_path / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
        content = json.dumps({"auto_map": {"AutoModel": "evil.py"}, "resolution": "../../x"}).encode()
        (folder / name).write_bytes(save({k: v.contiguous() for k, v in hostile_files.STATE.items()}) if name.startswith("model") else content)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["inspect", "some/gan"])
    assert result.exit_code == 0, result.output
    assert asked == ["model.safetensors", "config.json"]
    assert printable(result.output, 10**6, lines=True) == result.output
    assert "forged" not in result.output
    asked.clear()
    for name in names:
        result = CliRunner().invoke(app, ["inspect", f"some/gan:{name}"])
        assert result.exit_code == 4, (name, result.output)
        assert printable(result.output, 10**6, lines=True) == result.output
    assert not asked


# ------------------------------------------------------------------------------------------------------- run folders and recipes


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[]", b"[" * 200_000, b'{"identity": 3}', b'{"identity": {"teacher": "x"}, "sources": {}}', b"\xff\xfe", b'{"a": ' + b"9" * 9999 + b"}"],
)
def test_a_run_json_that_is_none_is_no_run(data, tmp_path):
    (tmp_path / "run.json").write_bytes(data)
    assert record_of(tmp_path) is None


def test_a_run_json_that_is_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    assert record_of(tmp_path) is None
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").symlink_to("/dev/zero")
    assert record_of(tmp_path) is None


@pytest.mark.parametrize(
    "teacher", ["module:{}:make", "hf://some/gan@main:netG.pth", "../../../etc/passwd", "sample:../../x", "/dev/zero", "http://127.0.0.1:9/x.pt"]
)
def test_somebody_s_run_folder_makes_eval_neither_run_nor_fetch_anything(teacher, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\ndef make(): pass\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "student.safetensors").write_bytes(tiny_teacher.read_bytes())
    record = {"identity": {"teacher": {"options": {"family": ["a"]}}}, "sources": {"teacher": teacher.format(code)}}
    (run / "run.json").write_text(json.dumps(record))
    result = CliRunner().invoke(app, ["eval", str(run), "--num-images", "2", "--device", "cpu"])
    assert result.exit_code in (0, 2, 3, 4), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch {}']",
        "!!python/name:os.system",
        "[" * 1_000,
        "a: 2001-99-99",
        "a: &a [1,1,1,1,1,1,1,1,1]\n" + "\n".join(f"a{i}: &b{i} [{','.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 9)}]" for i in range(9)),
        "x: &x [*x]",
        "loss: mse\nweights: {}",
        "\x00",
        "a: " + "9" * 5000,
    ],
)
def test_a_recipe_that_is_code_or_a_bomb_is_a_usage_error(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text.replace("{}", str(tmp_path / "it-ran")))
    started = time.process_time()
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        load_recipe(str(tmp_path / "recipe.yaml"))
    assert time.process_time() - started < 5
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "word", ["seed=2001-99-99", "seed=" + "[" * 1000, "seed=!!python/name:os.system", "weights=&a [*a]", "paper=\x1b[31m", "a..b=1", "loss=../x"]
)
def test_a_hostile_word_of_the_command_line_is_a_usage_error(word, tiny_teacher, tmp_path):
    result = CliRunner().invoke(app, ["distill", str(tiny_teacher), word, "--dry-run", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert result.exit_code in (0, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert printable(result.output, 10**6, lines=True) == result.output


def test_words_of_a_config_are_neither_imported_nor_evaluated(tmp_path):
    save_file({k: v.contiguous() for k, v in hostile_files.STATE.items()}, tmp_path / "model.safetensors")
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    words = {"_target_": "evil_module", "auto_map": {"AutoModel": "evil_module.A"}, "output": "__import__('evil_module')", "library_name": "evil_module"}
    (tmp_path / "config.json").write_text(json.dumps(words))
    gancompress.load(str(tmp_path))
    assert api.inspect(str(tmp_path))["family"] == "dcgan"
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "it-ran").exists()


def test_a_source_that_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for function in (open_checkpoint, lambda path: find(str(path))):
        with pytest.raises(CheckpointError, match="a pipe, a device or a directory"):
            function(tmp_path / "pipe.pt")
