"""What a run of a strategy on a benchmark needs: its models and its file."""
