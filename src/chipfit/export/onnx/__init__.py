"""Integer programs as standard ONNX."""
