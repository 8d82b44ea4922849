"""How good a model is on questions it was not trained on."""
