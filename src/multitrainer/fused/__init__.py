"""One engine operation that updates all Parameters of a trainer, with the same bits as MXNet's own operators."""
