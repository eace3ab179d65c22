"""Operators that ONNX Runtime fuses, each written again in standard ones: one small rule per operator."""
