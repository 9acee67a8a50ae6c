"""The benchmark: Mini-BERT and its peers on the same work. Started by scripts/benchmark.py."""
