"""What all tables share: their base with its naming convention, and the types of their columns."""

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Key = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Declarative base with the naming convention for constraints."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {int: BigInteger, str: Text}  # noqa: RUF012 - SQLAlchemy reads it from the class


def index_where(condition: str) -> Any:
    """Return the arguments of an index of the rows that a condition holds for."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}
