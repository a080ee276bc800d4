"""Publishing on a Hub of our own: what is uploaded, what is refused before anything is written, and that a clean machine can read it back."""

from __future__ import annotations

import json
import threading

import forked
import pytest
import yaml
from hub_server import READER, STRANGER, TOKEN, Hub, Repo, front_matter
from safetensors.torch import load_file
from test_hub import G_SAFE, environment  # noqa: F401  (a fixture)

from gancompress.card import public, public_command

CARD = b"---\nlicense: cc-by-nc-4.0\n---\n# A teacher\n"


@pytest.fixture
def hub():
    """A Hub of this test alone, with one teacher."""
    with Hub({"owner/teacher": Repo.of({"model.safetensors": G_SAFE, "README.md": CARD})}) as running:
        yield running


@pytest.fixture
def shell(environment, tmp_path, tmp_path_factory):  # noqa: F811
    """Runs the program as a user with a token that may write; a code other than the expected one fails."""

    out = tmp_path_factory.mktemp("out")

    def call(*words, code=0, **change):
        env = {**environment, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **change}
        done = forked.call(list(words), {k: v for k, v in env.items() if v}, tmp_path, out)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A run folder of the bundled teacher, trained for two steps."""
    import gancompress

    folder = tmp_path_factory.mktemp("published") / "run"
    gancompress.distill("sample:dcgan-mnist", out=folder, steps=2, device="cpu", overrides=[("schedule.batch_size", 2), ("student.ch_mul", 0.25)])
    return folder


def card_of(hub, repo):
    """(front matter, page) of what is published."""
    text = files_of(hub, repo)["README.md"].decode()
    return front_matter(text), text


def files_of(hub, repo):
    found = hub.repos[repo]
    return found.commits[found.refs["main"]]


def changes(hub):
    return [line for line in hub.log if line.startswith(("POST", "PUT"))]


# ---------------------------------------------------------------------------------------------------------------------- the way


def test_a_student_goes_from_a_hub_teacher_to_the_hub_and_back_to_a_clean_machine(hub, shell, tmp_path):
    shell("distill", "owner/teacher", "--ch-mul", "0.5", "--steps", "2", "--batch-size", "2", "--device", "cpu", "--out", "run")
    measured = shell("eval", "run", "--num-images", "8", "--feature-extractor", "digits", "--device", "cpu", "--json")
    assert "kept: run/eval.json" in measured.stderr
    done = shell("export", "run", "--push-to-hub", "owner/small")
    files = files_of(hub, "owner/small")
    export = {path.name for path in (tmp_path / "run" / "export").iterdir()}
    assert export >= {"model.safetensors", "config.json"}
    assert set(files) == export | {".gitattributes", "README.md", "recipe.yaml", "samples.png", "eval.json"}
    assert files["model.safetensors"] == (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    assert files["samples.png"] == (tmp_path / "run" / "samples" / "step-0000002.png").read_bytes()
    assert len([line for line in changes(hub) if "/commit/" in line]) == 1, "all of it or nothing"
    assert f"published: {hub.endpoint}/owner/small/commit/{hub.repos['owner/small'].refs['main']}" in done.stdout

    front, page = card_of(hub, "owner/small")
    commit = hub.repos["owner/teacher"].refs["main"]
    assert (front["library_name"], front["license"]) == ("gancompress", "cc-by-nc-4.0"), "the licence is the teacher's"
    assert (front["base_model"], front["base_model_relation"]) == ("owner/teacher", "finetune")
    assert f"https://huggingface.co/owner/teacher/tree/{commit}" in page
    assert 'gancompress.load("owner/small")' in page
    assert "smaller by" in page
    assert "`gancompress distill owner/teacher --ch-mul 0.5 --steps 2" in page
    rows = front["model-index"][0]["results"]
    names = {m["name"]: m["value"] for row in rows for m in row["metrics"]}
    column = json.loads(measured.stdout)["student"]
    called = next(name for name in names if name.startswith("Frechet distance (digit features) (seed 0, 8 images, digits "))
    assert names[called] == pytest.approx(column["frechet_distance"], rel=1e-5)
    assert not any("FID" in name or m["type"] == "fid" for row in rows for m in row["metrics"] for name in [m["name"]])
    (args,) = [m["args"] for row in rows for m in row["metrics"] if m["name"] == called]
    assert (args["num_images"], args["extractor"], args["reference_images"]) == (8, "digits", 8), "the protocol goes with the number"
    assert json.loads(files["eval.json"])["source"] == "owner/small"

    clean = {"HF_HOME": str(tmp_path / "elsewhere"), "HF_TOKEN": ""}
    found = json.loads(shell("inspect", "owner/small", "--json", **clean).stdout)
    assert found["parameters"] == column["parameters"]
    again = shell("eval", "owner/small", "--num-images", "8", "--feature-extractor", "digits", "--device", "cpu", "--json", **clean)
    assert json.loads(again.stdout)["student"]["inception_score"] == pytest.approx(column["inception_score"], rel=1e-4)


def test_a_second_publication_replaces_the_first_and_takes_away_what_is_no_longer_so(hub, shell, exported, tmp_path):
    shell("eval", str(exported), "--num-images", "4", "--feature-extractor", "digits", "--device", "cpu")
    shell("export", str(exported), "--out", "a", "--push-to-hub", "owner/mnist", "--private")
    assert hub.repos["owner/mnist"].private
    assert "eval.json" in files_of(hub, "owner/mnist")
    assert card_of(hub, "owner/mnist")[0]["license"] == "apache-2.0", "of what is bundled"
    hub.repos["owner/mnist"].commits[hub.repos["owner/mnist"].refs["main"]]["LICENSE"] = b"mine"
    done = shell("export", str(exported), "--out", "b", "--dtype", "float16", "--push-to-hub", "owner/mnist")
    assert "eval.json is left out: it is of float32 weights" in done.stderr
    assert "left as they are there: LICENSE" in done.stderr
    files = files_of(hub, "owner/mnist")
    assert "eval.json" not in files, "numbers of other weights"
    assert files["LICENSE"] == b"mine"
    assert json.loads(files["config.json"])["dtype"] == "float16"
    assert "model-index" not in card_of(hub, "owner/mnist")[0]
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    assert all(t.dtype.itemsize == 2 for t in tensors.values() if t.is_floating_point())


def test_numbers_of_another_student_are_not_published(hub, shell, exported, tmp_path):
    kept = exported / "eval.json"
    kept.write_text(json.dumps({"protocol": {"num_images": 4}, "student": {"fid": 1.0}, "student_sha256": "0" * 64}))
    try:
        done = shell("export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist")
    finally:
        kept.unlink()
    assert "left out: it is of another student" in done.stderr
    assert "eval.json" not in files_of(hub, "owner/mnist")


def test_nothing_of_this_machine_is_published(hub, shell, exported, tmp_path):
    shell("export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist")
    text = b"".join(v for k, v in files_of(hub, "owner/mnist").items() if k.endswith((".md", ".json", ".yaml")))
    assert str(exported.parent).encode() not in text
    assert b"/tmp" not in text


WORDS = {
    "/home/me/faces": "faces", "--data=/home/me/faces/": "--data=faces", "~me/x.pt": "x.pt", "../up/x": "x", "C:\\Users\\me\\x.pt": "x.pt",
    "module:/home/me/net.py:make": "module:net.py:make", "student.init=./runs/1": "student.init=1",
}  # fmt: skip
SAME = ["hf://owner/name@v1:x.pt", "owner/name", "sample:dcgan-mnist", "0.5", "/", ""]


@pytest.mark.parametrize(("word", "expected"), [*WORDS.items(), *zip(SAME, SAME, strict=True)])
def test_a_word_of_a_command_loses_the_folders_of_this_machine(word, expected):
    assert public(word) == expected


def test_a_command_is_written_as_anybody_could_type_it():
    assert public_command("/x/gancompress/__main__.py distill '/a b/t.pt' --out=run") == "gancompress distill t.pt --out=run"
    assert public_command("unclosed '") == public_command("") == ""


# ------------------------------------------------------------------------------------------------------------------ the refusals

REFUSED = [
    (["--push-to-hub", "small"], 2, "expected OWNER/NAME", {}),
    (["--push-to-hub", "owner/a--b"], 2, "expected OWNER/NAME", {}),
    (["--push-to-hub", "owner/name@v1"], 2, "expected OWNER/NAME", {}),
    (["--push-to-hub", "hf://owner/name"], 2, "expected OWNER/NAME", {}),
    (["--private"], 2, "--push-to-hub OWNER/NAME", {}),
    (["--license", "mit"], 2, "--push-to-hub OWNER/NAME", {}),
    (["--push-to-hub", "owner/x", "--license", "My Own"], 2, "expected an identifier", {}),
    (["--push-to-hub", "owner/x", "--license", "mit"], 2, "has apache-2.0", {}),
    (["--push-to-hub", "owner/x"], 4, "hf auth login", {"HF_TOKEN": ""}),
    (["--push-to-hub", "owner/x"], 4, "does not know this token", {"HF_TOKEN": "hf_expired"}),
    (["--push-to-hub", "owner/x"], 4, "may only read", {"HF_TOKEN": READER}),
    (["--push-to-hub", "owner/x"], 4, "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
    (["--push-to-hub", "owner/x"], 4, "could not be asked", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    (["--push-to-hub", "owner/foreign"], 2, "pytorch_model.bin", {}),
    (["--push-to-hub", "owner/teacher"], 2, "model.safetensors", {}),
    (["--push-to-hub", "owner/public", "--private"], 2, "is there and public", {}),
]


@pytest.mark.parametrize(("words", "code", "said", "change"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_cannot_be_published_is_refused_before_anything_is_written(words, code, said, change, hub, shell, exported, tmp_path):
    hub.repos["owner/foreign"] = Repo.of({"config.json": b'{"library": "diffusers"}', "pytorch_model.bin": b"0"})
    hub.repos["owner/public"] = Repo.of({".gitattributes": b""})
    done = shell("export", str(exported), "--out", "x", *words, code=code, **change)
    assert said in done.stderr
    assert "hf_expired" not in done.stderr
    assert not (tmp_path / "x").exists()
    assert changes(hub) == []


def test_an_unknown_licence_is_refused_unless_one_is_given(hub, shell, tmp_path):
    hub.repos["owner/nameless"] = Repo.of({"model.safetensors": G_SAFE, "README.md": b"---\nlicense: |\n  mit\n  evil\n---\n"})
    said = shell("export", "owner/nameless", "--out", "x", "--push-to-hub", "owner/copy", code=2).stderr
    assert "the licence of owner/nameless is unknown: the card of owner/nameless names none" in said
    assert "--license ID" in said
    assert not (tmp_path / "x").exists()
    shell("export", "owner/nameless", "--out", "x", "--push-to-hub", "owner/copy", "--license", "mit")
    front, page = card_of(hub, "owner/copy")
    assert (front["license"], front["base_model"]) == ("mit", "owner/nameless")
    assert "evil" not in page
    assert "distilled" not in page
    shell("export", "owner/nameless", "--out", "y", "--push-to-hub", "owner/other", "--license", "none-such", code=2)
    assert set(files_of(hub, "owner/other")) == {".gitattributes"}


def test_a_licence_of_its_own_is_carried_with_name_and_link(hub, shell):
    card = "---\nlicense: other\nlicense_name: nvidia-nc\nlicense_link: LICENSE.txt\n---\n"
    hub.repos["owner/nvidia"] = Repo.of({"model.safetensors": G_SAFE, "README.md": card.encode()})
    shell("export", "owner/nvidia", "--out", "x", "--push-to-hub", "owner/copy")
    front, page = card_of(hub, "owner/copy")
    commit = hub.repos["owner/nvidia"].refs["main"]
    assert (front["license"], front["license_name"]) == ("other", "nvidia-nc")
    assert front["license_link"] == f"https://huggingface.co/owner/nvidia/blob/{commit}/LICENSE.txt"
    assert "nvidia-nc" in page


def test_who_may_not_write_is_told_and_the_export_stays(hub, shell, exported, tmp_path):
    said = shell("export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist", code=4, HF_TOKEN=STRANGER).stderr
    assert "owner/mnist: this account may not write there (403)" in said
    assert (tmp_path / "x" / "model.safetensors").is_file()
    assert "owner/mnist" not in hub.repos


def test_a_repository_that_changes_meanwhile_is_left_as_it_is(hub, shell, exported):
    hub.repos["owner/mnist"] = Repo.of({".gitattributes": b""})

    def change(request):
        if "/preupload/" in request:
            other = Repo.of({"theirs": b"1"})
            hub.repos["owner/mnist"].commits |= other.commits
            hub.repos["owner/mnist"].refs |= other.refs

    hub.before = change
    said = shell("export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist", code=1).stderr
    assert "was changed by somebody meanwhile; nothing was published" in said
    assert files_of(hub, "owner/mnist") == {"theirs": b"1"}


def test_an_upload_that_is_killed_publishes_nothing(hub, environment, exported, tmp_path):  # noqa: F811
    reached, go_on = threading.Event(), threading.Event()

    def hold(request):
        if request.startswith("PUT"):
            reached.set()
            go_on.wait(30)

    hub.before = hold
    env = {**environment, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    words = ["export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist"]
    running = forked.start(words, env, tmp_path, tmp_path)
    assert reached.wait(60)
    running.kill()
    running.join()
    go_on.set()
    assert set(files_of(hub, "owner/mnist")) == {".gitattributes"}, "the large file alone was on its way"


def test_the_recipe_that_is_published_trains_again(hub, shell, exported, tmp_path):
    shell("export", str(exported), "--out", "x", "--push-to-hub", "owner/mnist")
    recipe = files_of(hub, "owner/mnist")["recipe.yaml"]
    assert yaml.safe_load(recipe) == yaml.safe_load((exported / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    shell("distill", "sample:dcgan-mnist", "--recipe", "recipe.yaml", "--device", "cpu", "--dry-run")


def test_what_is_measured_is_kept_in_a_run_folder_alone_and_a_failure_is_a_line(exported, tmp_path):
    from gancompress.runs import keep_evaluation

    result = {"a": 1, "student_sha256": "0" * 64}
    assert keep_evaluation(str(exported / "student.safetensors"), result) == []
    assert keep_evaluation("sample:dcgan-mnist", result) == []
    (tmp_path / "run.json").write_bytes((exported / "run.json").read_bytes())
    assert keep_evaluation(str(tmp_path), {"a": 1}) == [], "nobody could tell of whom"
    assert keep_evaluation(str(tmp_path), result) == [f"kept: {tmp_path / 'eval.json'}"]
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    (tmp_path / "eval.json").unlink()
    (tmp_path / "eval.json").mkdir()
    (line,) = keep_evaluation(str(tmp_path), result)
    assert line.startswith(f"not kept: {tmp_path / 'eval.json'}: cannot be written")
    assert not list(tmp_path.glob("*.tmp"))


def facts(gan, evaluation):
    from gancompress.card import Facts, Licence
    from gancompress.cost import gan_cost

    return Facts("owner/x", gan, gan_cost(gan), {"dtype": "float32"}, {}, Licence("mit"), {"model.safetensors": 9}, evaluation=evaluation)


@pytest.mark.parametrize(("extractor", "kinds"), [("inception-v3", {"fid", "kid", "inception_score"}), ("digits", set())])
def test_only_inceptions_numbers_are_called_fid_kid_and_is(extractor, kinds, tiny_gan):
    from gancompress.card import model_card

    measured = {
        "fid": 9.5,
        "kid": 0.25,
        "inception_score": 1.5,
        "precision": 0.5,
        "diversity": 3.0,
        "parameters": 12,
        "latency_ms_batch_1": 1.5,
        "family": "dcgan",
    }
    protocol = {"num_images": 5000, "seed": 3, "extractor": extractor, "weights_sha256": "ab" * 32, "truncation": None}
    page = model_card(facts(tiny_gan, {"protocol": protocol, "student": measured, "notes": ["a\nnote | of `mine`"]}))
    metrics = [m for row in front_matter(page)["model-index"][0]["results"] for m in row["metrics"]]
    assert {m["type"] for m in metrics} & {"fid", "kid", "inception_score"} == kinds
    assert any(m["name"].startswith("FID ") for m in metrics) == bool(kinds)
    assert len(metrics) == 5, "costs are no metrics"
    assert all(m["args"].get("seed") == 3 and "truncation" not in m["args"] for m in metrics)
    assert "- a note   of  mine" in page
    assert "| latency ms batch 1 | 1.5 | – |" in page


def test_a_card_without_figures_says_so_and_has_no_model_index(tiny_gan):
    from gancompress.card import model_card

    page = model_card(facts(tiny_gan, {}))
    assert "model-index" not in front_matter(page)
    assert "None were measured" in page


def test_an_export_without_safetensors_is_not_published(tmp_path, exported):
    from gancompress.card import Licence
    from gancompress.errors import UsageError
    from gancompress.publishing import Publication, contents

    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        contents(Publication(str(exported), "owner/x", False, Licence("mit")), tmp_path)
