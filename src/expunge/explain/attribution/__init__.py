"""Which records an answer comes from: one attribution, one file."""
