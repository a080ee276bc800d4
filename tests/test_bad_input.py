"""What a user can get wrong, through the command line: the exit code, what the message names, and no traceback."""

import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import SMALL, named, sequential_discriminator, sequential_generator, small_gan
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from gancompress.checkpoint import save_networks
from gancompress.cli import app


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def fails(code, words, *names):
    """Assert that a command ends with that exit code and a message of ours that names these, without a traceback."""
    result = run(*words)
    said = result.output + (result.stderr if result.stderr_bytes is not None else "")
    flat = " ".join(said.split())
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, said
    assert "Traceback" not in said
    assert "error: " in said
    for name in names:
        assert str(name) in flat, f"{name!r} is not named in: {said}"


def state(**change):
    found = named(sequential_generator(6, (8, 4), 1))
    for key, value in change.items():
        key = key.replace("__", ".")
        found.pop(key) if value is None else found.update({key: value(found[key])})
    return found


def write_bytes(path, data):
    path.write_bytes(data)


def truncated(path, **options):
    torch.save(state(), path, **options)
    path.write_bytes(path.read_bytes()[:-500])


def optimizer(path):
    net = sequential_generator(6, (8, 4), 1).requires_grad_(True)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 6, 1, 1)).sum().backward()
    adam.step()
    torch.save(adam.state_dict(), path)


def torchscript(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02}q\x00.")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 14331253\n"

#: (how the file is made, what the message names)
FILES = {
    "empty": (lambda p: write_bytes(p, b""), ["empty"]),
    "truncated zip": (truncated, ["truncated"]),
    "truncated legacy": (lambda p: truncated(p, _use_new_zipfile_serialization=False), ["truncated"]),
    "git-lfs pointer": (lambda p: write_bytes(p, LFS), ["Git-LFS pointer", "git lfs pull"]),
    "html page": (lambda p: write_bytes(p, b"\n<!DOCTYPE html><html><body>Sign in</body></html>"), ["HTML page"]),
    "html of another kind": (lambda p: write_bytes(p, b"<html>\n<head><title>404</title></head></html>"), ["HTML page"]),
    "json": (lambda p: write_bytes(p, b'{"lr": 1}'), ["JSON"]),
    "text": (lambda p: write_bytes(p, b"hello"), ["hello"]),
    "picture": (lambda p: write_bytes(p, b"\x89PNG\r\n\x1a\n" + bytes(100)), ["not a checkpoint"]),
    "hdf5": (lambda p: write_bytes(p, b"\x89HDF\r\n\x1a\n" + bytes(600)), ["HDF5", "Keras"]),
    "tar": (lambda p: write_bytes(p, tarfile.TarInfo("storages").tobuf(tarfile.USTAR_FORMAT)), ["tar archive", "torch before 0.2"]),
    "numpy archive": (lambda p: np.savez(p.open("wb"), x=np.zeros(3)), ["numpy"]),
    "optimizer": (optimizer, ["optimizer"]),
    "discriminator": (lambda p: torch.save(named(sequential_discriminator(1, (4, 8))), p), ["discriminator", "no generator"]),
    "torchscript": (torchscript, ["TorchScript"]),
    "nothing in it": (lambda p: torch.save({"epoch": 3}, p), ["no network"]),
    "one tensor": (lambda p: torch.save(torch.zeros(3), p), ["no network"]),
    "NaN": (lambda p: torch.save(state(main__3__weight=lambda t: t * float("nan")), p), ["NaN", "main.3.weight"]),
    "infinite": (lambda p: torch.save(state(main__4__running_var=lambda t: t / 0), p), ["infinite", "main.4.running_var"]),
    "integers": (lambda p: torch.save(state(main__0__weight=lambda t: (t * 9).to(torch.int8)), p), ["int8", "main.0.weight"]),
    "a convolution missing": (lambda p: torch.save(state(main__3__weight=None), p), ["main.3.weight"]),
    "a statistic missing": (lambda p: torch.save(state(main__1__running_mean=None), p), ["main.1.running_mean"]),
    "a wrong kernel": (lambda p: torch.save(state(main__3__weight=lambda t: t[:, :, :3, :3]), p), ["main.3.weight", "(8, 4, 3, 3)"]),
    "a wrong width": (lambda p: torch.save(state(main__3__weight=lambda t: t[:7]), p), ["main.3.weight", "(7, 4, 4, 4)"]),
    "a wrong norm": (lambda p: torch.save(state(main__4__bias=lambda t: t[:3]), p), ["main.4.bias", "(3,)", "(4,)"]),
    "another architecture": (lambda p: torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(10, 4)}, p), ["no family we know"]),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", [["distill", "--device", "cpu", "--dry-run"], ["export", "--out", "exported"], ["sample", "--device", "cpu"]])
def test_a_file_that_is_no_teacher_is_refused_by_name_with_code_3(kind, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, names = FILES[kind]
    make(tmp_path / "teacher.pt")
    fails(3, [command[0], "teacher.pt", *command[1:]], "teacher.pt", *names)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pt"], "nothing was written"


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"discriminator"}))
def test_inspect_refuses_the_same_files(kind, tmp_path):
    make, names = FILES[kind]
    make(path := tmp_path / "teacher.pt")
    fails(3, ["inspect", path], path, *names)


@pytest.mark.parametrize("command", [["inspect"], ["distill", "--dry-run"], ["export", "--out", "x"], ["sample"], ["eval"]])
def test_a_missing_file_has_code_4(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(4, [command[0], "no-such-teacher.pt", *command[1:]], "no-such-teacher.pt")


@pytest.mark.parametrize("inside", [[], ["notes.txt"]])
def test_a_directory_without_a_checkpoint_has_code_4(inside, tmp_path):
    for name in inside:
        (tmp_path / name).write_text("nothing")
    fails(4, ["inspect", tmp_path], tmp_path, "no checkpoint")
    fails(4, ["distill", tmp_path, "--dry-run"], tmp_path, "no checkpoint")


@pytest.mark.parametrize("command", ["eval", "sample", "export"])
def test_no_finished_run_to_take_has_code_4(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(4, [command], "no finished run")


def test_a_missing_discriminator_has_code_4(tiny_teacher, tmp_path):
    fails(4, ["inspect", tiny_teacher, "--discriminator", tmp_path / "netD.pth"], "netD.pth")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--recipe", "mes"], ["'mes'", "did you mean 'mse'"]),
        (["--recipe", "jiont"], ["'jiont'", "did you mean 'joint'"]),
        (["schedule.kimgs=5"], ["schedule.kimgs", "did you mean 'kimg'"]),
        (["shedule.kimg=5"], ["shedule", "did you mean 'schedule'"]),
        (["--recipe", "joint", "weights.alhpa=0.1"], ["weights.alhpa", "did you mean 'alpha'"]),
        (["student.arch.widht=4"], ["widht"]),
        (["schedule.kimg=much"], ["schedule.kimg", "much"]),
        (["schedule.batch_size=0"], ["schedule.batch_size", "0"]),
        (["loss.x.y=1"], ["loss"]),
        (["justaword"], ["justaword", "key=value"]),
        (["--ch-mul", "0"], ["ch_mul", "0"]),
        (["--ch-mul", "-1"], ["ch_mul", "-1"]),
        (["--ch-mul", "5"], ["ch_mul", "5"]),
        (["--ch-mul", "nan"], ["ch_mul", "nan"]),
        (["--steps", "0"], ["steps", "0"]),
        (["--kimg", "-3"], ["kimg", "-3"]),
        (["--kimg", "1", "--steps", "1"], ["--kimg", "--steps"]),
        (["--batch-size", "0"], ["batch_size", "0"]),
        (["--device", "gpu"], ["gpu"]),
        (["--student", "dcgn"], ["dcgn"]),
        (["--target-params", "few"], ["few"]),
        (["--target-params", "1"], ["--target-params"]),
        (["--teacher-module", "net.py:build"], ["two teachers"]),
        (["--classes", "90"], ["90"]),
        (["--reader", "clases=3"], ["clases"]),
        (["--reader", "nc=grey"], ["nc", "grey"]),
        (["--reader", "d_activation=relu"], ["dcgan takes no option 'd_activation'"]),
        (["optim.g_lr=1e39"], ["g_lr", "1e39"]),
        (["--target-macs", "1.2.3x"], ["1.2.3"]),
        (["--target-macs", "0.5x"], ["0.5x"]),
        (["--recipe", "joint", "weights.game=wasserstein"], ["needs a constraint"]),
    ],
)
def test_a_wrong_word_has_code_2_and_is_named(tmp_path, words, names):
    torch.save(state(), path := tmp_path / "netG.pth")
    fails(2, ["distill", path, "--dry-run", *([] if "--device" in words else ["--device", "cpu"]), *words], *names)


def test_a_wrong_option_of_the_command_line_has_code_2():
    result = run("distill", "sample:dcgan-mnist", "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.output


def test_a_recipe_file_that_is_no_recipe_has_code_2(tiny_teacher, tmp_path):
    (tmp_path / "mine.yaml").write_text("loss: [unclosed\n")
    fails(2, ["distill", tiny_teacher, "--dry-run", "--recipe", tmp_path / "mine.yaml"], "mine.yaml")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / "read.me").write_text("no images"))])
def test_a_data_folder_without_images_has_code_4(make, tiny_teacher, tmp_path):
    make(tmp_path / "data")
    fails(4, ["distill", tiny_teacher, "--recipe", "joint", "--data", tmp_path / "data", "--dry-run", "--device", "cpu"], tmp_path / "data", "no images")


def test_a_data_folder_of_unreadable_images_has_code_4(tiny_teacher, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    fails(4, ["distill", tiny_teacher, "--recipe", "joint", "--data", tmp_path, "--dry-run", "--device", "cpu"], "broken.png")


def test_missing_data_has_code_4(tiny_teacher, tmp_path):
    fails(4, ["distill", tiny_teacher, "--recipe", "joint", "--data", tmp_path / "nowhere", "--dry-run", "--device", "cpu"], "nowhere")


@pytest.mark.parametrize("command", ["distill", "export", "sample"])
def test_a_place_that_cannot_be_written_has_code_1_and_keeps_what_is_there(command, tiny_teacher, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    out = blocker / ("x.png" if command == "sample" else "run")
    more = ["--device", "cpu", "--steps", "1", "--batch-size", "2"] if command == "distill" else []
    fails(1, [command, tiny_teacher, "--out", out, *more], str(blocker), "cannot be written")
    assert blocker.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("command", [["distill", "--dry-run"], ["eval"], ["sample"]])
def test_cuda_asked_for_and_absent_has_code_2(device, command, tiny_teacher):
    fails(2, [command[0], tiny_teacher, "--device", device, *command[1:]], device, "no CUDA device", "--device cpu")


def test_a_hostile_file_has_code_3_and_does_not_run(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"\x80\x02cposix\nsystem\n" + b"X" + (n := f"touch {tmp_path}/ran".encode()).__len__().to_bytes(4, "little") + n + b"\x85R.")
    fails(3, ["inspect", path], path, "posix.system", "nothing of it was run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_an_export_to_an_unknown_precision_has_code_2(dtype, tiny_teacher, tmp_path):
    fails(2, ["export", tiny_teacher, "--out", tmp_path / "out", "--dtype", dtype], dtype)
    assert not (tmp_path / "out").exists()


def test_a_label_the_network_does_not_have_has_code_2(tiny_teacher, tmp_path):
    fails(2, ["sample", tiny_teacher, "--label", "3", "--device", "cpu", "--out", tmp_path / "x.png"], "no classes")


def test_a_student_of_another_size_than_its_teacher_is_refused(tiny_teacher):
    fails(2, ["distill", tiny_teacher, "student.arch.resolution=16", "--dry-run", "--device", "cpu"], "resolution")


def test_a_recipe_without_teacher_needs_none_and_others_do():
    fails(2, ["distill", "--recipe", "mse", "--dry-run", "--device", "cpu"], "teacher")


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [(["inspect", "no-such-teacher.pt"], 4, "no-such-teacher.pt"), (["distill", "sample:dcgan-mnist", "--recipe", "mes"], 2, "did you mean 'mse'")],
)
def test_the_installed_program_says_the_same_in_one_line(words, code, name, tmp_path):
    done = subprocess.run([sys.executable, "-m", "gancompress", *words], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == code
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("hint: ", "no CUDA"))]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert name in lines[0]


def test_the_same_words_with_a_good_teacher_succeed():
    """The control of all of the above."""
    result = run("distill", "sample:dcgan-mnist", "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: s.pop("generator.layers.1.conv.weight"), ["layers.1.conv.weight"]),
        (lambda s: s.update({"generator.more": torch.zeros(1)}), ["more"]),
        (lambda s: s.update({"generator.layers.0.conv.weight": torch.zeros(4, 3, 4, 4)}), ["layers.0.conv.weight", "(4, 3, 4, 4)", "(4, 4, 4, 4)"]),
        (lambda s: s["generator.layers.0.conv.weight"].fill_(float("nan")), ["generator.layers.0.conv.weight", "NaN"]),
    ],
)
def test_a_file_of_ours_that_was_tampered_with_is_refused_with_the_key(change, names, tiny_teacher, tmp_path):
    with safe_open(tiny_teacher, framework="pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    fails(3, ["distill", tmp_path / "changed.safetensors", "--dry-run", "--device", "cpu"], "changed.safetensors", *names)


# ------------------------------------------------------------------------------------------------------ adversarial recipes


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A folder with small teachers (-g: without a discriminator), lone discriminators that fit none, and data."""
    folder = tmp_path_factory.mktemp("guided")
    for name, family, fields in (
        ("stylegan2", "stylegan2", SMALL["stylegan2"][0]),
        ("larger", "stylegan2", {**SMALL["stylegan2"][0], "resolution": 32, "g_widths": (8, 8, 4, 4)}),
        ("grey", "stylegan2", {**SMALL["stylegan2"][0], "nc": 1}),
        ("biggan", "biggan", SMALL["biggan"][0]),
        ("sngan", "sngan", SMALL["sngan"][0]),
    ):
        gan = small_gan(family, fields)
        save_networks(folder / f"{name}.safetensors", gan.family, gan.arch, gan.networks, {})
        for part in gan.networks:
            save_networks(folder / f"{name}-{part[0]}.safetensors", gan.family, gan.arch, {part: gan.networks[part]}, {})
    torch.save(named(sequential_generator(6 + 3, (8, 4), 1)), folder / "onehot-g.pth")
    torch.save(named(sequential_discriminator(1 + 3, (4, 8))), folder / "onehot-d.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.savez(folder / "bare.npz", x_train=pixels)
    np.savez(folder / "labels.npz", x_train=pixels, y_train=np.arange(8) % 3)
    return folder


NOW, DATA = "weights.guide_from_kimg=0", ["--data", "labels.npz"]


@pytest.mark.parametrize(
    ("code", "words", "names"),
    [
        (2, ["stylegan2-g.safetensors", "--discriminator", "larger-d.safetensors", *DATA], ["larger-d.safetensors", "resolution 16", "32"]),
        (2, ["stylegan2-g.safetensors", "--discriminator", "grey-d.safetensors", *DATA], ["grey-d.safetensors", "nc 3", "1"]),
        (2, ["onehot-g.pth", "--discriminator", "onehot-d.pth", *DATA], ["onehot-d.pth", "nc 1", "--classes N"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "student.arch.resolution=32"], ["resolution is 16 in the teacher and 32 in the student"]),
        (2, ["biggan.safetensors", *DATA, NOW, "--student", "dcgan", "student.arch.classes=0"], ["classes is 3 in the teacher and 0"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "--student", "stylegan3"], ["stylegan3", "no discriminator"]),
        (4, ["biggan.safetensors", "--data", "bare.npz", NOW], ["bare.npz", "needs labels", "y_train"]),
        (4, ["biggan-g.safetensors", "--data", "bare.npz", NOW, "--fit-discriminator", "1"], ["bare.npz", "needs labels"]),
        (4, ["stylegan2.safetensors", NOW], ["needs real images", "--data"]),
        (4, ["stylegan2-g.safetensors", *DATA, NOW], ["stylegan2-g.safetensors", "--fit-discriminator KIMG", "mse", "scratch"]),
        (4, ["stylegan2-g.safetensors", "--fit-discriminator", "1", NOW], ["--data"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "--fit-discriminator", "1"], ["has a discriminator already"]),
        (2, ["stylegan2.safetensors", *DATA, "--kimg", "100"], ["guide_from_kimg=15000", "never turn on", "weights.guide=0"]),
        (2, ["stylegan2.safetensors", *DATA, "weights.guide_from_kimg=soon"], ["'soon'", "or auto"]),
        (2, ["stylegan2.safetensors", *DATA, "weights.guide_from_kimg=-1"], ["-1", "or auto"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "weights.guide=0", "weights.own=0"], ["guide=0", "own=0"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "schedule.accumulate=3"], ["batch of 32", "accumulate=3"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "weights.augment=[blur]"], ["blur", "translation"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "--d-ch-mul", "2"], ["d_ch_mul", "2"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "student.init=slize"], ["'slize'", "slice"]),
        (2, ["stylegan2.safetensors", *DATA, NOW, "student.init=larger.safetensors"], ["other shapes", "g_widths"]),
        (2, ["stylegan2.safetensors", *DATA, "--recipe", "imitate"], ["128x128", "there are 4, 8, 16"]),
        (2, ["sngan.safetensors", *DATA, "--recipe", "imitate", "weights.resolutions=[4]"], ["family sngan", "no activations"]),
        (2, ["stylegan2.safetensors", *DATA, "--recipe", "imitate", "weights.g_inter=0"], ["nothing is imitated"]),
        (4, ["stylegan2-g.safetensors", *DATA, "--recipe", "imitate", "weights.g_inter=0", "weights.d_out=1"], ["weights.d_out", "--fit-discriminator"]),
        (2, ["--recipe", "scratch", "--arch", "dcgan", *DATA, "--fit-discriminator", "1"], ["--fit-discriminator 1", "no teacher"]),
    ],
)
def test_what_an_adversarial_recipe_cannot_be_given_is_refused(code, words, names, guided, tmp_path, monkeypatch):
    monkeypatch.chdir(guided)
    recipe = [] if "--recipe" in words else ["--recipe", "dgl"]
    fails(code, ["distill", *words, *recipe, "--device", "cpu", "--dry-run", "--out", tmp_path / "run"], *names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stylegan2.safetensors", *DATA], "8 images, fewer than a batch of 32"),
        (
            ["stylegan2.safetensors", *DATA, "--batch-size", "18", "schedule.accumulate=3"],
            "6 images at once are no multiple of the minibatch deviation's group of 4",
        ),
        (["sngan.safetensors", *DATA], "no styles: path length and style mixing are off"),
        (["stylegan2-g.safetensors", *DATA, "--fit-discriminator", "2"], "first trained for 2 kimg against its frozen generator"),
    ],
)
def test_what_is_odd_about_an_adversarial_run_is_told_in_its_plan(words, said, guided, tmp_path, monkeypatch):
    monkeypatch.chdir(guided)
    result = run("distill", *words, "--recipe", "dgl", NOW, "--device", "cpu", "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
