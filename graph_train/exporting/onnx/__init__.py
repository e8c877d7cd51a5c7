"""Conversion of networks to ONNX models."""
