"""How different layouts can get, and what it costs in right pictures: `python -m scripts.diversity`."""
