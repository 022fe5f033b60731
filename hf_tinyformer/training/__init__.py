"""Batches and a model become a checkpoint."""
