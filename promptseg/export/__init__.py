"""Trained networks as ONNX files, for use without promptseg and without torch."""
