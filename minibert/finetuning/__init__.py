"""Fine-tuning a classifier of texts from any BERT, and predicting with it; on the host, like `minibert.data`."""
