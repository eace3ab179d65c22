"""The op table: for every ONNX operator a small function that writes it with torch.fx; a file per family."""
