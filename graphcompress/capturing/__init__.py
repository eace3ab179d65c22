"""The front door: PyTorch modules and Hugging Face checkpoints become ONNX models."""
