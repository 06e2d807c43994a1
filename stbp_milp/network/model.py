"""The user's model twice: as a network to bound, and as the original to ask for predictions.

Nothing is verified on a network that does not agree with its original on sample inputs; counterexamples are judged
by the original alone. Both take clips, whatever shape the original's input has (`network.views`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor, nn

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.graph import Network
from stbp_milp.network.onnx_file import OnnxFile, open_onnx
from stbp_milp.network.onnx_reader import read_onnx
from stbp_milp.network.reading import Comparison, compared, is_large
from stbp_milp.network.torch_reader import private_copy, read_module
from stbp_milp.network.views import Axes, convolved_layouts, on_clips, predicts_clips

Predict = Callable[[np.ndarray], np.ndarray]  # (N, C, T, H, W) float32 -> (N, K)

_REFUSED = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


@dataclass(frozen=True, eq=False)
class Model:
    network: Network  # float64, its input a clip (C, T, H, W)
    predict: Predict  # the original model
    name: str
    digest: str  # sha256 of the file, or of the layers read from a module
    source: str  # the path, or the class of the module
    axes: Axes  # of the original's input
    reference: Predict | None = None  # the original in float64; None where it is large, or cannot run so

    def seen_as(self, layout: str) -> Model:
        """The same model with the axes of its own input named, see `network.views`.

        Raises:
            InputError: the layout is unknown, does not fit the input, or contradicts the first convolution.
        """
        axes = Axes.of(self.axes.shape, layout, self.axes.convolved)
        if self.axes.named:
            raise InputError(f"the axes of {self.name} are named already, {self.axes.layout}; name them once")
        if axes.contradicted:
            read = " or ".join(axes.convolved)
            raise InputError(
                f"layout {axes.layout} contradicts the first convolution of {self.name}, which reads the input as "
                f"{read}; leave the layout out, or name that one"
            )
        # Without a name the values have kept their order, so the network takes the model's own input but for its shape.
        reference = None if self.reference is None else _relaid(self.reference, self.axes, axes)
        network, predict = on_clips(self.network, axes), _relaid(self.predict, self.axes, axes)
        return replace(self, network=network, predict=predict, axes=axes, reference=reference)

    def compared(self, clips: np.ndarray) -> Comparison:
        """The network and the original on clips `(N, C, T, H, W)`, in float64 where the original can run so."""
        single = clips.astype(np.float32)
        said = np.concatenate([self.predict(clip[None]) for clip in single])  # one by one: layers of one are held
        if self.reference is None:
            return compared(self.network, said, single, torch.float32)
        expected = np.concatenate([self.reference(clip[None]) for clip in clips])
        return compared(self.network, expected, clips, torch.float64, said)


def load_model(
    source: str | Path | nn.Module, input_shape: Sequence[int] | None = None, layout: str | None = None
) -> Model:
    """Read a model and check the reading against the original.

    `input_shape` is the model's own, without the batch axis; a torch module needs it, a file only where it leaves
    axes open. `layout` names the axes, see `network.views`.

    Raises:
        UnsupportedLayerError: an operator has no rule.
        InputError: the model cannot be read, or the network read from it disagrees with the original.
    """
    own = _load_module(source, input_shape) if isinstance(source, nn.Module) else _load_onnx(source, input_shape)
    axes = own.axes
    reference = None if own.reference is None else predicts_clips(own.reference, axes)
    model = replace(
        own, network=on_clips(own.network, axes), predict=predicts_clips(own.predict, axes), reference=reference
    )
    model = model if layout is None else model.seen_as(layout)
    return _checked(model)


def load_model_for(clip: Tensor, source: str | Path | nn.Module, layout: str | None = None) -> Model:
    """`load_model` where there is a clip, whose shape counts for a module and where a file leaves axes open.

    Raises:
        UnsupportedLayerError, InputError: as `load_model`.
    """
    if isinstance(source, nn.Module):
        return load_model(source, tuple(clip.shape), layout)
    try:
        return load_model(source, layout=layout)
    except UnsupportedLayerError:
        raise
    except InputError:
        return load_model(source, tuple(clip.shape), layout)


def _load_module(module: nn.Module, input_shape: Sequence[int] | None) -> Model:
    name = type(module).__name__
    if input_shape is None:
        raise InputError(f"the input shape of module {name} is unknown; give input_shape, as in (1, 8, 16, 16)")
    network = read_module(module, input_shape)
    reference = None if is_large(network) else _module_predict(module, torch.float64)
    digest, source = _network_digest(network), f"torch module {name}"
    return Model(network, _module_predict(module), name, digest, source, _axes(network), reference)


def _load_onnx(path: str | Path, input_shape: Sequence[int] | None) -> Model:
    file = open_onnx(path, input_shape)
    name = file.path.name.removesuffix(".gz").removesuffix(".onnx")
    network = read_onnx(file)
    return Model(network, _onnx_predict(file), name, file.digest, str(path), _axes(network))


def _axes(network: Network) -> Axes:
    return Axes.of(network.input_shape, convolved=convolved_layouts(network))


def _relaid(predict: Predict, before: Axes, after: Axes) -> Predict:
    """`predict` on clips of one layout as the same on those of another; before, values keep their order."""
    return predicts_clips(lambda inputs: predict(inputs.reshape(len(inputs), *before.clip)), after)


# --- the original -----------------------------------------------------------------------------------------


def _module_predict(module: nn.Module, dtype: torch.dtype | None = None) -> Predict:
    """Runs a copy of the module in its own floating-point type, or in another."""
    own = private_copy(module)
    own = own if dtype is None else own.to(dtype)
    sample = next(itertools.chain(own.parameters(), own.buffers()), torch.empty(0))
    dtype = dtype or (sample.dtype if sample.is_floating_point() else torch.float32)

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = own(torch.from_numpy(np.array(clips)).to(sample.device, dtype))
        result: np.ndarray = scores.cpu().numpy()
        return result

    return predict


def _onnx_predict(file: OnnxFile) -> Predict:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong arrives as an exception; nothing is printed
    try:
        session = onnxruntime.InferenceSession(
            str(file.path) if file.external else file.content, options, providers=["CPUExecutionProvider"]
        )
    except _REFUSED as error:
        raise InputError(f"onnxruntime cannot load {file.path}: {error}; export the model again") from error

    def run(clips: np.ndarray) -> np.ndarray:
        scores: np.ndarray = session.run([file.output_name], {file.input_name: clips.astype(file.dtype)})[0]
        return scores

    group = file.batch if file.batch is not None else _group(run, file.input_shape)
    return run if group is None else _in_groups(run, group)


def _group(run: Predict, input_shape: tuple[int, ...]) -> int | None:
    """1 where the file leaves the batch axis open but works for one clip only (a fixed Reshape), else None."""
    try:
        scores = run(np.zeros((2, *input_shape), dtype=np.float32))
    except _REFUSED:
        return 1
    return None if scores.shape[:1] == (2,) else 1


def _in_groups(run: Predict, group: int) -> Predict:
    def predict(clips: np.ndarray) -> np.ndarray:
        missing = -len(clips) % group
        filled = np.concatenate([clips, np.repeat(clips[-1:], missing, axis=0)])
        parts = [run(filled[start : start + group]) for start in range(0, len(filled), group)]
        return np.concatenate(parts)[: len(clips)]

    return predict


# --- checks -----------------------------------------------------------------------------------------------


def _checked(model: Model) -> Model:
    """The model, if its network agrees with the original; without a reference, if that cannot run in float64."""
    samples = _samples(model.network.input_shape)
    try:
        expected = model.predict(samples)
    except (*_REFUSED, RuntimeError) as error:
        raise InputError(
            f"{model.source} cannot run on clips of shape {model.network.input_shape}: {error}; "
            "check the input shape and that the model takes several clips at once"
        ) from error
    if expected.shape != (len(samples), *model.network.output_shape):
        raise InputError(
            f"{model.source} returns shape {expected.shape} for {len(samples)} clips, the network read from it "
            f"{(len(samples), *model.network.output_shape)}; expected one flat row of scores per clip"
        )
    if model.reference is not None:
        try:
            model.reference(samples[:1])
        except (RuntimeError, TypeError):  # a part insists on float32
            model = replace(model, reference=None)
    if wrong := model.compared(samples).disagreement:
        raise InputError(
            f"the network read from {model.source} disagrees with the original at output {wrong.output} of sample clip "
            f"{wrong.clip}: {wrong.read:.6g} instead of {wrong.expected:.6g} (difference "
            f"{abs(wrong.read - wrong.expected):.3g}, rounding explains {wrong.allowed:.3g}); the model uses an "
            "operator in a way that is read wrongly, report it"
        )
    return model


def _samples(input_shape: tuple[int, ...]) -> np.ndarray:  # (4, *input_shape) float32
    """Three clips in the usual domain [0, 1] and one around it."""
    generator = np.random.default_rng(0)
    inside = generator.random((3, *input_shape), dtype=np.float32)
    return np.concatenate([inside, generator.standard_normal((1, *input_shape), dtype=np.float32)])


def _network_digest(network: Network) -> str:
    digest = hashlib.sha256()
    for node in network.nodes:
        digest.update(repr((type(node.layer).__name__, node.inputs, node.shape)).encode())
        for field in fields(node.layer):
            setting = getattr(node.layer, field.name)
            if isinstance(setting, Tensor):
                digest.update(repr((field.name, tuple(setting.shape), str(setting.dtype))).encode())
                digest.update(setting.cpu().contiguous().numpy().tobytes())
            else:
                digest.update(repr((field.name, setting)).encode())
    return digest.hexdigest()
