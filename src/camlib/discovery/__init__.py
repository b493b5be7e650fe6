"""Which layer to explain, found by the connections of the network's graph."""
