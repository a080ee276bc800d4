import dataclasses
import importlib
import json
import sys

import pytest
import torch
from conftest import SMALL, named, sequential_discriminator, sequential_generator, small_gan

import gancompress
from gancompress.checkpoint import save_networks
from gancompress.contents import strip
from gancompress.errors import CheckpointError, GanCompressError, MissingError, UsageError
from gancompress.families import FAMILIES, dcgan
from gancompress.gan import Mismatch
from gancompress.loading import find, load_gan

Z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
X = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
G = sequential_generator(6, (8, 4), 1)
G_RAW = sequential_generator(6, (8, 4), 1, seed=9)
D = sequential_discriminator(1, (4, 8))


def gives(source, net=G, **options):
    """Assert that the source's generator draws what ``net`` draws."""
    loaded = gancompress.load(str(source), **options)
    assert not loaded.training
    torch.testing.assert_close(loaded(Z), net(Z[:, :, None, None]), **CLOSE)


def judges(source, net=D, **options):
    loaded = gancompress.load(str(source), part="discriminator", **options)
    torch.testing.assert_close(loaded(X), net(X).flatten(), **CLOSE)


@pytest.fixture
def save(tmp_path):
    def write(content, name="teacher.pt", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path, **options)
        return path

    return write


@pytest.mark.assets
def test_the_faces_teacher_is_read_without_any_flag(assets, faces_teacher):
    found = gancompress.inspect(str(faces_teacher))
    assert (found["family"], found["parameters"]) == ("dcgan", 3_576_704)
    assert (found["macs_input_convention"], found["macs_output_convention"]) == (104_628_224, 428_343_296)
    assert [c["part"] for c in found["contents"]] == ["generator"]
    assert found["recipes"]["mse"]["feeds"]
    images = gancompress.load(str(faces_teacher))(torch.randn(2, 100))
    assert images.shape == (2, 3, 64, 64)


# ------------------------------------------------------------------------------------------------------------ places in a file


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}, "global_step": 3},
        lambda s: {"netG_state_dict": s},
        lambda s: {"generator": s},
        lambda s: {"epoch": 7, "models": {"netG": {f"module.{k}": v for k, v in s.items()}}},
    ],
)
def test_a_generator_is_found_wherever_people_put_it(save, wrap):
    gives(save(wrap(named(G))))


@pytest.mark.parametrize(("g", "d"), [("netG", "netD"), ("G", "D"), ("generator", "discriminator"), ("gen", "critic"), ("G_state_dict", "D_state_dict")])
@pytest.mark.parametrize("flat", [False, True])
def test_both_networks_are_found_nested_or_in_one_flat_dict(save, g, d, flat):
    parts = {g: named(G), d: named(D)}
    path = save({f"{name}.{k}": t for name, state in parts.items() for k, t in state.items()} if flat else {**parts, "iteration": 5})
    gives(path)
    judges(path)


def test_a_flat_dict_inside_a_training_checkpoint_is_split_too(save):
    flat = {f"netG.{k}": t for k, t in named(G, "module.main.").items()} | {f"netD.{k}": t for k, t in named(D).items()}
    path = save({"state_dict": flat, "hyper_parameters": {"lr": 2e-4}})
    gives(path)
    judges(path)


@pytest.mark.parametrize(
    "content",
    [
        {"g": named(G_RAW), "g_ema": named(G)},
        {"netG_ema": named(G), "netG": named(G_RAW)},
        {"G": {"state_dict": named(G_RAW)}, "ema": {"state_dict": named(G)}},
        {f"{name}.{k}": t for name, net in (("g", G_RAW), ("g_ema", G)) for k, t in named(net).items()},
    ],
)
def test_the_averaged_generator_is_preferred_and_the_raw_one_can_be_asked_for(save, content):
    path = save(content)
    gives(path)
    gives(path, G_RAW, ema=False)


def test_the_averaged_generator_is_told_by_its_file_s_name(save, tmp_path):
    save(named(G_RAW), "run/G.pth")
    save(named(G), "run/G_ema.pth")
    gives(tmp_path / "run")
    gives(tmp_path / "run", G_RAW, ema=False)


RAW = ["g", "G", "netG", "netG_state_dict", "generator", "gen", "G_state_dict", "model_state_dict", "state_dict", "model", "params", "net"]


@pytest.mark.parametrize("g", RAW)
@pytest.mark.parametrize("d", ["d", "D", "netD", "netD_state_dict", "discriminator", "critic"])
def test_every_usual_name_of_a_network_is_looked_under(save, g, d):
    path = save({g: named(G), d: named(D), "epoch": 3})
    gives(path)
    judges(path)


@pytest.mark.parametrize("name", ["g_ema", "ema", "avgG", "netG_ema", "params_ema", "generator_ema", "G_ema"])
def test_every_usual_name_of_an_average_is_known(save, name):
    path = save({"netG": named(G_RAW), name: named(G)})
    gives(path)
    gives(path, G_RAW, ema=False)


@pytest.mark.parametrize("prefix", ["netG.", "generator.", "G.", "model.", "module.model.", "net.module.", "g_ema."])
def test_a_prefix_of_all_keys_is_dropped_where_a_family_knows_its_names(save, prefix, monkeypatch):
    """The reader of chains would not mind; one that goes by names does."""

    def by_name(state, options):
        if "main.0.weight" not in state:
            raise Mismatch("main.0.weight is missing", 0.5)
        return dcgan.read(state, options)

    monkeypatch.setitem(FAMILIES, "dcgan", dataclasses.replace(FAMILIES["dcgan"], read=by_name))
    gives(save(named(G, prefix + "main.")))


def test_a_prefix_that_a_family_wants_is_kept(save, monkeypatch):
    """As HF BigGAN's ``generator.*`` beside ``embeddings``: the whole is tried before anything is taken off."""
    seen = []

    def by_name(state, options):
        seen.append(next(iter(state)))
        return dcgan.read(state, options)

    monkeypatch.setitem(FAMILIES, "dcgan", dataclasses.replace(FAMILIES["dcgan"], read=by_name))
    gives(save(named(G, "generator.main.")))
    assert seen == ["generator.main.0.weight"]


def test_an_inner_module_in_a_name_is_not_a_prefix():
    """pytorch_GAN_zoo's PGAN has formatLayer.module.weight; only what leads every key goes."""
    state = {"module.formatLayer.module.weight": Z, "module.toRGBLayers.0.module.bias": Z}
    assert list(strip(state)) == ["formatLayer.module.weight", "toRGBLayers.0.module.bias"]
    assert list(strip({"module.a.weight": Z, "b.weight": Z})) == ["module.a.weight", "b.weight"]


def test_a_name_nested_without_end_does_not_keep_us(save):
    path = save({"model." * 5000 + "weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="no family we know"):
        find(str(path))


# ---------------------------------------------------------------------------------------------------- choosing, and what is told


def test_key_takes_the_network_at_a_place_and_leaves_the_other_part_alone(save):
    path = save({"g": named(G_RAW), "g_ema": named(G), "d": named(D)})
    gives(path, G_RAW, key="g")
    gives(path, G_RAW, key="teacher.pt:g")
    gives(path, key="g_ema")
    gan = load_gan(str(path), options={"key": "g"})
    torch.testing.assert_close(gan.discriminator(X), D(X).flatten(), **CLOSE)
    with pytest.raises(UsageError, match="--key h: no network is there") as caught:
        load_gan(str(path), options={"key": "h"})
    assert "teacher.pt:g_ema" in caught.value.hint


@pytest.mark.parametrize("family", ["dcgna", 3, ["dcgan"]])
def test_family_names_one_we_have(save, family):
    with pytest.raises(UsageError, match="no family"):
        find(str(save(named(G))), options={"family": family})


def test_family_tries_that_one_alone_and_says_what_does_not_fit(save):
    path = save(named(G))
    gives(path, family="dcgan")
    with pytest.raises(CheckpointError, match=r"nearest family mlp|none is near") as caught:
        find(str(path), options={"family": "mlp"})
    assert "dcgan" not in str(caught.value)


def test_where_no_family_fits_the_nearest_are_named_with_keys_and_flags(save, monkeypatch):
    def objects(reason, score, **keys):
        def read(state, options):
            raise Mismatch(reason, score, **keys)

        return dataclasses.replace(FAMILIES["mlp"], read=read)

    keys = [f"block{i}.weight" for i in range(6)]
    for name, family in {
        "far": objects("far off", 0.1),
        "near": objects("block0.weight is missing", 0.9, missing=keys, unexpected=["a.weight", "b.weight"]),
        "second": objects("b.weight is odd", 0.8, unexpected=["b.weight"]),
        "third": objects("third", 0.7),
        "fourth": objects("fourth", 0.6),
    }.items():
        monkeypatch.setitem(FAMILIES, name, dataclasses.replace(family, name=name))
    with pytest.raises(CheckpointError) as caught:
        find(str(save({"netG": {"a.weight": torch.zeros(2, 2, 2), "b.weight": torch.zeros(2, 2, 2)}})))
    first, *others = str(caught.value).splitlines()
    assert first.partition("of no family we know. ")[2] == (
        "teacher.pt:netG: nearest family near: block0.weight is missing "
        "(missing: block0.weight, block1.weight, block2.weight, block3.weight and 2 more; unexpected: a.weight, b.weight)"
    )
    assert others == ["  or second: b.weight is odd", "  or third: third"]
    for flag in ("--family", "--teacher-module"):
        assert flag in caught.value.hint


def test_what_is_near_to_nothing_is_shown_by_its_first_keys(save):
    with pytest.raises(CheckpointError, match=r"none is near; it begins with head\.proj \(2, 2, 2\)"):
        find(str(save({"head.proj": torch.zeros(2, 2, 2)})))


def test_inspect_tells_raw_and_averaged_discriminator_and_optimizer(save):
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-3}]}
    path = save({"g": named(G_RAW), "g_ema": named(G), "d": named(D), "g_optim": optimizer, "d_optim": optimizer, "args": {"lr": 1}})
    found = gancompress.inspect(str(path))
    told = {c["where"]: (c["part"], c["ema"], c["taken"]) for c in found["contents"]}
    assert told == {
        "teacher.pt:g": ("generator", False, False),
        "teacher.pt:g_ema": ("generator", True, True),
        "teacher.pt:d": ("discriminator", False, True),
    }
    assert found["others"] == ["teacher.pt:g_optim: an optimizer's state", "teacher.pt:d_optim: an optimizer's state"]
    assert (found["latents"], found["classes"], found["resolution"], found["channels"]) == ("6 numbers, standard normal", 0, 16, 1)
    assert found["generator_bytes"] == sum(t.numel() * t.element_size() for t in gancompress.load(path).state_dict().values())
    assert json.loads(json.dumps(found)) == found


def test_inspect_tells_the_latents_as_they_are_drawn(tmp_path):
    gan = small_gan("biggan", SMALL["biggan"][0] | {"truncation": 0.5})
    save_networks(tmp_path / "g.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {})
    assert gancompress.inspect(str(tmp_path / "g.safetensors"))["latents"].endswith(" numbers, standard normal whose values beyond [-0.5, 0.5] are drawn again")


def test_inspect_names_the_file_of_an_optimizer_in_a_directory(save, tmp_path):
    save(named(G), "run/G.pth")
    save({"state": {}, "param_groups": []}, "run/G_optim.pth")
    assert gancompress.inspect(str(tmp_path / "run"))["others"] == ["G_optim.pth: an optimizer's state"]


def test_inspect_prints_what_it_found(save, capsys):
    from gancompress.screens import show_inspection

    path = save({"g": named(G_RAW), "g_ema": named(G), "d": named(D), "g_optim": {"state": {}, "param_groups": []}})
    show_inspection(gancompress.inspect(str(path), classes=2))
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "generator (raw) at teacher.pt:g, not taken: --key", "generator (EMA) at teacher.pt:g_ema, taken", "discriminator at teacher.pt:d",
        "latents 4 numbers, standard normal", "classes 2", "16 x 16, 1 channels", "teacher.pt:g_optim: an optimizer's state", "the generator in float32",
    ):  # fmt: skip
        assert words in said


# ----------------------------------------------------------------------------------------------------------- files and directories


def test_a_directory_of_numbered_epochs_gives_the_newest_of_each_network(save, tmp_path):
    for epoch in (1, 9, 10):
        save(named(G if epoch == 10 else G_RAW), f"run/netG_epoch_{epoch}.pth")
    for epoch in (2, 9):
        save(named(D if epoch == 9 else sequential_discriminator(1, (4, 8), seed=5)), f"run/netD_epoch_{epoch}.pth")
    gives(tmp_path / "run")
    judges(tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", "nan"], ids=["empty", "torn", "nan"])
def test_a_file_of_a_directory_that_cannot_be_read_is_left_out_where_the_others_suffice(damage, save, tmp_path, capsys):
    save(named(G), "netG.pth")
    bad = tmp_path / "netD.pth"
    if damage == "nan":
        save({k: t * float("nan") for k, t in named(D).items()}, "netD.pth")
    else:
        bad.write_bytes(damage)
    found = find(str(tmp_path))
    assert [n.where for n in found.networks] == ["netG.pth"]
    (note,) = [o for o in found.others if o.startswith("not read: ")]
    assert str(bad) in note
    assert f"left out: {bad}" in capsys.readouterr().err.replace("\n", "")


def test_it_is_refused_where_it_may_be_the_generator(save, tmp_path):
    (tmp_path / "netG.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"netG.pth: the file is empty"):  # alone
        find(str(tmp_path))
    save(named(D), "netD.pth")
    with pytest.raises(CheckpointError, match=r"netG.pth: the file is empty"):
        find(str(tmp_path))
    (tmp_path / "netG.pth").unlink()
    other = save(named(G), "other.pth")
    (tmp_path / "netD.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"netD.pth: the file is empty"):  # it was asked for
        find(str(other), discriminator=str(tmp_path / "netD.pth"))
    with pytest.raises(CheckpointError, match=r"netD.pth: the file is empty"):
        find(str(tmp_path), discriminator=str(tmp_path / "netD.pth"))


def test_of_a_run_folder_a_damaged_discriminator_is_left_out_and_a_damaged_student_refused(tiny_gan, tmp_path):
    for name, part in (("student", "generator"), ("discriminator", "discriminator")):
        save_networks(tmp_path / f"{name}.safetensors", tiny_gan.family, tiny_gan.arch, {part: tiny_gan.networks[part]}, {})
    whole = (tmp_path / "discriminator.safetensors").read_bytes()
    (tmp_path / "discriminator.safetensors").write_bytes(whole[:-1])
    assert load_gan(str(tmp_path)).discriminator is None
    (tmp_path / "discriminator.safetensors").write_bytes(whole)
    (tmp_path / "student.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"student\.safetensors"):
        load_gan(str(tmp_path))


def test_a_discriminator_that_lies_apart_is_joined(save):
    g, d = save(named(G), "one/netG.pth"), save(named(D), "two/netD.pth")
    gan = load_gan(str(g), discriminator=str(d))
    torch.testing.assert_close(gan.generator(Z), G(Z[:, :, None, None]), **CLOSE)
    torch.testing.assert_close(gan.discriminator(X), D(X).flatten(), **CLOSE)
    assert load_gan(str(g)).discriminator is None


def test_networks_that_do_not_belong_together_are_refused(save):
    g, d = save(named(G), "g.pt"), save(named(sequential_discriminator(3, (4, 8))), "d.pt")
    with pytest.raises(UsageError, match=r"has nc 1, d\.pt has 3"):
        load_gan(str(g), discriminator=str(d))


def test_a_missing_part_is_said_to_be_missing(save):
    g, d = save(named(G), "g.pt"), save(named(D), "d.pt")
    with pytest.raises(MissingError, match="no discriminator"):
        gancompress.load(str(g), part="discriminator")
    with pytest.raises(CheckpointError, match="no generator"):
        gancompress.load(str(d))
    with pytest.raises(UsageError, match="part="):
        gancompress.load(str(g), part="critic")


def test_our_own_file_gives_back_bitwise_what_was_saved(tiny_gan, tiny_teacher):
    gan = load_gan(str(tiny_teacher))
    assert gan.sha256() == tiny_gan.sha256()
    assert gan.arch == tiny_gan.arch
    assert not any(p.requires_grad for net in gan.networks.values() for p in net.parameters())


@pytest.mark.parametrize("name", ["student.safetensors", "model.safetensors"])
def test_a_run_folder_and_an_export_are_sources(tiny_gan, tmp_path, name):
    save_networks(tmp_path / name, tiny_gan.family, tiny_gan.arch, {"generator": tiny_gan.generator}, {"recipe": "mse"})
    torch.save({"whatever": torch.zeros(3)}, tmp_path / "state.pt")
    assert load_gan(str(tmp_path)).generator(torch.ones(1, 4)).equal(tiny_gan.generator(torch.ones(1, 4)))
    assert find(str(tmp_path)).metadata["recipe"] == "mse"


def test_an_unfinished_run_is_told_from_a_broken_one(tmp_path):
    torch.save({}, tmp_path / "state.pt")
    (tmp_path / "recipe.yaml").write_text("loss: mse\n")
    with pytest.raises(MissingError, match="not finished"):
        find(str(tmp_path))


def test_our_own_file_from_a_newer_version_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "new.safetensors"
    save_file({"generator.x": torch.zeros(1)}, path, {"gancompress": json.dumps({"format": 1, "family": "unheard-of", "arch": {}})})
    with pytest.raises(CheckpointError, match="metadata"):
        find(str(path))
    save_file({"generator.x": torch.zeros(1)}, path, {"gancompress": json.dumps({"format": 2, "family": "dcgan", "arch": {}})})
    with pytest.raises(CheckpointError, match="written in format 2"):
        find(str(path))


def test_a_foreign_safetensors_file_is_read_though_its_keys_are_sorted(tmp_path):
    from safetensors.torch import save_file

    deep = sequential_generator(6, (5, 5, 5, 5), 1)
    save_file({k: t.contiguous() for k, t in named(deep).items()}, tmp_path / "g.safetensors")
    gives(tmp_path / "g.safetensors", deep)


def test_the_bundled_teacher_has_both_networks():
    gan = load_gan("sample:dcgan-mnist")
    z, _ = gan.sample(2, torch.Generator().manual_seed(0))
    images = gan.generator(z)
    assert gan.discriminator(images).shape == (2,)
    assert images.std() > 0.3, "digits have ink"


def test_an_unknown_sample_lists_those_there_are():
    with pytest.raises(MissingError, match="nosuch") as caught:
        find("sample:nosuch")
    assert "sample:dcgan-mnist" in caught.value.hint


MLP = {"main.0.weight": torch.zeros(8, 6), "main.0.bias": torch.zeros(8), "main.2.weight": torch.zeros(64, 8), "main.2.bias": torch.zeros(64)}


@pytest.mark.parametrize(
    ("options", "names"),
    [({"clases": 3}, "clases"), ({"classes": "many"}, "classes"), ({"nc": "grey"}, "nc"), ({"output": "sine"}, "sine"), ({"classes": 1.5}, "classes")],
)
def test_a_wrong_reader_option_is_named(save, options, names):
    path = save(MLP)
    with pytest.raises(UsageError, match=names):
        gancompress.load(str(path), **options)


def test_a_path_object_is_a_source(save):
    assert gancompress.load(save(named(G)))(Z).shape == (3, 1, 16, 16)


# --------------------------------------------------------------------------------------------------------- containers and dtypes


@pytest.mark.parametrize("name", ["netG.pth", "netG.tar", "netG.safetensors", "netG"])
def test_the_container_is_told_by_its_bytes_not_its_name(save, name):
    gives(save(named(G), name))


def test_a_legacy_stream_gives_the_same_images(save):
    path = save({"generator": named(G), "discriminator": named(D)}, _use_new_zipfile_serialization=False)
    assert find(str(path)).container == "torch legacy"
    gives(path)
    judges(path)


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A user's own network class that cannot be imported any more when its file is read."""
    folder = tmp_path / "src"
    folder.mkdir()
    source = folder / "studio_nets.py"
    source.write_text(
        "from torch import nn\n"
        "class Painter(nn.Module):\n"
        "    def __init__(self, main, note=None):\n"
        "        super().__init__()\n"
        "        self.main, self.note = main, note\n"
        "class Settings:\n"
        "    def __init__(self):\n"
        "        self.lr = 0.1\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("studio_nets")
    sys.modules.pop("studio_nets", None)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_whole_module_is_read_without_its_class(save, studio, zipped, nested, tmp_path):
    painter, critic = studio.Painter(G, studio.Settings()), studio.Painter(torch.nn.DataParallel(D))
    path = save({"G": painter, "D": critic, "settings": studio.Settings()} if nested else painter, _use_new_zipfile_serialization=zipped)
    sys.modules.pop("studio_nets")
    (tmp_path / "src" / "studio_nets.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    gives(path)
    if nested:
        judges(path)
    assert not (tmp_path / "ran").exists()
    assert "studio_nets" not in sys.modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_another_precision_become_float32(save, dtype, zipped):
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in named(G).items()}
    net = gancompress.load(str(save(state, _use_new_zipfile_serialization=zipped)))
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    torch.testing.assert_close(net(Z), G(Z[:, :, None, None]), rtol=0, atol=0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_saved_on_a_gpu_load_without_one(save, monkeypatch, zipped, whole):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = save(G if whole else named(G), _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in path.read_bytes()
    gives(path)


def test_tensors_that_share_a_storage_or_are_views_keep_their_values(save):
    state = {k: torch.cat([t, t])[: len(t)] if t.ndim else t for k, t in named(G).items()}
    state["main.0.weight"] = state["main.0.weight"].transpose(0, 1).contiguous().transpose(0, 1)
    gives(save(state))
    gives(save({"settings": slice(3), **state}, _use_new_zipfile_serialization=False))


# ----------------------------------------------------------------------------------------------------------- --teacher-module


@pytest.fixture
def factory(tmp_path):
    def write(body, name="mine.py"):
        path = tmp_path / name
        path.write_text("import torch\nfrom torch import nn\n" + body)
        return f"module:{path}:build"

    return write


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.{attribute} = 6
        self.scale = nn.Parameter(torch.tensor(0.5))
    def forward(self, z{more}):
        {check}
        return torch.tanh(self.scale * z.flatten(1).sum(1))[:, None, None, None].expand(-1, 3, 8, 8)
def build():
    return Net()
"""


@pytest.mark.parametrize("attribute", ["nz", "z_dim", "latent_dim"])
@pytest.mark.parametrize("ndim", [2, 4])
def test_a_module_of_the_user_s_own_takes_its_latents_as_it_likes(factory, attribute, ndim):
    gan = load_gan(factory(NET.format(attribute=attribute, more="", check=f"assert z.ndim == {ndim}")))
    assert (gan.arch.nz, gan.arch.nc, gan.arch.resolution, gan.arch.classes) == (6, 3, 8, 0)
    assert gan.discriminator is None
    z, condition = gan.sample(3, torch.Generator().manual_seed(0))
    assert condition is None
    torch.testing.assert_close(gan.generator(z)[:, 0, 0, 0], torch.tanh(0.5 * z.sum(1)))


def test_a_module_of_the_user_s_own_can_take_labels(factory):
    gan = load_gan(factory(NET.format(attribute="nz", more=", label", check="z = z + label[:, None]")), options={"classes": 4})
    z, labels = gan.sample(8, torch.Generator().manual_seed(0))
    assert labels.shape == (8,)
    assert not gan.generator(z, labels).equal(gan.generator(z, (labels + 1) % 4))


def test_a_module_of_the_user_s_own_has_no_discriminator_to_load(factory):
    with pytest.raises(MissingError, match="no discriminator"):
        gancompress.load(factory(NET.format(attribute="nz", more="", check="")), part="discriminator")


def test_the_latent_size_can_be_told(factory):
    spec = factory(NET.format(attribute="size", more="", check=""))
    with pytest.raises(UsageError, match="latent size"):
        load_gan(spec)
    assert load_gan(spec, options={"nz": 5}).arch.nz == 5


@pytest.mark.parametrize(
    ("body", "error", "names"),
    [
        ("def build():\n    raise RuntimeError('no weights here')\n", GanCompressError, r"RuntimeError: no weights here \(.*mine.py:4\)"),
        ("def build(:\n", GanCompressError, "SyntaxError"),
        ("import nonexistent_package\n", GanCompressError, "nonexistent_package"),
        ("def other():\n    pass\n", UsageError, "build"),
        ("def build():\n    return 3\n", UsageError, "int"),
        ("class N(nn.Module):\n    nz = 4\n    def forward(self, z):\n        return z\nbuild = N\n", UsageError, "square images"),
        ("class N(nn.Module):\n    nz = 4\n    def forward(self, z):\n        raise ValueError('bad latent')\nbuild = N\n", GanCompressError, "bad latent"),
        ("class N(nn.Module):\n    nz = 'four'\n    def forward(self, z):\n        return z\nbuild = N\n", GanCompressError, "four"),
    ],
)
def test_what_fails_in_the_user_s_own_file_is_reported_with_its_place(factory, body, error, names):
    before = list(sys.path)
    with pytest.raises(error, match=names):
        load_gan(factory(body))
    assert sys.path == before


@pytest.mark.parametrize(("spec", "error"), [("module:nosuch.py:build", MissingError), ("module:nosuch.py", UsageError), ("module::build", UsageError)])
def test_a_module_that_is_not_there_is_named(spec, error):
    with pytest.raises(error, match=r"nosuch|:build"):
        load_gan(spec)
