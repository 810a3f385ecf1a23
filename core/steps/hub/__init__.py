"""Push a finished checkpoint to the Hugging Face Hub."""
