"""Tests, and the parity runner ``python -m tests.parity``."""
