"""Networks as ONNX files, written from their modules."""
