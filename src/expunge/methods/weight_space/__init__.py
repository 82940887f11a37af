"""Without the loop: arithmetic, influence steps, closed-form edits."""
