"""One plan of scales for a network of Witmem layers."""
