"""Fine-tune a classifier of texts from any BERT, and predict with it."""
