"""What reads through windows that move: convolution, pooling, the best match in a sentence."""
