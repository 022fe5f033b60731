"""A model gives numbers and words: evaluation, generation, sizes."""
