"""Storage: the schema, database engines, and what a batch loads from and writes to SQLite and PostgreSQL."""
