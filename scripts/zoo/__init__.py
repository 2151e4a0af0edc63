"""Small ordinary networks, trained to see whether an optimizer with its defaults survives them."""
