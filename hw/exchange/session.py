"""One way to open an ONNX graph in onnxruntime, for programs and for the host's models. Needs no `onnx`."""

from typing import Any

_ENTRIES = {"session.disable_quant_qdq": "1"}  # or DequantizeLinear + MatMul become MatMulNBits, which is not exact


def session_of(model: bytes | str) -> Any:
    """An onnxruntime session on the CPU that keeps integers exact. model: a serialised graph, or a file's path."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in _ENTRIES.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
