"""Pretraining: one command from text to a trained model. `scripts/train.py` is its command line."""
