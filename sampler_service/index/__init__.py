"""Stage 2: distances, clusters and neighbours of sketches; the only home of FAISS."""
