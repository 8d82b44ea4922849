"""Objects in a picture: scenes, questions, facts, thoughts and pairs."""
