"""Files to `Checkpoint` and back: one middle type between every reader and every writer."""
