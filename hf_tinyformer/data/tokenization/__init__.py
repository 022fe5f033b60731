"""A tokenizer is trained on documents, and turns them into ids."""
