"""A checkpoint goes out: the final folder, its card, the Hub."""
