"""Short videos of things being moved: kitchens, questions and files."""
