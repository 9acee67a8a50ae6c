"""The parts of scripts/benchmark.py: Mini-BERT and its peers (implementations in PyTorch) do the same work."""
