"""The PyTorch backend: tensors without autograd, on every device that PyTorch reaches."""
