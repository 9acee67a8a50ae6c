"""Using a trained model: sentence embeddings, on the host side like `minibert.data`. Starts fast on purpose."""
