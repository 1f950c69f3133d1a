"""What an encoder costs: FLOPs, latency, memory."""
