"""Next-scale image generation in plain PyTorch: models, tokenizers, sampling and acceleration policies."""
