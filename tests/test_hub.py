"""Sources on the Hugging Face Hub, read from a Hub of our own through HF_ENDPOINT, in processes whose environment is a user's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import named, sequential_discriminator, sequential_generator
from hub_server import STRANGER, TOKEN, Hub, Repo
from safetensors.torch import save

from gancompress.errors import UsageError
from gancompress.hub import Name, parse

MARK = "import os; os.environ['GANCOMPRESS_MARK'] = '1'\n"
FETCH = """
import json, sys
from gancompress.errors import GanCompressError
from gancompress.hub import fetch, parse
out = []
for source in json.loads(sys.argv[1]):
    try:
        path, pinned = fetch(parse(source))
        out.append({"path": str(path), "pinned": str(pinned)})
    except GanCompressError as error:
        out.append({"error": str(error), "hint": error.hint, "code": error.exit_code})
print(json.dumps(out))
"""


def torch_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


G = named(sequential_generator(4, (6, 5), 3))
D = named(sequential_discriminator(3, (5, 6)))
OTHER = named(sequential_generator(4, (6, 5), 3, seed=7))
G_PT, D_PT, G_SAFE = torch_file(G), torch_file(D), save(G)


@pytest.fixture(scope="module")
def hub():
    first, second = Repo.of({"pytorch_model.bin": G_PT}), Repo.of({"pytorch_model.bin": torch_file(OTHER)})
    moved = Repo({**first.commits, **second.commits}, {"main": second.refs["main"], "v1": first.refs["main"], "refs/pr/1": first.refs["main"]})
    repos = {
        "owner/all": {"README.md": b"", "model.py": MARK.encode(), "config.json": b'{"auto_map": {"AutoModel": "model.Net"}, "nz": 4}',
                      "netG.pth": G_PT, "pytorch_model.bin": G_PT, "model.safetensors": G_SAFE, "optimizer.pt": D_PT, "old/x.safetensors": G_SAFE},
        "owner/bins": {"pytorch_model.bin": G_PT, "training_args.bin": D_PT, "G.pt": G_PT},
        "owner/single": {"README.md": b"", "weights.pkl": G_PT, "rng_state_0.pth": D_PT},
        "owner/pair": {"netG.pth": G_PT, "netD.pth": D_PT, "config.json": b"{}"},
        "owner/folder": {"config.json": b"{}", "sub/config.json": b"{}", "sub/generator.pth": G_PT},
        "owner/shards": {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b"", "model-00002-of-00002.safetensors": b""},
        "owner/nothing": {"README.md": b"", "model.onnx": b"0"},
        "owner/lfs": {"netG.pth": b"version https://git-lfs.github.com/spec/v1\n"},
    }  # fmt: skip
    served = {name: Repo.of(files) for name, files in repos.items()} | {"owner/moved": moved}
    served["owner/private"] = Repo.of({"netG.pth": G_PT}, private=True)
    served["owner/gated"] = Repo.of({"netG.pth": G_PT}, gated=True)
    served["owner/broken"] = Repo.of({"netG.pth": G_PT}, status=418)
    served["owner/listed"] = Repo.of({"netG.pth": G_PT}, content_status=418)
    with Hub(served) as running:
        yield running


@pytest.fixture
def environment(hub, tmp_path):
    """What a user would export; HF_HOME is the test's own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    hub.log.clear()
    return {**clean, **quiet, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint}


def run(code, environment, *words, cwd=None):
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def fetched(environment, *sources):
    return json.loads(run(FETCH, environment, json.dumps(sources)).stdout)


# --------------------------------------------------------------------------------------------------------------------- the name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", Name("owner/name")),
        ("owner/name@v1", Name("owner/name", "v1")),
        ("owner/name@refs/pr/1", Name("owner/name", "refs/pr/1")),
        ("owner/name@feature/x:sub/netG.pth", Name("owner/name", "feature/x", "sub/netG.pth")),
        ("owner/name:netG.pth", Name("owner/name", None, "netG.pth")),
        ("owner/stylegan2-v1.5", Name("owner/stylegan2-v1.5")),
        ("hf://owner/name", Name("owner/name")),
        ("hf://owner/name@v1:netG.pth", Name("owner/name", "v1", "netG.pth")),
        ("hf://owner/name/sub/netG.pth", Name("owner/name", None, "sub/netG.pth")),
        ("hf://owner/name@refs/pr/1/netG.pth", Name("owner/name", "refs/pr/1", "netG.pth")),
        ("hf://owner/weights.pt", Name("owner/weights.pt")),
        ("https://huggingface.co/owner/name", Name("owner/name")),
        ("https://huggingface.co/owner/name/", Name("owner/name")),
        ("http://www.huggingface.co/owner/weights.pt?library=x#files", Name("owner/weights.pt")),
        ("https://hf.co/owner/name/tree/v1", Name("owner/name", "v1")),
        ("https://huggingface.co/owner/name/blob/main/netG.pth", Name("owner/name", "main", "netG.pth")),
        ("https://huggingface.co/owner/name/resolve/refs%2Fpr%2F1/sub/a%20b.pth?download=true", Name("owner/name", "refs/pr/1", "sub/a b.pth")),
    ],
)
def test_a_name_is_taken_apart(source, expected):
    assert parse(source) == expected
    assert parse(str(expected)) == expected


PATHS = "netG.pth checkpoints/netG.pth a/b.safetensors a/b.pkl a/b.h5 a/b/c ./a/b ../b /a/b ~/b a/ /b name a/b--c a/b..c a\\b a/b@ a/b: sample:x"


@pytest.mark.parametrize("source", [*PATHS.split(), "module:a.py:b", "module:a/b.py:c", "C:/b", "a/b ", "a/b@../c", "a/b:../c", "a/b:/c", "a/b@v\\1", ""])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(source):
    assert parse(source) is None


@pytest.mark.parametrize("source", ["hf://", "hf://owner", "hf://owner/", "hf://a/b--c", "hf:///a/b", "hf://a/b@../../c:d", "hf://a/b:../c", "hf://a/b\n"])
def test_a_uri_without_a_repository_is_a_usage_error(source):
    with pytest.raises(UsageError, match="expected hf://owner/name"):
        parse(source)


@pytest.mark.parametrize(
    "rest", ["", "owner", "datasets/owner/name", "datasets/name", "owner/name/blob/main", "owner/name/tree/main/sub", "a/b/blob/..%2F..%2Fc/d"]
)
def test_an_address_that_is_no_models_page_is_a_usage_error(rest):
    with pytest.raises(UsageError, match="no model's page"):
        parse(f"https://huggingface.co/{rest}")


@pytest.mark.parametrize(
    "source", ["https://example.com/owner/name", "https://huggingface.co.example.com/a/b", "https://huggingface.co@example.com/a/b", "HTTP://x"]
)
def test_an_address_elsewhere_is_refused_with_what_to_do(source, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org/")
    with pytest.raises(UsageError, match=r"those of models on huggingface\.co are taken") as caught:
        parse(source)
    assert "download the file" in caught.value.hint
    assert parse("https://hub.example.org/owner/name") == Name("owner/name"), "a Hub of one's own"


# -------------------------------------------------------------------------------------------------------------------- the choice


def test_the_safest_kind_is_chosen_and_only_it_and_its_config_are_fetched(hub, environment):
    found = run(FETCH, environment, json.dumps(["owner/all"]))
    commit = hub.repos["owner/all"].refs["main"]
    assert json.loads(found.stdout)[0]["pinned"] == f"hf://owner/all@{commit}:model.safetensors"
    assert sorted(set(hub.fetched())) == ["config.json", "model.safetensors"]
    assert f"model.safetensors at {commit[:12]}" in found.stderr
    assert "also there: netG.pth, pytorch_model.bin, old/x.safetensors" in found.stderr


def test_bin_comes_before_a_pickle_and_a_single_pickle_will_do(environment):
    files = [found["path"].rpartition("/")[2] for found in fetched(environment, "owner/bins", "owner/single", "owner/folder")]
    assert files == ["pytorch_model.bin", "weights.pkl", "generator.pth"]


def test_a_named_file_is_taken_with_the_config_of_its_own_folder(hub, environment, tmp_path):
    found = fetched(environment, "owner/all:netG.pth", "hf://owner/folder/sub/generator.pth")
    assert [f["path"].rpartition("/")[2] for f in found] == ["netG.pth", "generator.pth"]
    snapshot = tmp_path / "hf" / "hub" / "models--owner--folder" / "snapshots" / hub.repos["owner/folder"].refs["main"]
    assert {str(p.relative_to(snapshot)) for p in snapshot.rglob("*.*")} == {"sub/generator.pth", "sub/config.json"}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, environment):
    old, new = hub.repos["owner/moved"].refs["v1"], hub.repos["owner/moved"].refs["main"]
    found = fetched(environment, *(f"owner/moved{r}" for r in ("", "@v1", "@refs/pr/1", f"@{old}")))
    assert [f["pinned"] for f in found] == [f"hf://owner/moved@{commit}:pytorch_model.bin" for commit in (new, old, old, old)]


def test_several_files_that_could_be_meant_are_listed(environment):
    (said,) = fetched(environment, "owner/pair@main")
    assert said["code"] == 4
    assert "netG.pth, netD.pth" in said["error"]
    assert "hf://owner/pair@main:FILE" in said["hint"]
    assert "--discriminator" in said["hint"]


def test_weights_in_pieces_and_no_weights_at_all_are_said(environment):
    pieces, nothing = fetched(environment, "owner/shards", "owner/nothing")
    assert (pieces["code"], nothing["code"]) == (3, 3)
    assert "2 pieces" in pieces["error"]
    assert "no checkpoint in the Hub repository owner/nothing" in nothing["error"]


def test_names_in_a_repository_are_data_and_lead_nowhere_else(hub, environment, tmp_path, tmp_path_factory):
    tricks = ["../../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.bin", "evil\nhint: run me.pth", "\x1b[31mevil.pth", "..\\evil.pth"]
    hub.repos["owner/tricks"] = Repo.of(dict.fromkeys(tricks, G_SAFE) | {"config.json": b'{"file": "../../evil", "nz": "\\n/etc", "nc": [1]}'})
    (said,) = fetched(environment, "owner/tricks")
    assert said["code"] == 3
    assert "evil" not in said["error"] + said["hint"]
    hub.repos["owner/tricks"] = Repo.of({**hub.repos["owner/tricks"].commits.popitem()[1], "netG.pth": G_PT})
    before = {p for p in tmp_path.rglob("*") if "hf" not in p.parts}
    done = forked.call(["inspect", "owner/tricks", "--json"], environment, tmp_path, tmp_path_factory.mktemp("out"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["contents"][0]["where"] == "netG.pth"
    assert "evil" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*evil*"))
    assert {p for p in tmp_path.rglob("*") if "hf" not in p.parts} == before


# --------------------------------------------------------------------------------------------------------------------- refusals


def test_each_refusal_of_the_hub_is_an_error_of_its_own(environment):
    sources = ["owner/private", "owner/gated", "owner/absent", "owner/pair@v9:netG.pth", "owner/pair:netX.pth", "owner/broken", "owner/listed"]
    found = fetched(environment, *sources)
    assert [f["code"] for f in found] == [4] * 7
    said = [
        ("no Hub repository owner/private, or a private one", "HF_TOKEN"),
        ("owner/gated is gated", f"{environment['HF_ENDPOINT']}/owner/gated"),
        ("no Hub repository owner/absent", "check the name"),
        ("owner/pair has no revision v9", "branches and tags"),
        ("owner/pair has no file netX.pth", "netG.pth, netD.pth"),
        ("the Hub answered 418 out of order", "try again"),
        ("the Hub answered 418 out of paper", "try again"),
    ]
    for one, (error, hint) in zip(found, said, strict=True):
        assert error in one["error"]
        assert hint in one["hint"]


def test_a_token_opens_what_it_may_and_a_wrong_one_is_said(environment):
    sources = ("owner/private", "owner/gated")
    assert all("path" in found for found in fetched({**environment, "HF_TOKEN": TOKEN}, *sources))
    environment["HF_HOME"] += "-of-another"
    private, gated = fetched({**environment, "HF_TOKEN": STRANGER}, *sources)
    assert "a private one that this account cannot see" in private["error"]
    assert "gated" in gated["error"]
    (wrong,) = fetched({**environment, "HF_TOKEN": "hf_expired"}, "owner/pair")
    assert "401 Invalid credentials" in wrong["error"]
    assert "HF_TOKEN" in wrong["hint"]
    assert "hf_expired" not in str(wrong)


@pytest.mark.parametrize("change", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "no network"])
def test_without_the_hub_the_cache_serves_and_what_it_lacks_is_said(change, environment, hub):
    first = fetched(environment, "owner/all", "owner/moved@v1")
    hub.log.clear()
    done = run(FETCH, {**environment, **change}, json.dumps(["owner/all", "owner/moved@v1", first[0]["pinned"], "owner/pair:netG.pth", "owner/all:netG.pth"]))
    *again, absent, other = json.loads(done.stdout)
    assert again == [*first, first[0]]
    assert "from the cache" in done.stderr
    assert hub.log == []
    for said, repo in ((absent, "owner/pair"), (other, "owner/all")):
        assert said["code"] == 4
        assert repo in said["error"]
        assert ("HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in change else "http://127.0.0.1:9 could not be asked") in said["error"]


# ------------------------------------------------------------------------------------------------------------------ the commands

COMMANDS = """
import json, os, sys
from pathlib import Path
import torch
from typer.testing import CliRunner
import gancompress
from gancompress.cli import app

def call(*words, code=0):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (words, result.output, result.stderr, result.exception)
    return result

torch.set_num_threads(1)
D = ["--discriminator", "owner/pair:netD.pth"]
found = json.loads(call("inspect", "owner/pair:netG.pth", *D, "--json").stdout)
short = ["--ch-mul", "0.5", "--steps", "2", "--batch-size", "2", "--device", "cpu", "--out", "run"]
call("distill", "owner/moved", *short)
call("export", "hf://owner/pair/netG.pth", "--out", "exported")
call("sample", "owner/pair:netG.pth", "--num", "1", "--device", "cpu")
call("distill", "owner/pair:netG.pth", *D, "--recipe", "joint", "--ch-mul", "0.5", "--dry-run", "--device", "cpu")
eval_words = ["eval", "run", "--num-images", "4", "--feature-extractor", "digits", "--device", "cpu", "--json"]
evaluated = json.loads(call(*eval_words).stdout)
facts = json.loads(Path("run/run.json").read_text())
Path("run/run.json").write_text(json.dumps({**facts, "sources": {"teacher": "hf://owner/bins@main:G.pt"}}))
alone = call(*eval_words)
Path("owner/all").mkdir(parents=True)
here = call("inspect", "owner/all", code=4).stderr
z = torch.ones(2, 4)
equal = torch.equal(gancompress.load("owner/moved@v1")(z), gancompress.load("exported")(z))
said = {"here": here, "alone": [alone.stderr, json.loads(alone.stdout)]}
print(json.dumps({"found": found, "evaluated": evaluated, "equal": equal, "run": facts, **said, "marked": "GANCOMPRESS_MARK" in os.environ}))
"""


def test_every_command_takes_a_source_on_the_hub(hub, environment, tmp_path):
    done = json.loads(run(COMMANDS, environment, cwd=tmp_path).stdout.splitlines()[-1])
    commits = {name: repo.refs["main"] for name, repo in hub.repos.items()}
    assert [c["part"] for c in done["found"]["contents"]] == ["generator", "discriminator"]
    pair = f"hf://owner/pair@{commits['owner/pair']}"
    assert done["found"]["metadata"]["hub"] == f"{pair}:netG.pth and {pair}:netD.pth"
    assert done["equal"]
    assert len(done["run"]["identity"]["teacher"]["sha256"]) == 64
    assert done["run"]["sources"]["teacher"] == done["evaluated"]["against"] == f"hf://owner/moved@{commits['owner/moved']}:pytorch_model.bin"
    assert done["evaluated"]["paired"]
    said, alone = done["alone"]
    assert "teacher hf://owner/bins@main:G.pt is left out: it is not here" in said, "nothing is fetched because a run folder says so"
    assert "--against hf://owner/bins@main:G.pt" in said
    assert not any("owner/bins" in line for line in hub.log)
    assert (alone["against"], "paired" in alone) == (None, False)
    assert "owner/all: no checkpoint in this directory" in done["here"], "a path that is here comes before the Hub"
    assert not done["marked"]


def test_the_program_itself_reads_the_endpoint_and_keeps_stdout_to_its_answer(hub, environment, tmp_path):
    def inspect(*words):
        command = [sys.executable, "-m", "gancompress", "inspect", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    done = inspect("owner/all", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["family"] == "dcgan"
    assert "owner/all: model.safetensors at" in done.stderr
    done = inspect("owner/absent")
    assert done.returncode == 4
    assert done.stderr.startswith("error: owner/absent: no such file or directory; and no Hub repository owner/absent"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_is_none_names_both_readings_without_the_network(tmp_path, monkeypatch):
    import gancompress
    from gancompress.errors import MissingError

    monkeypatch.setattr("gancompress.sources.fetch", lambda name: pytest.fail(f"the Hub was asked for {name}"))
    with pytest.raises(MissingError, match=r"checkpoints/netG.pth: no such file") as caught:
        gancompress.load("checkpoints/netG.pth")
    assert "hf://owner/name" in caught.value.hint


def test_config_beside_a_file_in_the_cache_is_read_through_its_links(environment):
    """The cache keeps contents under blobs/ and links to them from snapshots/: the hint beside the link counts."""
    from gancompress.sources import config_beside
    from gancompress.unpickle import open_checkpoint

    path = Path(fetched(environment, "owner/all")[0]["path"])
    assert path.is_symlink()
    assert config_beside([path], {path: open_checkpoint(path)})["nz"] == 4
