"""A small trained model in a large one's shape: the same function, every byte of the large model's weights."""
