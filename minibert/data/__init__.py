"""Turn text into batches of token ids, on the host, with NumPy.

A text passes these steps; each step is one file:

1. `corpus.py` finds the files, and yields their documents and sentences.
2. `tokenizer.py` turns sentences into token ids (WordPiece).
3. `token_file.py` writes the ids of a whole corpus to disk, once, in two splits: train and evaluation.
4. `sequences.py` reads sequences of T tokens from a split: packed sequences, or next-sentence pairs.
5. `masking.py` chooses the tokens to predict and hides them.
6. `batch_source.py` puts steps 4 and 5 together: the `Batch` of any training step.

These helpers can be skipped at a first reading:

- for `corpus.py`: `text_stream.py` decodes files into lines, `stdlib_text.py` is the corpus named `stdlib`;
- for `tokenizer.py`: `tokenizer_files.py` checks the files on disk, `vocabulary.py` trains a new vocabulary;
- for `token_file.py`: `token_splitting.py` decides which sentences are held out for evaluation;
- for `batch_source.py`: `permutation.py` computes the random order of an epoch, `prefetch.py` makes the next
  batches in a background thread.
"""
