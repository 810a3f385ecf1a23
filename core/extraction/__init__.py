"""Make a LoRA adapter of a full fine-tune."""
