"""Building TensorRT engines: the library, its settings and profiles, the build, and what an engine's inspector says."""
