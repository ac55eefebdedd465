"""`Load` and `Store`: small documents with versions."""

import pytest

from spool.broker import Beat, Document, Enqueue, Heartbeat, Load, Store, Stored
from spool.errors import VersionConflict
from tests.contract.driver import job, until


@pytest.fixture
def load(broker):
    return lambda kind="doc", cursor="": broker.call(Load(kind, cursor))


@pytest.fixture
def store_(broker):
    return lambda key, body, **options: broker.call(Store("doc", key, body, **options))


def test_nothing_is_there(load, clock):
    assert (load().documents, load().cursor, load().now) == ([], "", clock.wall)


def test_a_document_comes_back_as_it_was(load, store_, clock):
    body = bytes(range(256)) + b"\r\n:\x00"
    assert store_("a", body) == Stored(clock.wall, 1)
    assert load().documents == [Document("a", 1, body)]


def test_an_empty_body_is_a_document(load, store_):
    store_("a", b"")
    assert load().documents == [Document("a", 1, b"")]


def test_the_version_counts_the_writes(load, store_):
    assert [store_("a", b"%d" % number).version for number in range(3)] == [1, 2, 3]
    assert store_("b", b"").version == 1
    assert load().documents[0] == Document("a", 3, b"2")


def test_kinds_are_apart(load, store_, broker):
    store_("a", b"1")
    broker.call(Store("other", "a", b"2"))
    assert load().documents == [Document("a", 1, b"1")]
    assert load("other").documents == [Document("a", 1, b"2")]
    assert load("none").documents == []


def test_documents_are_listed_by_key(load, store_):
    for key in ("b", "a:1", "a", "B", "10", "9", "ä"):
        store_(key, b"")
    assert [each.key for each in load().documents] == ["10", "9", "B", "a", "a:1", "b", "ä"]


def test_documents_are_listed_in_pages(load, store_):
    keys = [f"k{number:05}" for number in range(2300)]
    for start in reversed(range(0, len(keys), 100)):
        first, *others = reversed(keys[start : start + 100])
        store_(first, first.encode(), others={key: key.encode() for key in others})
    pages, cursor = [], ""
    while True:
        page = load(cursor=cursor)
        pages.append(page.documents)
        cursor = page.cursor
        if not cursor:
            break
    assert [len(page) for page in pages] == [1000, 1000, 300]
    assert [each.key for page in pages for each in page] == keys


def test_a_document_is_removed(load, store_):
    store_("a", b"")
    assert store_("a", None).version == 0
    assert load().documents == []
    assert store_("a", None).version == 0
    assert store_("a", b"").version == 1


def test_others_are_written_with_it(load, store_, clock):
    store_("c", b"old")
    assert store_("a", b"1", ttl=30, others={"b": b"2", "c": b"3"}) == Stored(clock.wall, 1)
    assert load().documents == [Document("a", 1, b"1"), Document("b", 1, b"2"), Document("c", 2, b"3")]
    clock.advance(30)
    assert load().documents == []


def test_others_are_written_when_it_is_removed_and_not_when_it_is_refused(load, store_):
    store_("a", b"")
    with pytest.raises(VersionConflict):
        store_("a", b"1", if_version=7, others={"b": b"2"})
    assert load().documents == [Document("a", 1, b"")]
    store_("a", None, others={"b": b"2"})
    assert load().documents == [Document("b", 1, b"2")]


def test_a_document_lasts_for_its_ttl(load, store_, clock):
    store_("a", b"", ttl=30)
    store_("b", b"", ttl=60_000)
    clock.advance(40)
    until(lambda: [each.key for each in load().documents] == ["b"])
    assert store_("a", b"").version == 1


def test_a_write_without_ttl_makes_it_last(load, store_, clock):
    store_("a", b"1", ttl=30)
    store_("a", b"2")
    clock.advance(40)
    assert load().documents == [Document("a", 2, b"2")]


def test_a_write_renews_the_ttl(load, store_, clock):
    store_("a", b"1", ttl=1000)
    clock.advance(900)
    store_("a", b"2", ttl=1000)
    clock.advance(900)
    assert load().documents == [Document("a", 2, b"2")]


def test_an_expired_document_is_not_there_for_a_condition(store_, clock):
    store_("a", b"1", ttl=10)
    clock.advance(20)
    with pytest.raises(VersionConflict):
        store_("a", b"2", if_version=1)
    assert store_("a", b"2", if_version=0).version == 1


def test_very_many_that_expired_together_are_all_gone_at_once(load, store_, clock):
    keys = [f"k{number:03}" for number in range(450)]
    store_(keys[0], b"1", ttl=10, others=dict.fromkeys(keys[1:], b"1"))
    store_("a", b"stays")
    store_("z", b"stays longer", ttl=60_000)
    clock.advance(10)
    assert [each.key for each in load().documents] == ["a", "z"]
    assert store_(keys[300], b"2", if_version=0, others={keys[301]: b"2"}).version == 1
    with pytest.raises(VersionConflict):
        store_(keys[-1], b"2", if_version=1)
    assert load().documents == [
        Document("a", 1, b"stays"),
        Document(keys[300], 1, b"2"),
        Document(keys[301], 1, b"2"),
        Document("z", 1, b"stays longer"),
    ]


def test_if_version_writes_only_over_that_version(load, store_):
    assert store_("a", b"1", if_version=0).version == 1
    assert store_("a", b"2", if_version=1).version == 2
    for version in (0, 1, 3):
        with pytest.raises(VersionConflict):
            store_("a", b"no", if_version=version)
    assert load().documents == [Document("a", 2, b"2")]


def test_if_version_removes_only_that_version(load, store_):
    store_("a", b"1")
    for version in (0, 2):
        with pytest.raises(VersionConflict):
            store_("a", None, if_version=version)
    assert store_("a", None, if_version=1).version == 0
    assert load().documents == []


def test_if_version_of_what_is_not_there(store_):
    with pytest.raises(VersionConflict):
        store_("a", b"1", if_version=1)
    assert store_("a", None, if_version=0).version == 0


def test_the_queues_known_are_listed(broker, load):
    broker.call(Enqueue("mail", [job("a")]))
    broker.call(Beat("images", [Heartbeat("w", 10_000, ())]))
    broker.call(Enqueue("mail", [job("b")]))
    documents = load("queue").documents
    assert [each.key for each in documents] == ["images", "mail"]
    assert {each.body for each in documents} == {b""}
