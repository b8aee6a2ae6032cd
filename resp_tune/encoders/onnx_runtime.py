"""Run ONNX files with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from resp_tune.common.text import shorten
from resp_tune.encoders.layers import Graph, Layer
from resp_tune.errors import UserError

LIBRARIES = "onnx and onnxruntime"


def read_graph(content: bytes) -> Graph:
    """Return what an ONNX file holds; raise `UserError` for one that cannot be used."""
    import onnx

    model = _load(content)
    weights = {w.name for w in model.graph.initializer}
    inputs = [x for x in model.graph.input if x.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"it has {len(inputs)} inputs, an encoder has one")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise UserError("its input is not float32: export it with a float32 input")
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:  # InferenceError derives from Exception alone
        raise UserError(f"onnx cannot read it ({shorten(str(error), 120)})") from error
    known = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output)}
    layers, heard = list[Layer](), {inputs[0].name}  # what is computed from the input
    for node in model.graph.node:
        heard.update(node.output if heard.intersection(node.input) else ())
    for index, name in enumerate(n for node in model.graph.node for n in node.output):
        found = known.get(name)
        if name in heard and (found is None or _is_kept(found)):
            layers.append(Layer(index, name, () if found is None else _shape(found)))
    if not layers:
        raise UserError("it computes nothing that can be kept")
    facts = tuple((entry.key, entry.value) for entry in model.metadata_props)
    output = model.graph.output[0].name
    return Graph(_shape(kind), tuple(layers), output, ("NCTF", "NTC"), facts)


def session(
    content: bytes, layers: Sequence[Layer], input_shape: tuple[int, ...]
) -> Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    """Return a function from one input to the values of `layers`, float32.

    Inner layers are made outputs of the graph, which `input_shape` does not change.
    """
    import onnx
    import onnxruntime

    model = _load(content)
    outputs = {x.name for x in model.graph.output}
    for layer in layers:
        if layer.name not in outputs:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(layer.name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        runtime = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own classes, which derive from Exception alone
        raise UserError(f"onnxruntime cannot run it ({shorten(str(error), 120)})") from error
    given, names = runtime.get_inputs()[0].name, [layer.name for layer in layers]

    def run(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        return [np.asarray(x, np.float32) for x in runtime.run(names, {given: values})]

    return run


def _load(content: bytes) -> Any:
    """Return the model in an ONNX file, all of whose weights are in the file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise UserError("it is damaged, or no ONNX file") from error
    if not model.graph.node or not model.graph.output:
        raise UserError("it is damaged, or no ONNX file: it computes nothing")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UserError(
                "its weights are in other files: save it as one file "
                "(onnx.save(model, path, save_as_external_data=False))"
            )
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Yield all tensors with values in a message of an ONNX file, however deep."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            several = value if hasattr(value, "__len__") else [value]
            for one in several:
                yield from _tensors(one)


def _is_kept(tensor: Any) -> bool:
    """Return whether a tensor may hold frames of floats, as far as its type tells."""
    import onnx

    kinds = onnx.TensorProto
    floats = (kinds.UNDEFINED, kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE)
    fits = not tensor.HasField("shape") or 1 <= len(tensor.shape.dim) <= 4
    return tensor.elem_type in floats and fits


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(max(d.dim_value, 0) for d in tensor.shape.dim)
