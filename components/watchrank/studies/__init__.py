"""Studies: the questions that the papers leave open, answered by trained models on one's own data."""
