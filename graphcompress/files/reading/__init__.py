"""Reads an ONNX file: decoded, whole, well-formed, or refused in one sentence."""
