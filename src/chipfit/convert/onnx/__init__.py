"""ONNX files of other tools as plain torch networks."""
