"""How fast records come: from the service, from a plain DataLoader, from MosaicML Streaming and WebDataset."""
