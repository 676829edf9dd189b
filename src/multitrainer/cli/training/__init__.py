"""What is trained and how: the network, its groups, learning rates, cached features, the loop."""
