"""Models: finding and downloading them, and loading their tokenizers, float weights and exact weights."""
