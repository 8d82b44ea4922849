"""Other people's evaluation harnesses, which ask a model of this library."""
