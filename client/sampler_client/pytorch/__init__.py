"""What needs torch: the DataLoader adapters and the gradient sketcher. Imported only when asked for."""
