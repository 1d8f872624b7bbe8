"""Train the Kandinsky 2.2 prior and decoder from a cache, with no encoder in memory."""
