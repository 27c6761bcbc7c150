"""How is a model written in each format, and called again once it is written?

All take samples as the data has them and return the logits, for any number of samples at once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mach.errors import ExportError
from mach.extras import missing
from mach.signature import Signature

WEIGHTS, PROGRAM, ONNX = "model.safetensors", "model.pt2", "model.onnx"

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Write parameters and buffers as safetensors.

    Returns:
        Of each tensor that is stored under another's name, that name.
    """
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            shared[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        stored[name] = tensor.detach().cpu().contiguous()
    # Not save_file: nobody but its owner may read what that writes.
    path.write_bytes(save(stored, metadata={"format": "pt"}))
    return shared


def write_program(path: Path, model: nn.Module, signature: Signature) -> None:
    """Write what torch.export makes of the model.

    Raises:
        ExportError: torch cannot export it.
    """
    with _quiet(), _exporting("torch", "safetensors or onnx"):
        program = torch.export.export(
            model, (_example(signature),), dynamic_shapes=(_dynamic(signature),)
        )
        torch.export.save(program, path)


def read_program(path: Path) -> nn.Module:
    """What `write_program` has written a moment ago. For files of others see `mach.predictor`:
    torch unpickles parts of a .pt2, so none is read there."""
    with _quiet():
        module: nn.Module = torch.export.load(path).module()
    return module


def write_onnx(path: Path, model: nn.Module, signature: Signature, *, int8: bool) -> None:
    """Write the model as ONNX.

    Args:
        int8: with the weights of matrix products in int8, quantized dynamically.

    Raises:
        ExportError: ONNX has no form for an operation of it, or a package is missing.
    """
    _need_onnx()
    with _quiet(), _exporting("onnx", "torch or safetensors"):
        program = torch.onnx.export(
            model,
            (_example(signature),),
            dynamic_shapes=(_dynamic(signature),),
            input_names=["x"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        assert program is not None
        program.save(path)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            whole = path.with_name("float32.onnx")
            path.rename(whole)
            quantize_dynamic(whole, path, weight_type=QuantType.QInt8)
            whole.unlink()


class OnnxModel(nn.Module):
    """An ONNX file run by onnxruntime, called as the module it was made of. On the CPU."""

    def __init__(self, path: Path, *, int8: bool) -> None:
        """
        Args:
            int8: whether it was quantized. Then samples are computed one by one: those that are
                computed together share a scale, so that their answers depend on each other.

        Raises:
            ExportError: it cannot be read or run: damaged, or onnxruntime lacks an operator.
        """
        super().__init__()
        _need_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has one class for each code
            raise ExportError(
                f"{path}: expected a model that onnxruntime {onnxruntime.__version__} can run; "
                f"{_one_line(error)}. Export it again, or install the onnxruntime it needs."
            ) from error

        taken = self._session.get_inputs()[0].type
        self._dtype = torch.int64 if taken == "tensor(int64)" else torch.float32
        self._one_by_one = int8

    def forward(self, x: Tensor) -> Tensor:
        """From samples [B, ..] of any number type to logits [N, C]."""
        parts = x.detach().to(self._dtype).split(1 if self._one_by_one else max(1, len(x)))
        return torch.cat([self._run(part) for part in parts])

    def _run(self, x: Tensor) -> Tensor:
        (logits_NC,) = self._session.run(None, {"x": x.numpy()})
        return torch.from_numpy(logits_NC)


def _example(signature: Signature) -> Tensor:
    # Of any but 0 and 1, which torch.export takes for special.
    return torch.zeros((3, *signature.shape), dtype=signature.sample.dtype)


def _dynamic(signature: Signature) -> dict[int, Any]:
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if signature.shorter and signature.shape[0] > 1:
        sizes[1] = torch.export.Dim("tokens", max=signature.shape[0])
    return sizes


def _need_onnx() -> None:
    if lacking := missing(*_ONNX_PACKAGES):
        raise ExportError(
            f"format=onnx: expected the packages {', '.join(_ONNX_PACKAGES)}; {lacking[0]} is not "
            "installed. Install them: pip install 'mach[onnx]'"
        )


@contextmanager
def _exporting(name: str, others: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many kinds, and often wrapped
        raise ExportError(
            f"format={name}: expected a model that {name} has a form for; got "
            f"{type(error).__name__}: {_one_line(_root_of(error))}. Set format={others}."
        ) from error


def _root_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException, most: int = 300) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= most else f"{text[:most]}.."


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of what nobody who calls mach can change."""
    loggers = [
        logging.getLogger(),
        *map(logging.getLogger, ("torch.onnx", "onnxscript", "onnx_ir")),
    ]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
