"""Read models: exposure, positions, overview, exposure over time, and explanations. Reads never wait for the writer."""
