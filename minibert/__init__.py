"""BERT by hand: model, gradients and training, for every library of the Python Array API standard."""
