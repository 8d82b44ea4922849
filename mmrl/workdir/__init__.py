"""What a run keeps in its working directory."""
