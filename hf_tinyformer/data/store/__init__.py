"""Ids of a corpus lie on disk, and become batches."""
