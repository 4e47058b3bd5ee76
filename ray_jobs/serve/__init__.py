"""The OpenAI-compatible endpoint on Ray Serve: one immutable application a model version, a small router before them."""
