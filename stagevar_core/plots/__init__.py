"""Charts for people, with Pillow alone."""
