"""The domain model: money units, instruments, positions, commands, decisions and errors. Frozen types without I/O."""
