"""The tests. Their folders mirror the house; `support/` has what several of them share."""
