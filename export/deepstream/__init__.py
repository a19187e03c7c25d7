"""Models for DeepStream's nvinfer: a graph that it can feed and parse, and the configurations that say so."""
