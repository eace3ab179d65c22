"""openvino: OpenVINO as a provider of ONNX Runtime."""
