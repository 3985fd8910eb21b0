"""History: past decisions in the database and in archive files, exposure as of any of them, backups and copies."""
