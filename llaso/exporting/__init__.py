"""Exporting a model to formats that other programs run: GGUF files for llama.cpp, and a check of what it answers."""
