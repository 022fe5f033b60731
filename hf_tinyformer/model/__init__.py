"""Exactly what a checkpoint carries: configuration and model, plain torch and transformers."""
