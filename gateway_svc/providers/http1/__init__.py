"""A lean HTTP/1.1 client: what may be sent, what came back, and who holds which connection."""
