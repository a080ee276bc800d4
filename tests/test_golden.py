"""The outputs of the projects whose checkpoints we read, on their own weights and inputs."""

import json

import numpy as np
import pytest
import torch

import gancompress
from gancompress.families import FAMILIES
from gancompress.loading import build, find, load_gan

pytestmark = pytest.mark.assets
#: case -> family
CASES = {
    "ajbrock_biggan/hier_shared_64px": "biggan",
    "hf_pytorch_pretrained_biggan/deep64_trunc0.4": "biggan_deep",
    "huggan_pix2pix_unet/unet_rgb": "unet",
    "junyanz_cyclegan_pix2pix/cyclegan_resnet6_in": "resnet",
    "junyanz_cyclegan_pix2pix/pix2pix_unet128_bn": "unet",
    "mimicry/cgan_pd32": "sngan",
    "mimicry/sngan32": "sngan",
    "nvlabs/sg2_from_sg3repo_32": "stylegan2",
    "nvlabs/sg2ada_32": "stylegan2",
    "nvlabs/sg3_32": "stylegan3",
    "pytorch_examples_dcgan/base": "dcgan",
    "pytorch_examples_dcgan/onehot_5cls": "dcgan",
    "pytorch_gan_zoo_pgan/pgan32": "pggan",
    "rosinality_stylegan2/converted_32px": "stylegan2",
    "wassersteingan_dcgan/extra1_32px": "dcgan",
    "whole_module/zip": "dcgan",
}


def options_of(network):
    """What a user would have to say to get this forward pass."""
    told = network.get("forward_kwargs") or {}
    options = {"classes": told["n_classes"]} if network["forward"] == "dcgan_onehot" else {}
    if psi := told.get("psi") or told.get("truncation"):
        options["truncation"] = psi
    return options | ({"noise": "none"} if network["forward"] == "ros_zero" else {})


def arrays_of(folder):
    found = {}
    for path in sorted(folder.glob("ref*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found |= {k: torch.from_numpy(arrays[k]) for k in arrays.files}
    return found


def as_input(array, network):
    """The images a check is of, as the network takes them."""
    array = array[slice(*network["input_slice"])] if "input_slice" in network else array
    return array / 127.5 - 1 if network.get("input_transform") == "uint8/127.5-1" else array


def tolerances(meta):
    return {v["expected"]: v.get("suggested_atol") or 5 * max(v.get("max_abs_err_fp32_reload") or 0, 1e-5) for v in meta["verified"]["networks"]}


@pytest.mark.parametrize("case", CASES)
def test_upstream_s_own_outputs_are_reproduced(golden, case):
    if CASES[case] not in FAMILIES:
        pytest.skip(f"no family {CASES[case]} yet")
    folder = golden / case
    meta, arrays = json.loads((folder / "meta.json").read_text()), arrays_of(folder)
    tolerance = tolerances(meta)
    for network in meta["networks"]:
        if CASES[case] == "stylegan3" and network["role"] == "D":
            continue  # of another family: below
        part = "discriminator" if network["role"].startswith("D") else "generator"
        net = gancompress.load(str(folder / network["file"]), part=part, ema=network["role"] != "G_raw", **options_of(network))
        given = [as_input(arrays[i], network) for i in network["inputs"] if i != "latent_avg"]
        with torch.no_grad():
            found = torch.cat([net(x) for x in given[0].split(1)]) if network["forward"] == "plain" and len(given) == 1 and part == "generator" else net(*given)
        torch.testing.assert_close(found, arrays[network["expected"]].reshape(found.shape), rtol=0, atol=tolerance[network["expected"]])


@pytest.mark.skipif("stylegan2" not in FAMILIES, reason="no family stylegan2 yet")
def test_the_critic_beside_a_stylegan3_is_read_as_that_of_a_stylegan2(golden):
    folder = golden / "nvlabs/sg3_32"
    meta, arrays = json.loads((folder / "meta.json").read_text()), arrays_of(folder)
    net = build(find(str(folder / meta["file"]), options={"family": "stylegan2"}), "discriminator")
    found = net(arrays["D_x"])
    torch.testing.assert_close(found, arrays["D_logits"].reshape(found.shape), rtol=0, atol=tolerances(meta)["D_logits"])


@pytest.mark.parametrize("case", [c for c, f in CASES.items() if f not in ("unet", "resnet")])
def test_the_directory_of_an_upstream_run_is_read_as_one_gan(golden, case):
    if CASES[case] not in FAMILIES:
        pytest.skip(f"no family {CASES[case]} yet")
    folder = golden / case
    meta = json.loads((folder / "meta.json").read_text())
    files = sorted({str((folder / n["file"]).parent) for n in meta["networks"]})
    gan = load_gan(files[-1])
    assert gan.family.name == CASES[case]
