"""Memory embeddings: where they enter the LM (sites), how they are fitted, and how they are packed."""
