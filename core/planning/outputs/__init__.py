"""What happens to each output tensor."""
