"""History: past decisions in the database and in archive files, exposure as of any of them, backups and copies.

times: finds decisions by their time
history: finds decisions by filters, in the live tables and in archive files
as_of: exposure after any past decision
archive_files: format, writing and reading of archive files
archiver: moves old decisions and their ended positions into archive files
backup: online backup of a SQLite file, and copy from one database to another
"""
