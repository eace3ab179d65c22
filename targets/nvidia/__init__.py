"""gpu and tensorrt: precisions written into the graph, engines compiled and run."""
