"""A discrete tokenizer of images, and dynamics that dream in its tokens."""
