"""Arguments and results as bytes: signatures, types and limits.

A payload is msgpack of ``[args, kwargs]`` in one canonical form, however the call was written: positional parameters by
position up to the first that is left out, the others by name in the order of the signature, free keyword arguments
sorted. Defaults are not filled in: they are the worker's. A datetime with a zone comes back as the same moment in UTC.

A call of plain scalars is checked by one comparison of types. Everything else is checked three times over: against
the annotated types (so that a date is not taken for the text it would be stored as), by reading it back the way the
worker will, and for depth. Errors are looked for again, slowly, to name the parameter.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import itertools
import math
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from spool import opaque
from spool.errors import ArgumentError, ConfigError, PayloadError, PayloadTooLarge
from spool.job import task_fingerprint

DEPTH: Final = 64
"""How deep one argument or result may nest."""

MAX_PAYLOAD: Final = 1024 * 1024
"""Default limit of a payload or result, in bytes."""

Arguments = tuple[Sequence[Any], Mapping[str, Any]]

_SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})
_PLAIN: Final = _SCALARS - {float}
# Instances of just these classes need no conversion to the type of that name: what is in them may be anything.
_EXACT: Final = _SCALARS | {list, dict, set, frozenset}
_NATIVE: Final = (
    bytes,
    bytearray,
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    uuid.UUID,
    decimal.Decimal,
)
# A float64 that is NaN or infinite; the same bytes may also occur by chance within binary data.
_MAYBE_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search


def _to_builtin(value: Any) -> Any:
    # pydantic models are known by their methods: an import would cost those who do not use them.
    if dump := getattr(value, "model_dump", None):
        return dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    raise TypeError(f"objects of type {type(value).__qualname__} cannot be stored")


def _from_builtin(wanted: Any, value: Any) -> Any:
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    if validate := getattr(wanted, "model_validate_json", None):
        # Through JSON, so that models in strict mode take text for a date, as they do from their own JSON.
        return validate(msgspec.json.encode(value))
    raise TypeError(f"objects of type {getattr(wanted, '__qualname__', wanted)} cannot be restored")


_encode: Final = msgspec.msgpack.Encoder(enc_hook=_to_builtin).encode
_encode_sorted: Final = msgspec.msgpack.Encoder(enc_hook=_to_builtin, order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder().decode
_split: Final = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]).decode
_Nothing = typing.Annotated[dict[str, Any], msgspec.Meta(max_length=0)]


class Parameter(NamedTuple):
    """One parameter of a task: its annotated type, how it is read, and the class whose instances need no check."""

    name: str
    type: Any
    exact: type | None
    required: bool
    decode: Callable[[msgspec.Raw | bytes], Any]


class Signature:
    """How calls of one function are checked, stored and read. Everything costly is done once.

    Raises `ConfigError` if an annotation cannot be resolved, or names a type that cannot be restored.
    """

    def __init__(self, task: str, fn: Callable[..., Any]) -> None:
        self._task = task
        self.declared: list[tuple[inspect.Parameter, Any]] = []
        """Every parameter, with what it is restored as."""
        hints = _hints(task, fn)
        self._positional: list[Parameter] = []
        self._keyword: dict[str, Parameter] = {}  # all that may be given by name
        self._rest: Parameter | None = None
        self._free: Parameter | None = None
        for each in inspect.signature(fn).parameters.values():
            self._add(each, hints.get(each.name, Any))
            self.declared.append((each, hints.get(each.name, Any)))
        self._names = [each.name if each.name in self._keyword else None for each in self._positional]
        self._least = sum(each.required for each in self._positional)
        self._most = len(self._positional)
        named = list(self._keyword.values())
        self._only_named = [each for each in named if each not in self._positional]
        self._by_position = not any(each.required for each in self._only_named)
        exact = tuple(each.exact for each in self._positional)
        # The types of the arguments that need no further check; no call has the one that stands in for "none".
        self._plain = exact if self._by_position and _SCALARS.issuperset(exact) else (Signature,)
        self._readers: dict[int, Callable[[msgspec.Raw | bytes], Arguments]] = {}
        self._read_result = _decoder(task, "its return type", hints.get("return", Any))

    def _add(self, each: inspect.Parameter, annotation: Any) -> None:
        kind = each.kind
        parameter = Parameter(
            each.name,
            annotation,
            annotation if isinstance(annotation, type) and annotation in _EXACT else None,
            each.default is each.empty and kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD),
            _decoder(self._task, f"parameter {each.name!r}", annotation),
        )
        if kind is each.VAR_POSITIONAL:
            self._rest = parameter
        elif kind is each.VAR_KEYWORD:
            self._free = parameter
        else:
            if kind is not each.KEYWORD_ONLY:
                self._positional.append(parameter)
            if kind is not each.POSITIONAL_ONLY:
                self._keyword[each.name] = parameter

    # Writing

    def write(self, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int) -> bytes:
        """Return the payload of a call. Raises `ArgumentError`, `PayloadError` or `PayloadTooLarge`."""
        if kwargs:
            args, kwargs = self._bind(args, kwargs)
        if kwargs or (*map(type, args),) != self._plain:
            args, kwargs = self._check(*self._bind(args, kwargs))
        try:
            payload = _encode((args, kwargs))
        except Exception as error:
            raise self._blame(args, kwargs, error) from error
        if len(payload) > limit:
            raise self._too_large(args, kwargs, len(payload), limit)
        if b"\xcb" in payload and _MAYBE_NOT_FINITE(payload):
            for parameter, value in self._pairs(args, kwargs):
                if isinstance(value, float) and not math.isfinite(value):
                    raise self._error(PayloadError, parameter.name, _NOT_FINITE)
        return payload

    def fingerprint(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return 24 hex digits that are equal for equal calls, in every process: sets and dicts are sorted first.

        The first 8 are of the task alone (`task_fingerprint`).
        """
        import hashlib  # only for calls with an id

        args, kwargs = self._check(*self._bind(args, kwargs))
        canonical = self._task.encode() + b"\0" + _encode_sorted((args, kwargs))
        return task_fingerprint(self._task) + hashlib.blake2b(canonical, digest_size=8).hexdigest()

    def _bind(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Arguments:
        given = len(args) + len(kwargs)
        if self._by_position and self._least <= given <= self._most:
            try:
                return [*args, *[kwargs[name] for name in self._names[len(args) : given]]], {}
            except KeyError:
                pass  # one is left out, or the call is wrong
        return self._bind_names(args, dict(kwargs))

    def _bind_names(self, args: Sequence[Any], left: dict[str, Any]) -> Arguments:
        for name in left:
            self._parameter(name)
        for parameter, _ in zip(self._parameters(args), args, strict=True):
            if parameter.name in left and parameter.name in self._keyword:
                raise self._error(ArgumentError, parameter.name, "given by position and by name")
        positional, named = list(args), dict[str, Any]()
        for index, parameter in enumerate(self._positional[len(args) :], len(args)):
            if self._given(parameter, left):
                if len(positional) == index:
                    positional.append(left.pop(parameter.name))
                else:
                    named[parameter.name] = left.pop(parameter.name)
        for parameter in self._only_named:
            if self._given(parameter, left):
                named[parameter.name] = left.pop(parameter.name)
        return positional, named | dict(sorted(left.items()))

    def _given(self, parameter: Parameter, left: Mapping[str, Any]) -> bool:
        given = parameter.name in left and parameter.name in self._keyword
        if parameter.required and not given:
            raise self._error(ArgumentError, parameter.name, "missing")
        return given

    def _check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        return (
            [self._fit(parameter, value) for parameter, value in zip(self._parameters(args), args, strict=True)],
            {name: self._fit(self._parameter(name), value) for name, value in kwargs.items()},
        )

    def _fit(self, parameter: Parameter, value: object) -> object:
        kind = type(value)
        try:
            if kind is not parameter.exact and parameter.type is not Any:
                value = msgspec.convert(value, parameter.type, builtin_types=_NATIVE, dec_hook=_from_builtin)
        except RecursionError as error:
            raise self._error(PayloadError, parameter.name, _TOO_DEEP) from error
        except Exception as error:
            raise self._error(ArgumentError, parameter.name, _lower(error) + _choices(parameter.type)) from error
        if kind not in _SCALARS:
            self._verify(parameter, value)
        return value

    def _verify(self, parameter: Parameter, value: object) -> None:
        try:
            raw = _encode(value)
            problem = _problem(value, raw)
        except Exception as error:
            raise self._error(PayloadError, parameter.name, _describe(error)) from error
        if problem:
            raise self._error(PayloadError, parameter.name, problem)
        self._value(parameter, raw)

    # Reading

    def read(self, payload: msgspec.Raw | bytes) -> Arguments:
        """Return the arguments in a payload, restored to the annotated types.

        Raises `ArgumentError`, and `Undecryptable` where they are encrypted.
        """
        try:
            return self._readers[memoryview(payload)[1]](payload)
        except Exception:  # noqa: BLE001 - whatever it was, the slow way tells it better
            return self._read(payload)

    def _read(self, payload: msgspec.Raw | bytes) -> Arguments:
        try:
            raw_args, raw_kwargs = _split(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            if problem := opaque.problem(payload, f"task {self._task!r}: the arguments are"):
                raise problem from None
            raise ArgumentError(f"task {self._task!r}: what is stored is no list of arguments: {error}") from error
        args = [
            self._value(parameter, raw) for parameter, raw in zip(self._parameters(raw_args), raw_args, strict=True)
        ]
        kwargs = {name: self._value(self._parameter(name), raw) for name, raw in raw_kwargs.items()}
        self._bind(args, kwargs)
        if not kwargs and self._by_position and self._rest is None and len(args) < 16:
            # The second byte of a payload is the header of a short array: it tells how many arguments there are.
            positions = types.GenericAlias(tuple, tuple(each.type for each in self._positional[: len(args)]))
            wanted = types.GenericAlias(tuple, (positions, _Nothing))
            self._readers[0x90 | len(args)] = msgspec.msgpack.Decoder(wanted, dec_hook=_from_builtin).decode
        return args, kwargs

    def _value(self, parameter: Parameter, raw: msgspec.Raw | bytes) -> Any:
        try:
            return parameter.decode(raw)
        except Exception as error:
            raise self._error(ArgumentError, parameter.name, _lower(error) + _choices(parameter.type)) from error

    def read_result(self, raw: msgspec.Raw | bytes) -> Any:
        """Return a result, restored to the annotated return type.

        Raises `PayloadError` if it does not fit that, and `ProtectionError` if it is not to be read or believed.
        """
        if bytes(raw) == b"\xc0":
            return None
        if problem := opaque.problem(raw, f"task {self._task!r}: the result is"):
            raise problem
        try:
            return self._read_result(raw)
        except Exception as error:
            raise PayloadError(f"task {self._task!r}: the result is not of its return type: {_lower(error)}") from error

    # Parameters

    def _parameters(self, args: Sequence[Any]) -> Iterable[Parameter]:
        extra = len(args) - self._most
        if extra <= 0:
            return self._positional[: len(args)]
        if self._rest is None:
            raise ArgumentError(f"task {self._task!r} takes at most {self._most} positional arguments, not {len(args)}")
        return [*self._positional, *[self._rest] * extra]

    def _parameter(self, name: str) -> Parameter:
        parameter = self._keyword.get(name) or (self._free and self._free._replace(name=name))
        if parameter is None:
            has = ", ".join(dict.fromkeys([*(each.name for each in self._positional), *self._keyword])) or "none"
            raise ArgumentError(f"task {self._task!r} has no parameter {name!r}; it has {has}")
        return parameter

    def _pairs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[tuple[Parameter, Any]]:
        yield from zip(self._parameters(args), args, strict=True)
        for name, value in kwargs.items():
            yield self._parameter(name), value

    # Errors

    def _error(self, kind: type[ArgumentError | PayloadError], name: str, problem: str) -> ArgumentError | PayloadError:
        return kind(f"task {self._task!r}, parameter {name!r}: {problem}")

    def _blame(self, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> Exception:
        for parameter, value in self._pairs(args, kwargs):
            try:
                _encode(value)
            except Exception as cause:  # noqa: BLE001 - it is described, whatever it is
                return self._error(PayloadError, parameter.name, _describe(cause))
        return PayloadError(f"task {self._task!r}: {_describe(error)}")

    def _too_large(self, args: Sequence[Any], kwargs: Mapping[str, Any], size: int, limit: int) -> PayloadTooLarge:
        largest, _ = max(self._pairs(args, kwargs), key=lambda pair: len(_encode(pair[1])))
        return PayloadTooLarge(
            f"task {self._task!r}: the arguments take {size:,} bytes, more than the limit of {limit:,} "
            f"(Spool(max_payload=…)); the largest is parameter {largest.name!r}"
        )


def write_result(task: str, value: Any, limit: int) -> bytes:
    """Return a result as bytes. Raises `PayloadError` or `PayloadTooLarge`."""
    try:
        payload = _encode(value)
        problem = None if type(value) in _PLAIN or len(payload) > limit else _problem(value, payload)
    except Exception as error:
        raise PayloadError(f"task {task!r}, result: {_describe(error)}") from error
    if len(payload) > limit:
        raise PayloadTooLarge(
            f"task {task!r}: the result takes {len(payload):,} bytes, more than the limit of {limit:,} "
            "(Spool(max_payload=…))"
        )
    if problem:
        raise PayloadError(f"task {task!r}, result: {problem}")
    return payload


def _hints(task: str, fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
        return {name: _restorable(wanted) for name, wanted in hints.items()}
    except Exception as error:
        raise ConfigError(
            f"task {task!r}: its annotations cannot be resolved ({error}): the types must be importable at run time, "
            "not under TYPE_CHECKING, and not be local to a function"
        ) from error


def _restorable(wanted: Any) -> Any:
    """Return what to restore a value as: a list where anything to iterate over will do."""
    if wanted is Iterable or typing.get_origin(wanted) is Iterable:
        return types.GenericAlias(list, typing.get_args(wanted)) if typing.get_args(wanted) else list
    return Any if wanted in (typing.NoReturn, typing.Never) else wanted


def _decoder(task: str, what: str, wanted: Any) -> Callable[[msgspec.Raw | bytes], Any]:
    if wanted is Any:
        return _decode
    try:
        return msgspec.msgpack.Decoder(wanted, dec_hook=_from_builtin).decode
    except Exception as error:
        raise ConfigError(f"task {task!r}: {what} cannot be restored from what is stored: {error}") from error


_TOO_DEEP: Final = f"nested deeper than the limit of {DEPTH} levels"
_NOT_FINITE: Final = "NaN and infinite numbers cannot be stored"
_CONTAINERS: Final = frozenset({dict, list, tuple})  # of what was decoded


def _problem(value: Any, payload: bytes) -> str | None:
    """Return what forbids to store this value, whose payload is given, or None."""
    inside = _inside(value)
    if inside and all([_PLAIN.issuperset(map(type, values)) for values in inside]):  # noqa: C419 - faster for so few
        return None  # most results: what is looked for below cannot be in them
    value = _decode(payload)
    if _is_deep(value):
        return _TOO_DEEP
    if b"\xcb" in payload and _MAYBE_NOT_FINITE(payload) and _has_not_finite(value):
        return _NOT_FINITE
    return None


def _is_deep(value: Any) -> bool:
    """Return whether decoded data nests beyond the limit. Level by level, so that no depth exhausts the stack."""
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(DEPTH):
        inner: list[Any] = []
        for each in level:
            for values in _inside(each):
                if not _CONTAINERS.isdisjoint(map(type, values)):
                    inner += [value for value in values if type(value) in _CONTAINERS]
        if not inner:
            return False
        level = inner
    return True


def _has_not_finite(value: Any) -> bool:
    """Return whether decoded data, of a depth within the limit, has a number in it that is none."""
    return any(any(map(_has_not_finite, values)) for values in _inside(value)) or (
        isinstance(value, float) and not math.isfinite(value)
    )


def _inside(value: Any) -> tuple[Iterable[Any], ...]:
    if value.__class__ is dict:
        return value.keys(), value.values()
    return (value,) if type(value) in _CONTAINERS else ()


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, OverflowError):
        return "integers must fit into 64 bits"
    return _lower(error)


def _choices(wanted: Any) -> str:
    """Say what an enum or a `Literal` allows: msgspec's own message doesn't."""
    choices: Iterable[Any] = ()
    if typing.get_origin(wanted) is typing.Literal:
        choices = typing.get_args(wanted)
    elif isinstance(wanted, enum.EnumType):
        choices = [each.value for each in typing.cast("Iterable[enum.Enum]", wanted)]
    listed = ", ".join(map(repr, itertools.islice(choices, 20)))
    return f"; allowed: {listed}" if listed else ""


def _lower(error: BaseException) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
