"""What the service adds to an epoch of each recipe, against the same script on its own DataLoader."""
