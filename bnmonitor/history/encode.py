"""Turn arrays and JSON into the values of a TensorBoard summary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bnmonitor.history.schema import PLUGIN

if TYPE_CHECKING:
    import numpy as np
    from tensorboard.compat.proto.summary_pb2 import Summary


def floats(tag: str, array: np.ndarray[Any, Any], description: bytes = b"") -> Summary.Value:
    """Return a value that holds an array as float32 of the same shape."""
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in array.shape]
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_FLOAT,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims),
        tensor_content=array.astype("<f4").tobytes(),
    )
    return _value(tag, tensor, description)


def plain(tag: str, thing: object) -> Summary.Value:
    """Return a value that holds plain types as JSON."""
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    text = json.dumps(thing, allow_nan=False).encode()
    shape = tensor_shape_pb2.TensorShapeProto()
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[text])
    return _value(tag, tensor, b"")


def _value(tag: str, tensor: Any, description: bytes) -> Summary.Value:
    from tensorboard.compat.proto import summary_pb2

    # Without a data class TensorBoard's data server drops the value.
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN, content=description)
    metadata = summary_pb2.SummaryMetadata(data_class=summary_pb2.DATA_CLASS_TENSOR, plugin_data=plugin)
    return summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
