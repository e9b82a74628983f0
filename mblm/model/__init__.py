"""The model itself: stage blocks, embeddings and the hierarchy."""
