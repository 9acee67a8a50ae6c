"""Hugging Face checkpoint folders, read and written."""
