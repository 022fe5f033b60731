"""Text becomes batches. Knows no model."""
