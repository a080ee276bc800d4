"""A network as files that load anywhere, checked against the source: a student's weights and its forms for other runtimes, a whole teacher's one file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gancompress import onnx_export
from gancompress.checkpoint import save_networks, save_state, write_failure, write_json
from gancompress.data import EVALUATION, rng, to_uint8
from gancompress.describing import describe
from gancompress.distances import frechet_distance
from gancompress.errors import CheckpointError, ParityError, UsageError
from gancompress.extractors import make_extractor
from gancompress.fidelity import features_of
from gancompress.folding import Deployed, noise_buffers, unfolded
from gancompress.gan import GAN
from gancompress.loading import build, find, load_gan
from gancompress.onnx_export import FILES, Run
from gancompress.original_keys import original, read_back

#: largest difference of a pixel in [-1, 1] that an export may show
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
DTYPES = {"float32": torch.float32, "float16": torch.float16}
#: smallest peak signal-to-noise ratio of 8-bit integers, in dB
LEAST_PSNR = 35.0
#: inputs that every file is checked on, and the batch sizes
INPUTS, BATCHES = 16, (1, 4, 7)
#: images of the Frechet distances before and after quantisation
FRECHET_IMAGES = 2000
#: inputs of a batch while quantisation looks at activations
CALIBRATION_BATCH = 16
FORMATS = ("safetensors", "onnx", "pt2", "openvino")
ORIGINAL = "original.pth"
#: files that an export writes, and the next one into the same directory replaces
OURS = {"model.safetensors", "config.json", "parity.json", "model.bin", ORIGINAL, *FILES.values()}


def convert(source: str, out: str | Path, *, discriminator: str | None = None, reader_options: dict[str, Any] | None = None) -> Path:
    """Write any source's generator (the averaged one where there is one) and discriminator into one self-describing safetensors file.

    Its metadata names the source and its sha256 (over names, shapes and values of all tensors as they are loaded, ``GAN.sha256``).

    Raises:
        UsageError: ``out`` exists or does not end in .safetensors. ParityError: what was written does not load as what was read;
            nothing is left. GanCompressError: the source cannot be loaded or the file not written.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: the name of a converted file ends in .safetensors")
    if target.exists():
        raise UsageError(f"{target} exists already", "choose another name")
    gan = load_gan(source, discriminator=discriminator, options=reader_options)
    if gan.family.name == "module":
        raise UsageError(f"{source}: a module of your own is saved by your own code")
    name, sha256 = Path(source).name if Path(source).exists() else source, gan.sha256()
    save_networks(target, gan.family, gan.arch, gan.networks, {"source": name, "source_sha256": sha256})
    again = load_gan(str(target))
    if again.arch != gan.arch or again.sha256() != sha256:
        target.unlink()
        raise ParityError(f"{source}: what was written does not load as what was read; nothing was written")
    return target


# ---------------------------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class Wish:
    """What ``export`` is asked for: the arguments of that name."""

    formats: tuple[str, ...] = ("safetensors",)
    dtype: str = "float32"
    noise: str = "fixed"
    int8: bool = False
    calibrate: int = 256
    feature_extractor: str | None = None
    keys: str = "own"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: expected {' or '.join(DTYPES)}")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise UsageError(f"--format {unknown[0]!r}: no such format", f"formats: {', '.join(FORMATS)}")
        if not self.formats:
            raise UsageError("--format: no format is named", f"formats: {', '.join(FORMATS)}")
        if self.noise not in ("fixed", "input"):
            raise UsageError(f"--noise {self.noise}: expected fixed or input")
        if self.keys not in ("own", "original"):
            raise UsageError(f"--keys {self.keys}: expected own or original")
        if self.int8 and ("onnx" not in self.formats or self.dtype != "float32"):
            raise UsageError(
                f"--int8 with --format {','.join(self.formats)} --dtype {self.dtype}: it is made from the float32 ONNX file", "--format onnx --int8"
            )
        if self.calibrate < 1:
            raise UsageError(f"--calibrate {self.calibrate}: at least 1")
        if self.feature_extractor and not self.int8:
            raise UsageError(f"--feature-extractor {self.feature_extractor}: a distance is measured for --int8 alone")


class _Check:
    """Compares what was written with the source network on fixed inputs."""

    def __init__(self, gan: GAN, wish: Wish) -> None:
        self.gan, self.wish = gan, wish
        self.maps = [m for name, m in gan.generator.named_buffers() if name in noise_buffers(gan.generator)] if wish.noise == "input" else []
        self.inputs, net = gan.sample(INPUTS, rng(0, EVALUATION)), unfolded(gan)
        with torch.no_grad():
            self.expected = torch.cat([net(*self._part(slice(i, i + 4))) for i in range(0, INPUTS, 4)])

    def _part(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        inputs, condition = self.inputs
        return inputs[rows], None if condition is None else condition[rows]

    def feed(self, inputs: Tensor, condition: Tensor | None) -> list[Tensor]:
        """The tensors that a written file takes."""
        maps = [m.expand(len(inputs), 1, -1, -1).contiguous() for m in self.maps]
        return [t for t in (inputs, condition, *maps) if t is not None]

    @torch.no_grad()
    def figures(self, run: Run) -> dict[str, Any]:
        """Largest difference and PSNR for each batch size, and the share of 8-bit values that are off by more than one."""
        found: dict[str, Any] = {"max_abs_difference": {}, "psnr_db": {}, "share_of_uint8_off_by_more_than_one": 0.0}
        for size in BATCHES:
            images = torch.cat([run(self.feed(*self._part(slice(i, i + size)))) for i in range(0, INPUTS, size)]).float()
            error = (images - self.expected).double()
            found["max_abs_difference"][str(size)] = float(error.abs().max())
            found["psnr_db"][str(size)] = float(10 * torch.log10(4 / error.square().mean().clamp_min(1e-24)))
            off = (to_uint8(images).int() - to_uint8(self.expected).int()).abs() > 1
            found["share_of_uint8_off_by_more_than_one"] = max(found["share_of_uint8_off_by_more_than_one"], float(off.double().mean()))
        return found

    def within_tolerance(self, run: Run, name: str) -> dict[str, Any]:
        """``figures`` of a file of that dtype; raises ParityError where a pixel differs by more than it may."""
        found, tolerance = self.figures(run), TOLERANCE[DTYPES[self.wish.dtype]]
        worst = max(found["max_abs_difference"].values(), key=lambda d: d if d == d else float("inf"))
        if not worst <= tolerance:
            hint = "--format safetensors --dtype float16 stores half and computes in float32" if self.wish.dtype == "float16" and name != "safetensors" else ""
            raise ParityError(
                f"{self.gan.source} as {name} {self.wish.dtype}: pixels differ by up to {worst:.2g}, more than {tolerance:g}; nothing was written", hint
            )
        return {"dtype": self.wish.dtype, "tolerance": tolerance, **found}

    def above_psnr(self, run: Run, plain: Run) -> dict[str, Any]:
        """``figures`` of the 8-bit file, with distances; raises ParityError below LEAST_PSNR. ``plain``: the file it was made from."""
        found = self.figures(run)
        worst = min(found["psnr_db"].values())
        if not worst >= LEAST_PSNR:
            more = f"--calibrate N with more inputs than {self.wish.calibrate}, or --dtype float16"
            raise ParityError(f"{self.gan.source} as int8: PSNR {worst:.1f} dB, less than {LEAST_PSNR:g}; nothing was written", more)
        return {"dtype": "int8", "least_psnr_db": LEAST_PSNR, "calibrated_on": self.wish.calibrate, **found, "frechet_distance": self._distances(run, plain)}

    def _distances(self, run: Run, plain: Run) -> dict[str, Any]:
        """Frechet distances to the source's images of other latents, before and after quantisation."""
        if not self.wish.feature_extractor:
            return {"measured": False, "why": "no --feature-extractor was given"}
        extractor = make_extractor(self.wish.feature_extractor, None, torch.device("cpu"))

        def images(stream: int, make: Run) -> Tensor:
            batches = (make(self.feed(*self.gan.sample(50, rng(stream, EVALUATION, i)))) for i in range(FRECHET_IMAGES // 50))
            return features_of(batches, extractor)[0]

        reference = images(1, plain)
        before, after = (frechet_distance(images(2, each), reference) for each in (plain, run))
        facts = {"name": extractor.distance, "extractor": extractor.name, "weights_sha256": extractor.weights_sha256, "images": FRECHET_IMAGES}
        return {"measured": True, **facts, "reference": "the float32 network on other latents", "float32": before, "int8": after, "change": after - before}


def export(source: str, out: str | Path, dtype: str = "float32", reader_options: dict[str, Any] | None = None, *, formats: Sequence[str] = ("safetensors",),
           noise: str = "fixed", int8: bool = False, calibrate: int = 256, feature_extractor: str | None = None, keys: str = "own") -> Path:  # fmt: skip
    """Write any source's generator into a directory, in each format asked for, with config.json and parity.json; returns the directory.

    Each file is run at batch 1, 4 and 7 on 16 fixed inputs and has to give the source's images: to 1e-4 in float32, 1e-2 in float16.

    Args:
        formats: safetensors (loads with ``gancompress.load``), onnx, pt2 (torch.export), openvino; the last three with spectral norm and
            BatchNorm folded and a free batch size.
        noise: of a StyleGAN2: "fixed", the stored maps, or "input", further inputs noise_0 ... (N, 1, H, W).
        int8: write model.int8.onnx too, calibrated on ``calibrate`` inputs; its PSNR has to be 35 dB, and ``feature_extractor`` (as for
            ``gancompress eval``) measures the change in Frechet distance.
        keys: "original" adds original.pth, the network under the names of the project it comes from, for that project's own code.

    Raises:
        UsageError: an unknown format or dtype, a directory with other files in it. MissingError: a package of an extra is not installed.
        ParityError: what was written does not give the source's images; nothing is left. GanCompressError: a format cannot hold the network.
    """
    wish = Wish(tuple(dict.fromkeys(formats)), dtype, noise, int8, calibrate, feature_extractor, keys)
    onnx_export.need_extras(wish.formats)
    gan, metadata = _source(source, reader_options)
    if wish.int8 and not gan.arch.nz:
        raise UsageError(f"{source} --int8: ranges of a translator follow from its images, and noise has others", "--format onnx --dtype float16")
    if wish.noise == "input" and (not noise_buffers(gan.generator) or not set(wish.formats) - {"safetensors"}):
        raise UsageError(
            f"--noise input: a {gan.family.name} as {','.join(wish.formats)} has no noise to give", "only onnx, pt2 and openvino of a stylegan2 have"
        )
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(p.name not in OURS for p in folder.iterdir())):
        raise UsageError(f"{folder} is not an empty directory", "choose another --out")
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))  # a name nobody has
    except OSError as error:
        raise write_failure(folder, 0, error) from None
    try:
        _write_all(gan, metadata, wish, partial)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            if not (partial / stale.name).exists():
                stale.unlink()
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise write_failure(folder, 0, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _source(source: str, options: dict[str, Any] | None) -> tuple[GAN, dict[str, Any]]:
    """(the generator alone, the metadata of its file)."""
    if source.startswith("module:"):
        raise UsageError(f"{source}: a module of your own is exported by your own code")
    found = find(source, options=options)
    return GAN(found.family, found.arch, build(found, "generator"), None, source).freeze(), found.metadata


def _write_all(gan: GAN, metadata: dict[str, Any], wish: Wish, folder: Path) -> None:
    facts, check = describe(gan, metadata) | {"dtype": wish.dtype}, _Check(gan, wish)
    parity: dict[str, Any] = {}
    if "safetensors" in wish.formats:
        path = folder / "model.safetensors"
        save_networks(path, gan.family, gan.arch, {"generator": gan.generator}, facts, DTYPES[wish.dtype])
        parity[path.name] = check.within_tolerance(_again(check, lambda: unfolded(load_gan(str(path)))), "safetensors")
    if others := [name for name in wish.formats if name != "safetensors"]:
        parity |= _write_others(gan, wish, others, facts, check, folder)
    if wish.keys == "original":
        layout, other = original(gan), folder / ORIGINAL
        save_state(other, tree_map_only(Tensor, lambda t: t.contiguous().to(DTYPES[wish.dtype] if t.is_floating_point() else t.dtype), layout.content))
        parity[ORIGINAL] = check.within_tolerance(_again(check, lambda: read_back(gan, other, layout.settings)), "original keys")
        facts["original"] = {"file": ORIGINAL, "project": layout.project, "load": layout.load, "settings": layout.settings}
    worst = max(d for each in parity.values() if each["dtype"] != "int8" for d in each["max_abs_difference"].values())
    write_json(folder / "config.json", facts | {"formats": list(wish.formats), "noise": wish.noise, "parity_max_difference": worst})
    write_json(folder / "parity.json", {"source": Path(gan.source).name, "source_sha256": facts["sha256"], "inputs": INPUTS, "files": parity})


def _again(check: _Check, read: Callable[[], nn.Module]) -> Run:
    """The network of a written file, as our own reader has it."""
    try:
        net = read()
    except CheckpointError as error:  # a number too large for float16 became infinite
        raise ParityError(f"{check.gan.source} as {check.wish.dtype}: it cannot be loaded again ({error}); nothing was written") from None
    return lambda tensors: net(tensors[0], tensors[1] if check.gan.arch.classes else None)


def _write_others(gan: GAN, wish: Wish, names: list[str], facts: dict[str, Any], check: _Check, folder: Path) -> dict[str, Any]:
    """{file: figures} of the formats for other runtimes."""
    deployed, parity = Deployed(gan, DTYPES[wish.dtype], wish.noise == "input").eval(), {}
    exported = onnx_export.program(deployed, check.feed(*gan.sample(2, rng(0, EVALUATION))), gan)
    for name in names:
        path = onnx_export.write(name, exported, deployed.names, facts, folder, wish.dtype == "float16")
        run, runtime = onnx_export.runner(path, deployed.names)
        parity[path.name] = {"runtime": runtime, **check.within_tolerance(run, name)}
    if wish.int8:
        sizes = [min(CALIBRATION_BATCH, wish.calibrate - i) for i in range(0, wish.calibrate, CALIBRATION_BATCH)]
        batches = [check.feed(*gan.sample(size, rng(3, EVALUATION, i))) for i, size in enumerate(sizes)]
        path = folder / FILES["int8"]
        onnx_export.quantise(folder / FILES["onnx"], path, batches, deployed.names)
        plain, (run, runtime) = onnx_export.runner(folder / FILES["onnx"], deployed.names)[0], onnx_export.runner(path, deployed.names)
        parity[path.name] = {"runtime": runtime, **check.above_psnr(run, plain)}
    return parity
