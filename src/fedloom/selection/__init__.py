"""Who trains in a round."""
