"""What an operator may set: strict structs, every default once, with its unit and reason."""
