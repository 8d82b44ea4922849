"""Training: config in, trained model and report out."""
