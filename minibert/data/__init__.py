"""Text -> batches of token ids, on the host: reading, tokenizing, packing, masking.

The files, in the order in which a text passes them: `corpus` (with `text_stream`, `stdlib_text`), `sentences`,
`tokenizer` and `vocabulary`, `token_file` (with `token_splitting`), `sequences`, `permutation`, `masking`,
`batch`, `batch_source`, `prefetch`.
"""
