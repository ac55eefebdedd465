import collections
import dataclasses
import datetime as dt
import enum
import os
import subprocess
import sys
import typing
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import ArgumentError, ConfigError, PayloadError, PayloadTooLarge
from spool.payload import DEPTH, Signature, write_result

LIMIT = 1024 * 1024


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    S = 1
    L = 2


class Mood(enum.StrEnum):
    GOOD = "good"


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.0


class Node(msgspec.Struct):
    below: "Node | None" = None


@dataclasses.dataclass(frozen=True)
class Address:
    street: str
    since: dt.date | None = None


class Row(TypedDict):
    id: int


class Pair(NamedTuple):
    left: int
    right: str


class User(pydantic.BaseModel):
    name: str
    born: dt.datetime | None = None
    tags: set[str] = set()


class Picky(pydantic.BaseModel, strict=True, extra="forbid"):
    when: dt.datetime
    key: uuid.UUID
    given: str = pydantic.Field(alias="givenName")

    @pydantic.computed_field
    @property
    def shout(self) -> str:
        return self.given.upper()


class Opaque:
    pass


def signature(*types, **named):
    """Of a function with these annotated types, called a, b, c… or by name."""
    names = {chr(ord("a") + index): each for index, each in enumerate(types)} | named
    parameters = ", ".join(names)
    scope = {}
    exec(f"def fn({parameters}): ...", scope)
    scope["fn"].__annotations__ = names
    return Signature("job", scope["fn"])


def of(fn):
    return Signature("job", fn)


def write(sign, *args, **kwargs):
    return sign.write(args, kwargs, LIMIT)


def plain(payload):
    return msgspec.msgpack.decode(payload)


def through(sign, *args, **kwargs):
    """What the worker calls the function with; twice, since the first reading builds the reader of the second."""
    payload = write(sign, *args, **kwargs)
    first, second = sign.read(payload), sign.read(msgspec.Raw(payload))
    assert (list(first[0]), dict(first[1])) == (list(second[0]), dict(second[1]))
    return list(second[0]), dict(second[1])


class TestBinding:
    @staticmethod
    def full(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, e: int, **free: int): ...

    @pytest.mark.parametrize(
        ("args", "kwargs", "stored"),
        [
            ((1,), {"e": 5}, [[1], {"e": 5}]),
            ((1, 2, 3, 4, 5), {"e": 5}, [[1, 2, 3, 4, 5], {"e": 5}]),
            ((1, 2), {"e": 5, "c": 3}, [[1, 2, 3], {"e": 5}]),
            ((1,), {"e": 5, "c": 3}, [[1], {"c": 3, "e": 5}]),
            ((1,), {"z": 1, "e": 5, "y": 2, "d": 4}, [[1], {"d": 4, "e": 5, "y": 2, "z": 1}]),
            ((1,), {"e": 5, "a": 7}, [[1], {"e": 5, "a": 7}]),  # a is positional only, so this one is a free keyword
        ],
    )
    def test_a_call_has_one_form(self, args, kwargs, stored):
        assert plain(write(of(self.full), *args, **kwargs)) == stored

    def test_positional_and_named_calls_are_stored_alike(self):
        sign = signature(int, str, bool)
        calls = [write(sign, 1, "x", True), write(sign, 1, "x", c=True), write(sign, c=True, a=1, b="x")]
        assert len(set(calls)) == 1

    def test_defaults_are_left_to_the_worker(self):
        def fn(a: int, b: int = 2, c: int = 3): ...

        assert plain(write(of(fn), 1)) == [[1], {}]
        assert plain(write(of(fn), 1, c=5)) == [[1], {"c": 5}]
        assert through(of(fn), 1, c=5) == ([1], {"c": 5})

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((), {"e": 5}, "parameter 'a': missing"),
            ((1,), {}, "parameter 'e': missing"),
            ((1, 2, 3), {"e": 5, "c": 3}, "parameter 'c': given by position and by name"),
            ((1, "x"), {"e": 5}, "parameter 'b': expected `int`, got `str`"),
            ((1, 2, 3, 4, "x"), {"e": 5}, "parameter 'rest': expected `int`, got `str`"),
            ((1,), {"e": 5, "z": None}, "parameter 'z': expected `int`, got `null`"),
        ],
    )
    def test_a_call_that_does_not_fit_names_the_parameter(self, args, kwargs, message):
        with pytest.raises(ArgumentError, match=f"task 'job', {message}"):
            write(of(self.full), *args, **kwargs)

    def test_too_many_arguments(self):
        with pytest.raises(ArgumentError, match="task 'job' takes at most 1 positional arguments, not 2"):
            write(signature(int), 1, 2)

    def test_a_name_that_is_no_parameter(self):
        with pytest.raises(ArgumentError, match="task 'job' has no parameter 'bb'"):
            write(signature(int, int), 1, bb=2)
        with pytest.raises(ArgumentError, match="task 'job' has no parameter 'c'"):
            write(signature(int, int), 1, 2, c=3)

    def test_a_positional_only_parameter_has_no_name_to_callers(self):
        def fn(a: int, /): ...

        for name in ("a", ""):
            with pytest.raises(ArgumentError, match=f"task 'job' has no parameter '{name}'"):
                write(of(fn), **{name: 1})

    @pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
    def test_any_number_of_arguments(self, count):
        def fn(*numbers: int): ...

        numbers = list(range(count))
        assert through(of(fn), *numbers) == (numbers, {})
        many = signature(**{f"p{number}": int for number in numbers})
        assert through(many, *numbers) == (numbers, {})


VALUES = [
    (str, "naïve ☃"),
    (int, -(2**63)),
    (int, 2**64 - 1),
    (float, 1e308),
    (float, -0.0),
    (bool, True),
    (bytes, b"\xcb\x7f\xf8\x00"),
    (type(None), None),
    (str | None, None),
    (list[str], ["a", "b"]),
    (dict[str, int], {"b": 1, "a": 2}),
    (dict[int, str], {1: "x"}),
    (dict[tuple[int, int], str], {(1, 2): "x"}),
    (tuple[int, str], (1, "x")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2}),
    (set[uuid.UUID], {uuid.UUID(int=5)}),
    (frozenset[str], frozenset({"x"})),
    (dt.datetime, dt.datetime(2024, 2, 29, 12, 30, 1, 999_999, tzinfo=dt.UTC)),
    (dt.datetime, dt.datetime(2024, 10, 27, 12, 30, tzinfo=ZoneInfo("Europe/Berlin"))),
    (dt.datetime, dt.datetime(2024, 2, 29, 12, 30)),  # noqa: DTZ001 - those without a zone may pass, too
    (dt.datetime, dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
    (dt.date, dt.date(2024, 2, 29)),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-1, seconds=5, microseconds=7)),
    (uuid.UUID, uuid.UUID(int=5)),
    (Decimal, Decimal("0.10")),
    (Colour, Colour.BLUE),
    (Size, Size.L),
    (Mood, Mood.GOOD),
    (list[Colour], [Colour.RED]),
    (Literal["a", 1], "a"),
    (Point, Point(1, 2.5)),
    (Point | None, Point(1)),
    (Address, Address("Main St", dt.date(2020, 1, 1))),
    (list[Address], [Address("Main St")]),
    (dict[str, Point], {"p": Point(1)}),
    (Row, {"id": 1}),
    (Pair, Pair(1, "x")),
    (User, User(name="Ada", born=dt.datetime(1815, 12, 10, tzinfo=dt.UTC), tags={"x"})),
    (User | None, None),
    (list[User], [User(name="Ada"), User(name="Bob")]),
    (Picky, Picky(when=dt.datetime(2024, 1, 1, tzinfo=dt.UTC), key=uuid.UUID(int=1), givenName="x")),
    (int | str | None, "x"),
    (Any, {"a": [1, None, True, "x", 1.5]}),
    (list, [1, "x"]),
    (dict, {"a": 1}),
    (set, {1, 2}),
    (tuple, (1, "x")),
    (Node, Node(Node(Node()))),
    (Annotated[int, msgspec.Meta(ge=0)], 5),
    (typing.Mapping[str, int], {"a": 1}),
    (typing.Sequence[int], [1]),
    (typing.Iterable[int], [1]),
    (collections.abc.Iterable, [1]),
]


class TestTypes:
    @pytest.mark.parametrize(("wanted", "value"), VALUES, ids=lambda each: str(each)[:30])
    def test_arguments_come_back_as_their_types(self, wanted, value):
        [restored], _ = through(signature(wanted), value)
        assert restored == value
        assert type(restored) is type(value)

    @pytest.mark.parametrize(("wanted", "value"), VALUES, ids=lambda each: str(each)[:30])
    def test_results_come_back_as_their_types(self, wanted, value):
        restored = Signature("job", returning(wanted))
        result = restored.read_result(write_result("job", value, LIMIT))
        assert result == value
        assert type(result) is type(value)

    @pytest.mark.parametrize(
        ("wanted", "value"),
        [
            (int, "1"),
            (int, 1.0),
            (int, True),
            (int, None),
            (bool, 1),
            (float, "1"),
            (str, 1),
            (str, b"x"),
            (str, uuid.UUID(int=1)),
            (str, dt.date(2024, 1, 1)),
            (str, Colour.RED),
            (bytes, "x"),
            (dt.datetime, "2024-01-01T00:00:00Z"),
            (dt.datetime, dt.date(2024, 1, 1)),
            (uuid.UUID, "00000000-0000-0000-0000-000000000005"),
            (Decimal, "1"),
            (Decimal, 1.5),
            (dt.timedelta, 5),
            (Colour, "green"),
            (Literal["a"], "b"),
            (list[int], [1, "x"]),
            (list[int], "ab"),
            (list[str], "ab"),
            (list[int], (number for number in [1])),
            (set[int], {"x"}),
            (tuple[int, str], (1,)),
            (dict[str, str], {"x": dt.date(2024, 1, 1)}),
            (dict[str, int], [1]),
            (dict, Point(1)),
            (Point, Address("x")),
            (Point, Point("not a number")),
            (list[Point], [Point("not a number")]),
            (Address, Address(5)),
            (User, {"name": 5}),
            (User, User.model_construct(name=5)),
            (Row, {"id": "x"}),
            (Annotated[int, msgspec.Meta(ge=0)], -1),
            (Annotated[str, msgspec.Meta(max_length=1)], "xx"),
        ],
        ids=lambda each: str(each)[:30],
    )
    def test_an_argument_of_the_wrong_type_is_refused_by_name(self, wanted, value):
        with pytest.raises(ArgumentError, match=r"^task 'job', parameter 'b': \S"):
            write(signature(Any, wanted), 1, value)

    @pytest.mark.parametrize(
        ("wanted", "value", "restored"),
        [
            (float, 3, 3.0),
            (str, Mood.GOOD, "good"),
            (list[int], (1, 2), [1, 2]),
            (set[int], [1, 2], {1, 2}),
            (tuple[int, ...], [1, 2], (1, 2)),
            (dict[str, int], collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (dict, collections.defaultdict(int, a=1), {"a": 1}),
            (Point, {"x": 1}, Point(1)),
            (User, {"name": "Ada"}, User(name="Ada")),
            (bytes, bytearray(b"x"), b"x"),
        ],
        ids=lambda each: str(each)[:30],
    )
    def test_what_type_checkers_take_for_the_type_is_made_one(self, wanted, value, restored):
        [result], _ = through(signature(wanted), value)
        assert result == restored
        assert type(result) is type(restored)

    def test_without_annotations_plain_values_pass(self):
        def fn(a, b=None): ...

        assert through(of(fn), {"x": [1, None]}, b="y") == ([{"x": [1, None]}, "y"], {})

    def test_equal_values_are_stored_alike(self):
        sign = signature(float)
        assert write(sign, 3) == write(sign, 3.0)

    def test_annotations_may_be_text_and_name_what_comes_later(self):
        def fn(one: "Point", later: "list[Later]"): ...

        assert through(of(fn), Point(1), [Later(5)]) == ([Point(1), [Later(5)]], {})

    @pytest.mark.parametrize("wanted", ["Missing", "list['Missing']"])
    def test_an_annotation_that_cannot_be_resolved(self, wanted):
        def fn(a): ...

        fn.__annotations__ = {"a": wanted}
        with pytest.raises(ConfigError, match=r"task 'job': .*name 'Missing' is not defined.*TYPE_CHECKING"):
            of(fn)

    def test_an_annotation_that_cannot_be_restored(self):
        with pytest.raises(ConfigError, match="task 'job': parameter 'b' cannot be restored"):
            signature(int, Point | Address)

    @pytest.mark.parametrize("wanted", [typing.NoReturn, typing.Never, typing.TypeVar("T"), Annotated[int, []]])
    def test_annotations_that_say_little(self, wanted):
        assert through(signature(int), 1) == ([1], {})
        assert Signature("job", returning(wanted)).read_result(b"\x01") == 1

    def test_a_type_nobody_can_store_is_refused_at_the_call(self):
        with pytest.raises(PayloadError, match="parameter 'a': objects of type Opaque cannot be stored"):
            write(signature(Opaque), Opaque())


def returning(wanted):
    def fn(): ...

    fn.__annotations__ = {"return": wanted}
    return fn


scalars = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    bytes: st.binary(),
    dt.datetime: st.datetimes() | st.datetimes(timezones=st.just(dt.UTC)),
    dt.date: st.dates(),
    dt.time: st.times(),
    dt.timedelta: st.timedeltas(dt.timedelta(days=-36500), dt.timedelta(days=36500)),
    uuid.UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    Colour: st.sampled_from(Colour),
    Size: st.sampled_from(Size),
    Point: st.builds(Point, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    Address: st.builds(Address, st.text(), st.none() | st.dates()),
}


@st.composite
def typed_values(draw, depth=3):
    """A type, and a strategy for values of it."""
    kind = draw(st.sampled_from(["scalar", "list", "dict", "set", "tuple", "optional"])) if depth else "scalar"
    if kind in ("scalar", "set"):
        wanted = draw(st.sampled_from(list(scalars)))
        return (set[wanted], st.sets(scalars[wanted])) if kind == "set" else (wanted, scalars[wanted])
    wanted, values = draw(typed_values(depth - 1))
    match kind:
        case "list":
            return list[wanted], st.lists(values, max_size=4)
        case "dict":
            return dict[str, wanted], st.dictionaries(st.text(), values, max_size=4)
        case "tuple":
            return tuple[int, wanted], st.tuples(scalars[int], values)
        case _:
            return wanted | None, st.none() | values


@given(st.data())
def test_any_argument_of_a_supported_type_comes_back(data):
    wanted, values = data.draw(typed_values())
    value = data.draw(values)
    [restored], _ = through(signature(wanted), value)
    assert restored == value
    assert type(restored) is type(value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | scalars[float] | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(json_like, json_like)
def test_any_plain_value_comes_back_without_annotations(one, two):
    def fn(a, *, b): ...

    assert through(of(fn), one, b=two) == ([one], {"b": two})
    assert Signature("job", fn).read_result(write_result("job", one, LIMIT)) == one


@given(st.binary(max_size=200))
def test_bytes_that_are_no_arguments_are_refused_not_run(garbage):
    sign = signature(int, str)
    try:
        args, kwargs = sign.read(garbage)
    except ArgumentError:
        return
    assert [type(each) for each in args] == [int, str]
    assert not kwargs


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


class TestLimits:
    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [1.0, n], lambda n: {"x": {"y": (n,)}}, lambda n: {n: 1}])
    def test_nan_and_infinity(self, number, wrap):
        with pytest.raises(PayloadError, match="parameter 'b': NaN and infinite numbers cannot be stored"):
            write(signature(float, Any), 1.0, wrap(number))
        with pytest.raises(PayloadError, match="result: NaN and infinite numbers cannot be stored"):
            write_result("job", wrap(number), LIMIT)

    def test_nan_for_a_float(self):
        with pytest.raises(PayloadError, match="parameter 'b': NaN"):
            write(signature(float, float), 1.0, float("nan"))
        with pytest.raises(PayloadError, match="parameter 'a': NaN"):
            write(signature(Point), Point(1, float("nan")))

    def test_bytes_that_look_like_nan_are_just_bytes(self):
        value = b"\xcb\x7f\xf8" + bytes(6)
        assert through(signature(bytes, float), value, 1e308) == ([value, 1e308], {})
        assert write_result("job", [value], LIMIT)

    @pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
    def test_huge_integers(self, number):
        with pytest.raises(PayloadError, match="parameter 'b': integers must fit into 64 bits"):
            write(signature(int, int), 1, number)
        with pytest.raises(PayloadError, match="parameter 'b': integers must fit into 64 bits"):
            write(signature(int, Any), 1, {"x": [number]})
        with pytest.raises(PayloadError, match="result: integers must fit into 64 bits"):
            write_result("job", [number], LIMIT)

    @pytest.mark.parametrize("depth", [DEPTH + 1, 500, 10_000, 100_000])
    @pytest.mark.parametrize("wanted", [Any, list, list[Any]])
    def test_nesting(self, depth, wanted):
        value = nested(depth)
        with pytest.raises(PayloadError, match="parameter 'b': nested deeper than the limit of 64 levels"):
            write(signature(int, wanted), 1, value)
        with pytest.raises(PayloadError, match="result: nested deeper than the limit of 64 levels"):
            write_result("job", value, LIMIT)

    def test_nesting_up_to_the_limit(self):
        value = nested(DEPTH)
        assert through(signature(list), value) == ([value], {})
        assert write_result("job", value, LIMIT)

    def test_nesting_of_objects_and_dicts(self):
        node, tree = Node(), {}
        for _ in range(5000):
            node, tree = Node(node), {"x": tree}
        for wanted, value in ((Node, node), (dict, tree), (Any, tree)):
            with pytest.raises(PayloadError, match="parameter 'a': nested deeper"):
                write(signature(wanted), value)

    def test_a_circle(self):
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(PayloadError, match="parameter 'a': nested deeper"):
            write(signature(list), circle)

    def test_wide_is_not_deep(self):
        value = [[[] for _ in range(100)] for _ in range(100)]
        assert through(signature(list), value) == ([value], {})

    def test_size(self):
        sign = signature(str, str)
        assert sign.write(("x" * 500, "y" * 500), {}, 1010)
        with pytest.raises(
            PayloadTooLarge,
            match=r"task 'job': the arguments take 2,\d{3} bytes, more than the limit of 1,010.*max_payload.* 'b'",
        ):
            sign.write(("x" * 500, "y" * 1500), {}, 1010)
        with pytest.raises(
            PayloadTooLarge, match=r"task 'job': the result takes 1,503 bytes, more than the limit of 1,010"
        ):
            write_result("job", "x" * 1500, 1010)

    @pytest.mark.parametrize("value", [object(), 1j, range(3), "\ud800", lambda: None, Opaque, iter([])])
    def test_what_cannot_be_stored(self, value):
        with pytest.raises(PayloadError, match="task 'job', parameter 'b': "):
            write(signature(int, Any), 1, value)
        with pytest.raises(PayloadError, match="task 'job', parameter 'b': "):
            write(signature(int, Any), 1, {"x": [value]})
        with pytest.raises(PayloadError, match="task 'job', result: "):
            write_result("job", [value], LIMIT)

    def test_keys_that_cannot_be_read_again(self):
        value = {Point(1): 1}  # stored as a map for a key
        with pytest.raises(PayloadError, match="task 'job', parameter 'a': "):
            write(signature(Any), value)
        with pytest.raises(PayloadError, match="task 'job', result: "):
            write_result("job", value, LIMIT)

    def test_text_that_is_no_unicode(self):
        with pytest.raises(PayloadError, match=r"parameter 'b': .*surrogates not allowed"):
            write(signature(int, str), 1, "\ud800")


class TestReading:
    def test_arguments_of_another_signature(self):
        stored = write(signature(int, int), 1, 2)
        cases = [
            (signature(int), "takes at most 1 positional arguments, not 2"),
            (signature(int, int, int), "parameter 'c': missing"),
            (signature(int, str), "parameter 'b': expected `str`, got `int`"),
        ]
        for changed, message in cases:
            with pytest.raises(ArgumentError, match=message):
                changed.read(stored)

    def test_a_parameter_that_was_renamed(self):
        def before(*, old: int): ...

        def after(*, new: int = 1): ...

        with pytest.raises(ArgumentError, match="task 'job' has no parameter 'old'"):
            of(after).read(write(of(before), old=1))

    def test_a_new_parameter_with_a_default(self):
        def after(a: int, b: int = 5): ...

        assert of(after).read(write(signature(int), 1)) == ([1], {})

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x92",
            b"\xc0",
            b"\x92\x91\x01\x80\x00",
            b"\x93\x90\x80\x80",
            msgspec.msgpack.encode({"a": 1}),
            b"\xff" * 9,
        ],
    )
    def test_what_is_no_list_of_arguments(self, payload):
        with pytest.raises(ArgumentError, match="task 'job': what is stored is no list of arguments"):
            signature(int).read(payload)

    def test_nesting_that_no_client_of_ours_wrote(self):
        deep = b"\x92\x91" + b"\x91" * 100_000 + b"\x90\x80"
        for wanted in (Any, list, Node):
            with pytest.raises(ArgumentError):
                signature(wanted).read(deep)

    def test_a_result_of_another_type(self):
        sign = Signature("job", returning(int))
        with pytest.raises(
            PayloadError, match="task 'job': the result is not of its return type: expected `int`, got `str`"
        ):
            sign.read_result(write_result("job", "x", LIMIT))

    def test_no_result(self):
        assert Signature("job", returning(int)).read_result(b"\xc0") is None


class TestFingerprint:
    def test_equal_calls(self):
        sign = signature(dict, set[str])
        one = sign.fingerprint(({"a": 1, "b": 2}, {"x", "y"}), {})
        assert len(one) == 24
        assert one == sign.fingerprint(({"b": 2, "a": 1},), {"b": ["y", "x"]})

    def test_other_calls(self):
        sign = signature(int, int)
        prints = {sign.fingerprint(args, {}) for args in [(1, 2), (2, 1), (1, 3)]}
        prints.add(Signature("other", sign_fn).fingerprint((1, 2), {}))
        assert len(prints) == 4
        assert [len({each[:8] for each in prints}), len({each[8:] for each in prints})] == [2, 4]

    def test_the_same_in_every_process(self):
        script = (
            "from spool.payload import Signature\n"
            "def fn(a: set[str], b, **free): ...\n"
            "print(Signature('job', fn).fingerprint(({'x', 'y', 'z'}, {'p', 'q', 'r'}), {'k': 1, 'j': 2}))"
        )
        seen = {
            subprocess.check_output([sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed})
            for seed in ("1", "2", "3")
        }
        assert len(seen) == 1


def sign_fn(a: int, b: int): ...


class Later(msgspec.Struct):
    number: int


def test_pydantic_is_not_imported_for_those_who_do_not_use_it():
    script = (
        "import sys, spool.payload as p\n"
        "def fn(a: int, b: dict): ...\n"
        "s = p.Signature('job', fn); s.read(s.write((1, {}), {}, 100)); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
