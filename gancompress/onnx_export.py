"""A generator in the formats of other runtimes: torch.export's .pt2, ONNX, OpenVINO, and ONNX with 8-bit integers. All with a free batch size."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancompress.errors import GanCompressError, MissingError
from gancompress.folding import Deployed
from gancompress.gan import GAN

#: format -> (the extra it needs, modules of that extra)
EXTRAS = {"onnx": ("onnx", ("onnx", "onnxscript", "onnxruntime")), "openvino": ("openvino,onnx", ("openvino", "onnx", "onnxscript"))}
#: file of each format
FILES = {"pt2": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml", "int8": "model.int8.onnx"}
#: operators that multiply weights
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Run = Callable[[list[Tensor]], Tensor]


def need_extras(formats: tuple[str, ...], asked: str = "--format") -> None:
    """Raises MissingError where a format's packages are not installed; ``asked``: the words that asked for it."""
    for name in formats:
        extra, modules = EXTRAS.get(name, ("", ()))
        if missing := [m for m in modules if find_spec(m) is None]:
            raise MissingError(f"{asked} {name}: no module named {' and '.join(missing)}", f'pip install "gancompress[{extra}]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of exporters, which are many and say nothing a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def program(net: Deployed, inputs: list[Tensor], gan: GAN) -> Any:
    """The network, ``gan``'s, as torch.export sees it, for every batch size from 1 up; ``inputs``: an example of two images or more.

    Raises:
        GanCompressError: torch.export does not take it.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(net, tuple(inputs), dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    except Exception as error:  # it raises what it likes
        raise GanCompressError(
            f"{gan.source}: torch.export does not take this {gan.family.name} ({str(error).strip().splitlines()[0][:200]})", "--format safetensors works"
        ) from error
    for node in exported.graph.nodes:  # paths of the machine it was made on, and most of a small file
        node.meta.pop("stack_trace", None)
    return exported


def write(name: str, exported: Any, names: list[str], facts: dict[str, Any], folder: Path, half: bool) -> Path:
    """One format of ``program``'s result into ``folder``; its metadata hold ``facts`` as JSON under "gancompress".

    Raises:
        GanCompressError: it has an operator that the format has not; the message says which formats work.
    """
    path, told = folder / FILES[name], json.dumps(facts, sort_keys=True)
    try:
        with _quiet():
            if name == "pt2":
                torch.export.save(exported, path, extra_files={"gancompress.json": told})
            elif name == "onnx":
                _write_onnx(exported, names, told, path)
            else:
                _write_openvino(exported, names, told, path, half)
    except OSError:
        raise
    except Exception as error:  # exporters raise what they like
        raise GanCompressError(
            f"this {facts['family']} cannot be written as {name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            "--format safetensors works for every family" + ("" if name == "pt2" else ", and pt2 for this one"),
        ) from error
    return path


def _write_onnx(exported: Any, names: list[str], told: str, path: Path) -> None:
    made = torch.onnx.export(exported, (), input_names=names, output_names=["images"], dynamo=True, verbose=False)
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()
    made.model.metadata_props["gancompress"] = told
    made.save(path)


def _write_openvino(exported: Any, names: list[str], told: str, path: Path, half: bool) -> None:
    import openvino

    # its own reader of torch modules fails where this way does not (fused convolutions, spectral norm)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if not (source := path.parent / FILES["onnx"]).exists():
            _write_onnx(exported, names, told, source := Path(folder) / FILES["onnx"])
        model = openvino.convert_model(source)
        model.set_rt_info(told, "gancompress")
        openvino.save_model(model, path, compress_to_fp16=half)


def in_onnxruntime(gan: GAN) -> Run:
    """The generator, folded, as ONNX in onnxruntime on the CPU, without leaving a file.

    Raises:
        GanCompressError: this family cannot be written as ONNX.
    """
    net = Deployed(gan).eval()
    example = [t for t in gan.sample(2, torch.Generator().manual_seed(0)) if t is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = write("onnx", program(net, example, gan), net.names, {"family": gan.family.name}, Path(folder), half=False)
        return runner(path, net.names)[0]


def quantise(source: Path, target: Path, batches: list[list[Tensor]], names: list[str]) -> None:
    """Static quantisation of an ONNX file: 8-bit weights, one scale for each channel, and activations within what ``batches`` reach (MinMax).

    onnxruntime's own quantiser, QDQ nodes. The last product stays float32: what goes into a tanh has a wide range, of which the image is the
    middle (a trained faces DCGAN of 64 pixels: PSNR 37.4 dB in place of 26.6, and 0.2% more bytes).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else dict(zip(names, (t.numpy() for t in batch), strict=True))

    with _quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        products = [node.name for node in onnx.load(prepared).graph.node if node.op_type in PRODUCTS]
        settings = {"quant_format": QuantFormat.QDQ, "per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, target, Reader(), nodes_to_exclude=products[-1:], **settings)


def runner(path: Path, names: list[str]) -> tuple[Run, str]:
    """(a function that runs a written file on the CPU as its users would, the name and version of what runs it); threads: as torch has."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda tensors: module(*tensors), f"torch {torch.__version__}"
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda tensors: torch.from_numpy(session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))[0]), (
            f"onnxruntime {onnxruntime.__version__}"
        )
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda tensors: torch.from_numpy(compiled([t.numpy() for t in tensors])[0].copy()), f"openvino {openvino.__version__}"
