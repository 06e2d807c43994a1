"""An ONNX file on disk: its bytes, the parsed model, and the one input and output we verify."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from stbp_milp.errors import InputError

_FLOATS: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}


@dataclass(frozen=True, eq=False)
class OnnxFile:
    path: Path
    content: bytes  # of the uncompressed model, without tensors kept in other files
    model: onnx.ModelProto
    digest: str  # sha256 of the file as it lies, and of the files with its tensors if there are any
    external: bool  # some tensors lie in other files
    input_name: str
    output_name: str
    batch: int | None  # None: any number of clips at once
    input_shape: tuple[int, ...]  # without the batch axis
    dtype: str  # numpy name of the input's type


def open_onnx(path: str | Path, input_shape: Sequence[int] | None = None) -> OnnxFile:
    """Parse an `.onnx` or `.onnx.gz` file; `input_shape` (no batch axis) settles axes that the file leaves open.

    Raises:
        InputError: no such file, no ONNX model, or an input this package cannot use.
    """
    path = Path(path)
    raw = _read(path)
    content = _decompress(path, raw) if path.name.endswith(".gz") else raw
    model = _parse(path, content)
    locations = sorted({ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)})
    if locations:
        _load_external(path, model)
    _check(path, model)
    digest = hashlib.sha256(raw)
    for location in locations:
        digest.update((path.parent / location).read_bytes())
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InputError(
            f"{path} has inputs {[value.name for value in inputs]} and outputs "
            f"{[value.name for value in model.graph.output]}; expected one of each, export the classifier alone"
        )
    batch, shape = _shape(path, inputs[0], input_shape)
    return OnnxFile(
        path=path,
        content=content,
        model=model,
        digest=digest.hexdigest(),
        external=bool(locations),
        input_name=inputs[0].name,
        output_name=model.graph.output[0].name,
        batch=batch,
        input_shape=shape,
        dtype=_dtype(path, inputs[0]),
    )


def _read(path: Path) -> bytes:
    if not path.name.endswith((".onnx", ".onnx.gz")):
        raise InputError(f"{str(path)!r} is no ONNX file by its name; expected .onnx or .onnx.gz")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {str(path)!r}; give the path of an .onnx or .onnx.gz file") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _decompress(path: Path, raw: bytes) -> bytes:
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or not gzip-compressed ({error}); fetch it again") from error


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InputError(
            f"{path} is not an ONNX model, or was cut off ({len(content)} bytes arrived); export or fetch it again"
        ) from error
    if not model.graph.node:
        raise InputError(f"{path} holds no operator ({len(content)} bytes); expected an ONNX model, export it again")
    return model


def _load_external(path: Path, model: onnx.ModelProto) -> None:
    if path.name.endswith(".gz"):
        raise InputError(f"{path} keeps tensors in other files, which .onnx.gz cannot; give the uncompressed .onnx")
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} keeps tensors in another file that cannot be read: {error}") from error


def _check(path: Path, model: onnx.ModelProto) -> None:
    for value in model.graph.output:
        value.type.tensor_type.shape.SetInParent()  # the checker wants one, onnxruntime and we do not
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path} is no valid ONNX model: {str(error).strip()}; export it again") from error


def _dtype(path: Path, value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    if kind not in _FLOATS:
        raise InputError(
            f"input {value.name!r} of {path} holds {onnx.TensorProto.DataType.Name(kind)}; expected FLOAT or DOUBLE"
        )
    return _FLOATS[kind]


def _shape(path: Path, value: onnx.ValueInfoProto, wanted: Sequence[int] | None) -> tuple[int | None, tuple[int, ...]]:
    axes = value.type.tensor_type.shape.dim
    if len(axes) < 2:
        raise InputError(
            f"input {value.name!r} of {path} has {len(axes)} axes; expected a batch axis and at least one more, "
            "as in (N, C, T, H, W)"
        )
    declared = [axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None for axis in axes]
    batch, own = declared[0], declared[1:]
    if wanted is None:
        wanted = [length for length in own if length is not None]
    if len(wanted) != len(own) or any(n is not None and n != w for n, w in zip(own, wanted, strict=False)):
        described = ", ".join(axis.dim_param or str(axis.dim_value or "?") for axis in axes)
        raise InputError(
            f"input {value.name!r} of {path} has shape ({described}), batch axis first; "
            f"expected {'fixed lengths' if None in own else 'input shape ' + str(tuple(own))} after the batch axis, "
            f"{'and' if None in own else 'but'} the input shape given is {tuple(wanted) if wanted else 'none'}: "
            "export with fixed lengths or give the matching input shape"
        )
    return batch, tuple(int(length) for length in wanted)
