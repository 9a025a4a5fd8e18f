"""Weights, tokenizer and configuration as they lie on disk: GGUF files and Hugging Face folders, one face for both."""
