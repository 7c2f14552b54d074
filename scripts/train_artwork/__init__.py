"""Trains the embedded model of the VAR family on openly licensed emoji artwork; see docs/artwork-model.md."""
