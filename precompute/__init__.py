"""Run the frozen encoders once over a source and write what they make into a cache."""
