"""How updates combine: folds over rows of a bank."""
