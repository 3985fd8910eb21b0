"""Storage: the schema, and how batches are loaded from and written to SQLite and PostgreSQL.

database: engines, transactions that raise `Unavailable`, schema versions, and SQL functions that both databases need
tables: the schema as SQLAlchemy models
write_store: the interface of both write stores, and the conversion between rows and state
lookups: a portfolio by its name, a decision by its key
sqlite, sqlite_sql: the write store for SQLite and its statements
postgresql, postgresql_sql: the write store for PostgreSQL and its statements
memory, memory_database: the write store in memory, and the database that its reads see
state_cache: the portfolios that this process wrote last, so that its next batch need not load them
leases: which of several replicas runs a kind of scheduled work
"""
