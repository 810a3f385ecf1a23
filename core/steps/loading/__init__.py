"""Load a finished checkpoint as its users do: values, keys, tokenizer, generation, perplexity."""
