"""What several tests share: the matrix of backends, comparisons, small models and runs, an emulated CUDA device."""
