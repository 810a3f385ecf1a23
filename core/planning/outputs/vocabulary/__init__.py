"""Rows by token: different vocabularies, new tokens, padding, token ids."""
