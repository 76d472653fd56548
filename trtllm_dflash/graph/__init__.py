"""The step graph: ONNX written directly, one iteration of draft, verify and accept."""
