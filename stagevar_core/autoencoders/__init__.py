"""Image tokenizers: images to codes per scale, accumulated codes back to images."""
