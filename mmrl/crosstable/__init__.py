"""Two models crossed with each other's texts, by teacher forcing."""
