#!/usr/bin/env python3
"""Write ledger_sizer/verify/schema_head.json: the schema as the migrations make it, which `verify` compares with.

python scripts/schema_snapshot.py POSTGRESQL_URL            # of an empty database
"""

import json
import sys
import tempfile

from ledger_sizer.storage.database import make_engine, upgrade
from ledger_sizer.verify.schema import EXPECTED_FILE, read_schema


def main(arguments: list[str]) -> int:
    """Migrate an empty database of each engine, and write what it then has. Returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        urls = {"sqlite": f"sqlite:///{folder}/empty.db", "postgresql": arguments[0]}
        EXPECTED_FILE.write_text(schemas_text({engine: _migrated(url) for engine, url in urls.items()}))
    return 0


def schemas_text(schemas: dict[str, dict[str, str]]) -> str:
    """Return the text of the file, in an order of its own."""
    return json.dumps(schemas, indent=1, sort_keys=True) + "\n"


def _migrated(url: str) -> dict[str, str]:
    upgrade(url)
    engine = make_engine(url, read_only=True)
    with engine.begin() as connection:
        schema = read_schema(connection)
    engine.dispose()
    return schema


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
