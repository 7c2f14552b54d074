"""The transformer families, one file each."""
