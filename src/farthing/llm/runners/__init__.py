"""Forward passes: one contract, one file a way of computing it."""
