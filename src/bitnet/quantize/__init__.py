"""The quantisers and bit layouts in NumPy: the one definition that every engine reproduces."""
