"""Everything learnt is a vector: its layout, banks of it, optimizers on it, and the random streams."""
