"""Other answers, or another target distribution, in the place of the forget answers."""
