"""One file a published format; each streams `Record`s and `Rejection`s."""
