"""One answer of a model about files, and pictures of its attention."""
