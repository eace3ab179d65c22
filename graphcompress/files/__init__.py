"""ONNX files: read and checked, parts joined and written, tensors that stay on disk."""
