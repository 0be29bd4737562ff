"""Exporting a model to files that other programs run: GGUF for llama.cpp, ONNX for ONNX Runtime, programs for
ExecuTorch; with a check of each against the model.
"""
