"""Use a trained model: load it, fill masks, embed sentences. Imports are few, so that a command starts fast."""
