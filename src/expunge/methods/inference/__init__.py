"""The same weights, asked differently."""
