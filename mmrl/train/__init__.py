"""Training: makes a trained model and a report from a config."""
