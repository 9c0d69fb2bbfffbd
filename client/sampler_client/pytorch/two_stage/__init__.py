"""Two-stage selection, the trainer's half: candidates come from the service, a forward pass picks the batch."""
