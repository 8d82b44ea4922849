"""Terms that supervise visual states: alignment and reconstruction."""
