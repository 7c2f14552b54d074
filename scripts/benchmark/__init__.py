"""What ``bench.py`` is made of: the models it measures, what it compares, and the machine it runs on."""
