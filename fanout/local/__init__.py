"""What `fanout up` runs on one machine: an embedded Valkey, an embedded model, child processes."""
