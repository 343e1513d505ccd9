"""What the tests stand on: small wheels, an index on the loopback, spec repositories, waiting."""
