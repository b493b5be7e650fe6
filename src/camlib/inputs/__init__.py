"""What a model takes and what it returns, parsed once."""
