"""What pictures are asked for: encoded texts and class labels."""
