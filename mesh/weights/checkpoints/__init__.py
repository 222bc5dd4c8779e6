"""Checkpoints as the world has them: GGUF, Hugging Face, Meta; their tensors, configs and tokenizers, read without trust."""
