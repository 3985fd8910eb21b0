"""Reads settings from the environment and `.env`, beside the variables of whatever else runs there.

A bot has variables of its own: `EXCHANGE=bybit`, `SERVICE_PORT=web`, `LOG_LEVEL=trace`. What a ledger inside of the bot
does not use must not stop it. So a section that a ledger never reads may be wrong: it then raises when it is used.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import CREDENTIALS

S = TypeVar("S", bound="Settings")


class Settings(BaseSettings):
    """Base of the settings classes: frozen, reads `.env`, and its errors name the setting and its value."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise as_invalid_request(error, self.model_config.get("env_prefix", "")) from None
        except SettingsError as error:
            section = "".join(re.findall(r'field "(\w+)"', str(error)))
            raise _not_json(section, self.model_config.get("env_prefix", "")) from None
        except (UnicodeDecodeError, OSError) as error:
            raise InvalidRequest(f"the file .env of this folder cannot be read as UTF-8: {error}") from None


class Sections(Settings):
    """Base of the settings that consist of others. later: sections that may be wrong until they are used."""

    later: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the place in the signature is given
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read variables with a section's name as `_SectionValues` does."""
        file = dotenv_settings.env_file if isinstance(dotenv_settings, DotEnvSettingsSource) else None
        return (init_settings, _Environment(settings_cls), _DotEnv(settings_cls, file), file_secret_settings)


class _SectionValues(EnvSettingsSource):
    """A variable with a section's name is a JSON object with its fields; any other text is another program's."""

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            value = None
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError:
            if field_name in getattr(self.settings_cls, "later", ()):
                return _not_json(field_name, "")
            raise


class _Environment(_SectionValues):
    """The variables of the process."""


class _DotEnv(_SectionValues, DotEnvSettingsSource):
    """The lines of `.env`."""


def read_later(kind: type[S], name: str, value: Any, read: Callable[[Any], S]) -> S:
    """Return a section; where it is wrong one that raises the error when it is used."""
    if isinstance(value, InvalidRequest):
        return _unreadable(kind, value)
    try:
        return read(value)
    except ValidationError as error:
        return _unreadable(kind, as_invalid_request(error, "", name))


def require_readable(section: Settings) -> None:
    """Raise the error of a section that could not be read."""
    error = getattr(type(section), "unreadable", None)
    if error is not None:
        raise error


def _unreadable(kind: type[S], error: InvalidRequest) -> S:
    class Unreadable(kind):  # type: ignore[valid-type, misc]
        unreadable: ClassVar[InvalidRequest] = error

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise InvalidRequest(str(error), field=error.field)

    made: S = Unreadable.__new__(Unreadable)
    for name, value in (("__dict__", {}), ("__pydantic_fields_set__", set()), ("__pydantic_extra__", None)):
        object.__setattr__(made, name, value)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


def as_invalid_request(error: ValidationError, prefix: str, section: str = "") -> InvalidRequest:
    """Convert the first error. Name the setting and its variable, and the value unless it may be a secret."""
    first = error.errors(include_url=False)[0]
    what = first["msg"].removeprefix("Value error, ")
    name = ".".join(str(part) for part in (*([section] if section else []), *first["loc"]))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest) and cause.field is not None:
        # A section refused one of its own fields. Name its variable in both forms in which it may have been written.
        nested = f"{name}__{cause.field}".upper()
        return InvalidRequest(f"{cause} (or environment {nested})", field=f"{name}.{cause.field}")
    if not name:
        return InvalidRequest(f"settings: {what}")
    scalar = isinstance(first["input"], str | int | float | Decimal)
    shown = "" if _is_secret(name) or not scalar else f", got {first['input']!r}"
    variable = f"{prefix}{name.replace('.', '__')}".upper()
    return InvalidRequest(f"setting {name} (environment {variable}): {what}{shown}", field=name)


def _not_json(section: str, prefix: str) -> InvalidRequest:
    name = section.upper()
    form = f"a section's JSON; set its fields one by one, as in {name}__NAME" if not prefix else "valid JSON"
    return InvalidRequest(f"environment {prefix}{name} is not {form}", field=section)


def _is_secret(name: str) -> bool:
    """Return True for credentials, and for URLs and options, which may contain one."""
    return any(part in name for part in ("secret", "key", "url", "pass", "options", *CREDENTIALS))
