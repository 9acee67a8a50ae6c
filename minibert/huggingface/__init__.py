"""Read and write checkpoint folders in Hugging Face's format."""
