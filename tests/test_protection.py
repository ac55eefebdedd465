"""Signing and encryption, on real stores, whose bytes the tests change and search past every broker."""

import asyncio
import base64
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from spool import (
    AesGcm,
    Backoff,
    BadSignature,
    Cancel,
    ConfigError,
    JobCancelled,
    JobConflict,
    JobFailed,
    ProtectionError,
    Release,
    Signing,
    Spool,
    State,
    Undecryptable,
    Unsigned,
    current_job,
    testing,
)
from spool.broker import Around, Beat, Claim, Get, Heartbeat, Released, Retire, Retried, Settle, connect
from spool.broker.sqlite import SqliteBroker
from spool.job import (
    TALLY_LIMIT,
    Attempt,
    Ending,
    Options,
    Record,
    Snapshot,
    encode_ending,
    encode_record,
    extend_tally,
    new_id,
    read_record,
    read_tally,
)
from spool.opaque import ENCRYPTED, TEXT, Refused
from spool.protection.envelope import LOST, SIGNATURE, Envelope
from spool.supervisor import Fleet, WorkerOptions
from spool.view import Job, view
from tests import secret_shop
from tests.stored import Store, elements, joined

OLD, NEW, STRANGE = b"o" * 32, b"n" * 32, b"x" * 32
SIGNING = Signing({"new": NEW})


@pytest.fixture(params=["sqlite", "redis"])
def kept(request, tmp_path) -> Store:
    """Give a store of each kind."""
    if request.param == "redis":
        return Store(request.getfixturevalue("redis_url"))
    return Store(f"sqlite:///{tmp_path}/spool.db")


@pytest.fixture(params=["sqlite", "redis", "http"])
def store(request, tmp_path) -> Iterator[Store]:
    """Give a store of each kind, and one behind a server that knows no key."""
    if request.param != "http":
        yield Store(request.getfixturevalue("redis_url") if request.param == "redis" else _file(tmp_path))
        return
    front = request.getfixturevalue("front")
    front.put_before(connect(_file(tmp_path)))
    yield Store(_file(tmp_path), front)
    front.take_away()


def _file(folder) -> str:
    return f"sqlite:///{folder}/spool.db"


class Shop:
    """An app on a store, that notes what it runs."""

    def __init__(self, store: Store, **given: Any) -> None:
        self.app = Spool(store.url, record_logs=True, **given)
        self.ran: list[Any] = []

        @self.app.task(queue="mail", retries=1, backoff=Backoff(base=0, jitter=False))
        async def send(to: str, *, ok: bool = True) -> str:
            self.ran.append(to)
            logging.getLogger("shop").warning("log %s", to)
            current_job().progress(1, 2, f"progress {to}")
            if not ok:
                raise ValueError(f"message {to}")
            return f"result {to}"

        @self.app.task(queue="mail")
        async def other(to: str) -> None:
            self.ran.append(f"other {to}")

        @self.app.task(queue="mail")
        async def give_up(to: str) -> None:
            raise Cancel(f"reason {to}")

        self.send, self.other, self.give_up = send, other, give_up

    def run(self) -> None:
        asyncio.run(run_all(self.app))


async def run_all(app: Spool) -> None:
    """Run what is ready, as a worker does, on connections of this loop alone."""
    broker = connect(cast("str", app.location))
    with app.using(broker):
        await testing.arun_until_idle(app)
    await broker.aclose()


@contextmanager
def shops(store: Store, *settings: dict[str, Any]) -> Iterator[list[Shop]]:
    """Give an app for each of these settings, all on one store."""
    made = [Shop(store, **each) for each in settings]
    yield made
    for each in made:
        each.app.close()


def refused(shop: Shop, handle: Any, error: str) -> Job:
    """Let workers take a job, and return it: dead for that, its handler never run, while others run on."""
    good = shop.send.enqueue("good")
    shop.run()
    assert shop.ran == ["good"]
    assert good.status() is State.DONE
    job = handle.job()
    assert (job.state, job.history[-1].error_type, job.history[-1].traceback) == ("dead", error, "")
    shop.ran.clear()
    return job


# Signatures


def test_what_is_signed_runs_and_its_result_is_believed(store):
    with shops(store, {"signing": SIGNING}) as [shop]:
        handle = shop.send.enqueue("ada")
        again = shop.send.options(id="twice").enqueue("ada")
        assert not shop.send.options(id="twice").enqueue("ada").created
        with pytest.raises(JobConflict):
            shop.send.options(id="twice").enqueue("eve")
        assert len(elements(store.record("mail", handle.id))) == SIGNATURE["job"] + 1
        shop.run()
        assert (handle.result(1), again.result(1), shop.ran) == ("result ada", "result ada", ["ada"] * 2)


CHANGES: dict[str, Callable[[Record], dict[str, Any]]] = {
    "version": lambda _: {"version": 0},
    "task": lambda _: {"task": "other"},
    "priority": lambda _: {"priority": 0},
    "lane": lambda _: {"lane": 1},
    "max_crashes": lambda _: {"max_crashes": 99},
    "fingerprint": lambda _: {"fingerprint": "0" * 16},
    "created": lambda record: {"created": record.created + 1},
    "payload": lambda _: {"payload": msgspec.Raw(msgspec.msgpack.encode((["eve"], {})))},
    "retries": lambda _: {"options": Options(retries=99)},
    "timeout": lambda _: {"options": Options(timeout=99.0)},
    "result_ttl": lambda _: {"options": Options(result_ttl=99.0)},
    "on_disconnect": lambda _: {"options": Options(on_disconnect="continue")},
    "headers": lambda _: {"headers": {"tenant": "eve"}},
    "key": lambda _: {"key": "k"},
    "group": lambda _: {"group": "g"},
    "expires": lambda _: {"expires": 2**52},
    "parent": lambda _: {"parent": "mail/1"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_of_anything_that_was_asked_for_is_noticed(kept, field):
    with shops(kept, {"signing": SIGNING}) as [shop]:
        handle = shop.send.options(headers={"tenant": "ada"}, retries=2, timeout=5).enqueue("ada")
        body = kept.record("mail", handle.id)
        *_, signature = elements(body)
        record = read_record(body)
        forged = joined(
            [*elements(encode_record(msgspec.structs.replace(record, **CHANGES[field](record)))), signature]
        )
        assert forged != body
        kept.put_record("mail", handle.id, forged)
        job = refused(shop, handle, "BadSignature")
        assert "the signature is not that of this job" in job.error
        assert kept.record("mail", handle.id) == forged


def test_every_field_of_a_record_is_tried(kept):
    del kept
    tried = {name for name in CHANGES if name in Record.__struct_fields__} | {"options"}
    assert tried == set(Record.__struct_fields__)
    assert {name for name in CHANGES if name in Options.__struct_fields__} == set(Options.__struct_fields__)
    assert {"job": len(Record.__struct_fields__), "result": Ending.__struct_fields__.index("signature")} == SIGNATURE


@pytest.mark.parametrize("moved", ["to another id", "to another queue", "with more behind it", "without the signature"])
def test_a_record_is_signed_as_a_whole_and_for_its_place(kept, moved):
    with shops(kept, {"signing": SIGNING}) as [shop]:
        handle, place = shop.send.enqueue("ada"), "mail"
        body = kept.record("mail", handle.id)
        error = "BadSignature"
        match moved:
            case "to another id":
                handle = shop.send.enqueue("bob")
            case "to another queue":
                place = "bulk"
                handle = shop.send.options(queue="bulk", id=handle.id).enqueue("ada")
            case "with more behind it":  # as a later release might write, and this one would pass over
                body = joined([*elements(body), msgspec.Raw(b"\x01")])
            case _:
                body, error = joined(elements(body)[:-1]), "Unsigned"
        kept.put_record(place, handle.id, body)
        good = shop.other.enqueue("good")
        shop.run()
        assert good.status() is State.DONE
        job = handle.job()
        assert (job.state, job.history[-1].error_type) == ("dead", error)
        assert shop.ran == (["ada", "other good"] if moved.startswith("to") else ["other good"])


@pytest.mark.parametrize("junk", [b"\xc0", b"\x92\xa3new\xa3mac", b"\x91\xa3new", b"\xc4\x00", b"\x92\xa1\xff\xc4\x00"])
def test_what_is_no_signature_is_a_bad_one(tmp_path, junk):
    store = Store(_file(tmp_path))
    with shops(store, {"signing": SIGNING}) as [shop]:
        handle = shop.send.enqueue("ada")
        body = store.record("mail", handle.id)
        store.put_record("mail", handle.id, joined([*elements(body)[:-1], msgspec.Raw(junk)]))
        assert "is none" in refused(shop, handle, "BadSignature").error


def test_a_job_without_a_signature_dies_and_stays_to_be_seen(store):
    with shops(store, {}, {"signing": SIGNING}) as [plain, shop]:
        handle = plain.send.enqueue("eve")
        body = store.record("mail", handle.id)
        job = refused(shop, handle, "Unsigned")
        assert job.error == f"Unsigned: mail/{handle.id}: the job is not signed, and only signed ones are accepted here"
        assert (job.arguments, job.attempts, job.failures) == ((["eve"], {}), 1, 1)
        assert store.record("mail", handle.id) == body
        assert [str(each) for each in shop.app.jobs(state="dead", error="Unsigned")] == [str(handle)]
        assert shop.app.jobs(state="dead").replay() == 1
        refused(shop, handle, "Unsigned")  # a replay makes it no better
        plain.run()


def test_a_worker_without_keys_runs_what_is_signed(store):
    with shops(store, {"signing": SIGNING}, {}) as [shop, plain]:
        handle = shop.send.enqueue("ada")
        plain.run()
        assert plain.ran == ["ada"]
        assert plain.app.job(str(handle)).result == "result ada"
        with pytest.raises(Unsigned, match="the result is not signed"):
            handle.result(1)


def test_for_a_time_what_is_unsigned_may_be_accepted(kept, caplog):
    both = Signing({"new": NEW}, accept_unsigned=True)
    with shops(kept, {}, {"signing": both}, {"signing": Signing({"x": STRANGE})}) as [plain, shop, stranger]:
        handles = [plain.send.enqueue("ada") for _ in range(3)]
        shop.run()
        assert [shop.app.job(str(handle)).state for handle in handles] == ["done"] * 3
        warnings = [record.getMessage() for record in caplog.records if record.name == "spool.protection"]
        assert warnings == [
            f"the job of mail/{handles[0].id} (send) is not signed; it is accepted as long as unsigned ones are"
        ]
        shop.ran.clear()
        wrong = stranger.send.enqueue("eve")  # a signature that is wrong is no missing one
        refused(shop, wrong, "BadSignature")
        unsigned = plain.send.enqueue("bob")
        plain.run()
        assert shop.send.handle(unsigned.id).result(1) == "result bob"


def test_keys_are_changed_without_losing_a_job(kept):
    old, both = Signing({"old": OLD}), Signing({"new": NEW, "old": OLD})
    with shops(kept, {"signing": old}, {"signing": both}, {"signing": SIGNING}) as [before, between, after]:
        first, second, third = before.send.enqueue("1"), between.send.enqueue("2"), before.send.enqueue("3")
        between.run()
        assert between.ran == ["1", "2", "3"]
        assert between.send.handle(first.id).result(1) == "result 1"
        with pytest.raises(BadSignature, match="signed with the key 'new'; known here: old"):
            before.send.handle(second.id).result(1)
        assert after.send.handle(third.id).result(1) == "result 3"  # signed by the worker, with the new key
        late = before.send.enqueue("4")
        assert "signed with the key 'old'; known here: new" in refused(after, late, "BadSignature").error


def test_a_job_that_is_replayed_is_still_signed(store):
    with shops(store, {"signing": SIGNING}) as [shop]:
        handle = shop.send.options(retries=0).enqueue("ada", ok=False)
        shop.run()
        assert handle.job().error == "ValueError: message ada"
        for generation in (1, 2):
            assert shop.app.jobs(id=str(handle)).replay() == 1
            shop.run()
            assert (handle.job().error, handle.job().generation) == ("ValueError: message ada", generation)
        body = store.record("mail", handle.id)
        *fields, signature = elements(body)
        fields[8] = msgspec.Raw(msgspec.msgpack.encode(Options(retries=50)))
        store.put_record("mail", handle.id, joined([*fields, signature]))
        shop.ran.clear()
        shop.app.jobs(id=str(handle)).replay()
        refused(shop, handle, "BadSignature")


@pytest.mark.parametrize("forgery", ["another result", "another's", "no signature", "no result", "finished later"])
def test_a_result_that_somebody_else_wrote_is_not_believed(kept, forgery):
    with shops(kept, {"signing": SIGNING}) as [shop]:
        handle, bob = shop.send.enqueue("ada"), shop.send.enqueue("bob")
        shop.run()
        fields = elements(kept.ending("mail", handle.id))
        error: type[ProtectionError] = BadSignature
        match forgery:
            case "another result":
                fields[8] = msgspec.Raw(b"\xa3eve")
            case "another's":
                fields = elements(kept.ending("mail", bob.id))
            case "no signature":
                fields, error = fields[:-1], Unsigned
            case "no result":
                fields[8] = msgspec.Raw(b"\xc0")
            case _:
                fields[6] = msgspec.Raw(msgspec.msgpack.encode(2**45))
        kept.put_ending("mail", handle.id, joined(fields))
        with pytest.raises(error, match="the result is not signed" if error is Unsigned else "the signature is not"):
            handle.result(1)
        assert handle.job().result.startswith("[refused: the ")
        assert bob.result(1) == "result bob"


@pytest.mark.parametrize("name", ["n", "2026-02", "n" * 31, "n" * 32])
@pytest.mark.parametrize("key", ["order-17", "k", "A" * 32, "z" * 127])
def test_a_key_outlives_signing_and_encryption_and_its_job(kept, name, key):
    protection = {"signing": Signing({name: NEW}), "encryption": AesGcm({name: NEW})}
    with shops(kept, protection, {}) as [shop, stranger]:
        done, cancelled = (each.options(key=key).enqueue("ada") for each in (shop.send, shop.give_up))
        never = shop.send.options(key=key, delay=60).enqueue("ada")
        plain = [shop.send.enqueue("ada"), shop.give_up.enqueue("ada"), shop.send.options(delay=60).enqueue("ada")]
        assert {job.id for job in shop.app.jobs(key=key)} == {done.id, cancelled.id, never.id}
        never.cancel()
        plain[-1].cancel()
        shop.run()

        assert done.result(1) == "result ada"
        for app in (shop.app, stranger.app):
            found = {job.id: (job.key, str(job.state)) for job in app.jobs(key=key)}
            assert found == {done.id: (key, "done"), cancelled.id: (key, "cancelled"), never.id: (key, "cancelled")}
        assert cancelled.job().error == "reason ada"
        endings = [elements(kept.ending("mail", each.id)) for each in (done, cancelled, never, *plain)]
        assert [len(each) for each in endings] == [15, 15, 15, 14, 13, 13]
        assert [bytes(each[SIGNATURE["result"]]) == b"\xc0" for each in endings[:3]] == [False, True, True]


@pytest.mark.parametrize("forgery", ["another key", "no key", "no signature"])
def test_the_key_of_a_result_is_signed_with_it(kept, forgery):
    with shops(kept, {"signing": SIGNING}) as [shop]:
        handle = shop.send.options(key="order-17").enqueue("ada")
        shop.run()
        fields = elements(kept.ending("mail", handle.id))
        match forgery:
            case "another key":
                fields[14] = msgspec.Raw(b"\xa3eve")
            case "no key":
                del fields[14]
            case _:
                fields[13] = msgspec.Raw(b"\xc0")
        kept.put_ending("mail", handle.id, joined(fields))
        with pytest.raises(Unsigned if forgery == "no signature" else BadSignature):
            handle.result(1)


def forged(state: str = "done") -> bytes:
    """Return an ending that nobody signed."""
    return encode_ending(Ending(1, state, "send", "", 1, 2, 3, 1, msgspec.Raw(b"\xa3eve")))


def test_no_unsigned_result_is_believed_whatever_its_state(kept):
    with shops(kept, {"signing": SIGNING}) as [shop]:
        handle = shop.send.enqueue("ada")
        shop.run()
        kept.put_ending("mail", handle.id, forged("cancelled"))
        with pytest.raises((Unsigned, JobCancelled)):  # SQLite keeps the state apart, and still says done
            handle.result(1)
        assert handle.job().result == "[refused: the result is not signed, and only signed ones are accepted here]"


class Liar(Around):
    """A server, or what stands before it, that answers for every job what it likes."""

    answer: Snapshot

    def call(self, verb: Any) -> Any:
        return self.answer if isinstance(verb, Get) else super().call(verb)

    async def acall(self, verb: Any) -> Any:
        return self.answer if isinstance(verb, Get) else await super().acall(verb)

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:  # noqa: ARG002
        return None if timeout == 0 else self.answer

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:  # noqa: ARG002
        return None if timeout == 0 else self.answer


SHORT = msgspec.msgpack.encode([1, "done", "send", "", 1, 2, 3, 1])
LIES = {
    "no record": (Snapshot("mail", "1", State.DONE, ending=forged()), Unsigned),
    "a record that cannot be read": (Snapshot("mail", "1", State.DONE, b"\xc1", ending=forged()), Unsigned),
    "a cancelled one": (Snapshot("mail", "1", State.DONE, ending=forged("cancelled")), Unsigned),
    "a short one": (Snapshot("mail", "1", State.DONE, ending=SHORT), Unsigned),
    "a short one that is not done": (
        Snapshot("mail", "1", State.DONE, ending=SHORT.replace(b"\xa4done", b"\xa4dead")),
        Unsigned,
    ),
    "another job's": (None, BadSignature),
}


@pytest.mark.parametrize("encryption", [None, AesGcm({"new": NEW})], ids=["signed", "and encrypted"])
@pytest.mark.parametrize("lie", LIES)
async def test_no_answer_makes_up_a_result(lie, encryption):
    broker = Liar(connect("sqlite://:memory:"))
    async with Spool(broker, signing=SIGNING, encryption=encryption) as app:

        @app.task(queue="mail")
        async def send(to: str) -> str:
            return f"result {to}"

        bob, ada = await send.aenqueue("bob"), await send.aenqueue("ada")
        answer, error = LIES[lie]
        if answer is None:
            await testing.arun_until_idle(app)
            answer = await broker._broker.acall(Get("mail", bob.id))
            broker.answer = answer
            assert await bob.aresult(1) == "result bob"
        broker.answer = answer
        for timeout in (1, 0):
            with pytest.raises(error):
                await ada.aresult(timeout)
            with pytest.raises(error):
                await asyncio.to_thread(ada.result, timeout)
        job = await ada.ajob()
        assert job.result is None or job.result.startswith("[refused: ")
        assert job.id == ada.id


def test_what_says_that_it_is_doubtful_is_an_error_of_ours(tmp_path):
    store = Store(_file(tmp_path))
    with shops(store, {}) as [shop]:
        handle = shop.send.enqueue("ada")
        shop.run()
        fields = elements(store.ending("mail", handle.id))
        for junk in (b"junk", b"", b"\x92\xa1\xff\xa1\xff", b"\x91" * 2000):
            fields[8] = msgspec.Raw(msgspec.msgpack.encode(msgspec.msgpack.Ext(85, junk)))
            store.put_ending("mail", handle.id, joined(fields))
            with pytest.raises(ProtectionError):
                handle.result(1)
            assert handle.job().state is State.DONE


HOSTILE = [
    "[" * 50_000,
    "{}",
    "[1]",
    "[1,2,3,4,5,6,7,8]",
    '["",{},[],"",[],[],{},[]]',
    f'[1,"died",1,1,"","E","{TEXT}é","{TEXT}QQ=="]',
]


def test_a_damaged_job_is_looked_at_all_the_same():
    envelope = Envelope(SIGNING, LOCKED)
    tally = "\n".join(["[1,1,1,0,0,0]", *HOSTILE])
    said = (b"\x96\x01\x02\x03\xa1a\xa1a\xa1\xff", b"\x96" + b"\x91" * 20_000, b"", b"\xc1", b"\x91\xc0")
    ending = encode_ending(
        Ending(1, "done", "send", "", 1, 2, 3, 1, msgspec.Raw(b"\xd4\x53\x00"), f"{TEXT}!", "", tally)
    )
    for body in (ending, ending[:-9], b"\xc1", b"", b"\x91" * 20_000):
        snapshot = Snapshot("mail", "1", State.DONE, body, tally, body, progress=said[0], log=said)
        opened = envelope.open(snapshot)
        assert (opened.tally, opened.log) == (tally, said)
        assert view(opened).id == "1"
    died = envelope.seal_settlement("mail", Released("1", 1, tally))
    assert isinstance(died, Released)
    assert died.tally.startswith(tally.rpartition("\n")[0])


# Encryption

WORD = "xyzzyplugh"
LOCKED = AesGcm({"new": NEW})


def filled(store: Store, shop: Shop) -> list[Any]:
    """Make jobs of every kind that say the word wherever they can; return their handles."""
    handles = [
        shop.send.enqueue(WORD),
        shop.send.options(retries=0).enqueue(WORD, ok=False),
        shop.give_up.enqueue(WORD),
        shop.send.options(id="named").enqueue(WORD),
    ]
    shop.send.options(delay=600).enqueue(WORD)
    shop.run()
    assert [handle.status() for handle in handles] == ["done", "dead", "cancelled", "done"]
    return handles


def test_the_store_sees_nothing_of_what_is_encrypted(store):
    with shops(store, {}) as [plain]:
        filled(store, plain)
        shown = store.everything()
        for what in (
            "arguments",
            f"result {WORD}",
            f"message {WORD}",
            f"reason {WORD}",
            f"log {WORD}",
            f"progress {WORD}",
        ):
            assert (WORD if what == "arguments" else what).encode() in shown, (
                what
            )  # so it is looked for in the right place


def test_who_has_the_key_sees_all_of_it(store):
    with shops(store, {"encryption": LOCKED, "signing": SIGNING}, {}) as [shop, plain]:
        done, dead, cancelled, named = filled(store, shop)
        assert WORD.encode() not in store.everything()
        assert done.result(1) == named.result(1) == f"result {WORD}"
        with pytest.raises(JobFailed, match=f"message {WORD}") as failed:
            dead.result(1)
        assert f"ValueError: message {WORD}" in failed.value.traceback
        with pytest.raises(JobCancelled, match=f"reason {WORD}"):
            cancelled.result(1)
        job = dead.job()
        assert job.arguments == ([WORD], {"ok": False})
        assert (job.error, job.history[-1].message) == (f"ValueError: message {WORD}", f"message {WORD}")
        assert [line.message for line in job.log] == [f"log {WORD}"]
        assert job.progress is not None
        assert job.progress.message == f"progress {WORD}"
        assert not job.encrypted
        listed = {str(each): each for each in shop.app.jobs(queue="mail")}
        assert listed[str(done)].result == f"result {WORD}"
        assert [str(each) for each in shop.app.jobs(error=f"message {WORD}")] == [str(dead)]

        job = plain.app.job(str(dead))
        assert job.arguments == ([ENCRYPTED], {})
        assert (job.error, job.traceback) == (f"ValueError: {ENCRYPTED}", ENCRYPTED)
        assert (job.log[-1].message, job.progress.message, job.encrypted) == (ENCRYPTED, ENCRYPTED, True)
        assert plain.app.job(str(done)).result == ENCRYPTED
        assert plain.app.job(str(cancelled)).error == ENCRYPTED
        assert all(each.encrypted for each in plain.app.jobs(queue="mail"))
        with pytest.raises(Undecryptable, match="the result is encrypted, and this process has no key"):
            plain.send.handle(done.id).result(1)


def test_the_end_of_an_attempt_that_is_tried_again_is_encrypted_once(kept):
    with shops(kept, {"encryption": LOCKED}) as [shop]:
        handle = shop.send.options(retries=4).enqueue(WORD, ok=False)
        shop.run()
        assert WORD.encode() not in kept.everything()
        assert [each.message for each in handle.job().history] == [f"message {WORD}"] * 5


@pytest.mark.parametrize("encryption", [LOCKED, AesGcm({"x": STRANGE})], ids=["with the key", "without"])
def test_what_is_handed_back_before_it_began_is_encrypted_once(kept, encryption):
    with shops(kept, {"encryption": LOCKED}, {"encryption": encryption}) as [shop, other]:
        handle = shop.send.options(retries=0).enqueue(WORD, ok=False)
        shop.run()
        shop.app.jobs(id=str(handle)).replay()
        broker, me = other.app.broker, new_id()
        broker.call(Beat("mail", [Heartbeat(me, tasks=("send",))]))
        claimed = broker.call(Claim("mail", me, 1))
        [(id, _)] = claimed.jobs
        broker.call(Settle("mail", me, 1, [Released(id, 1, claimed.tallies[id])]))
        broker.call(Retire("mail", me))
        assert [each.message for each in handle.job().history] == [f"message {WORD}"]


def test_an_attempt_that_hands_its_job_back_leaves_no_text(kept):
    with shops(kept, {"encryption": LOCKED}) as [shop]:

        @shop.app.task
        async def busy(word: str) -> None:
            if current_job().attempt == 1:
                raise Release(word, delay=0)

        handle = busy.enqueue(WORD)
        shop.run()
        assert [each.outcome for each in handle.job().history] == ["released"]
        assert WORD.encode() not in kept.everything()


@pytest.mark.parametrize("kind", [Unsigned, BadSignature, Undecryptable])
def test_a_task_that_raises_an_error_of_ours_is_hidden_as_any(kept, kind):
    with shops(kept, {"encryption": LOCKED}) as [shop]:

        @shop.app.task(retries=0)
        async def pay(card: str) -> None:
            try:
                int(card)
            except ValueError:
                raise kind(f"told {card}")  # noqa: B904 - as tasks do

        handle = pay.enqueue(WORD)
        shop.run()
        assert WORD.encode() not in kept.everything()
        job = handle.job()
        assert job.error == f"{kind.__name__}: told {WORD}"
        assert f"with base 10: '{WORD}'" in job.traceback


def test_what_is_left_of_a_long_history_is_shown_to_who_has_the_key():
    envelope = Envelope(None, LOCKED)
    long = extend_tally("", Attempt(1, "retried", 1, 2, "", "BadSignature", WORD, "t" * TALLY_LIMIT))
    first = envelope.seal_settlement("mail", Retried("1", 1, long, 0))
    assert isinstance(first, Retried)
    second = extend_tally(first.tally, Attempt(2, "died", 3, 4, "", "ValueError", WORD, "t"))
    assert read_tally(second)[1][0].traceback == ""
    opened = envelope.open(Snapshot("mail", "1", State.DEAD, tally=second))
    assert read_tally(opened.tally)[1][0].message == WORD


def test_a_long_history_stays_within_its_limit(tmp_path):
    store = Store(_file(tmp_path))
    app = Spool(store.url, encryption=LOCKED)

    @app.task(retries=20, backoff=Backoff(base=0, jitter=False))
    async def long(text: str) -> None:
        raise ValueError(text * 4000)

    handle = long.enqueue("é")
    asyncio.run(run_all(app))
    job = handle.job()
    assert job.state is State.DEAD
    assert job.history[-1].message.startswith("éééé")
    app.close()
    with closing(connect(store.direct)) as broker:
        snapshot = broker.call(Get("default", handle.id))
    assert snapshot is not None
    assert 40_000 < len(snapshot.tally) <= TALLY_LIMIT


@pytest.mark.parametrize(
    ("encryption", "why"),
    [
        (AesGcm({"new": STRANGE}), "the arguments cannot be decrypted: it was changed, or belongs to another job"),
        (
            AesGcm({"x": STRANGE}),
            "the arguments cannot be decrypted: it was encrypted with the key 'new'; known here: x",
        ),
    ],
)
def test_without_the_right_key_a_job_dies_unread(store, encryption, why):
    with shops(store, {"encryption": LOCKED}, {"encryption": encryption}) as [shop, stranger]:
        handle, done = shop.send.enqueue(WORD), shop.send.enqueue("done")
        body = store.record("mail", handle.id)
        shop.app.jobs(id=str(done)).delete()
        job = refused(stranger, stranger.send.handle(handle.id), "Undecryptable")
        assert why in job.error
        assert job.arguments == ([ENCRYPTED], {})
        assert store.record("mail", handle.id) == body
        shop.app.jobs(id=str(handle)).replay()
        shop.run()
        assert handle.result(1) == f"result {WORD}"
        with pytest.raises(Undecryptable, match="the result is encrypted"):
            stranger.send.handle(handle.id).result(1)


def test_a_worker_that_was_given_no_key_says_so(store):
    with shops(store, {"encryption": LOCKED}, {}) as [shop, plain]:
        handle = shop.send.enqueue(WORD)
        plain.run()
        assert plain.ran == []
        job = handle.job()
        assert (
            job.error == "Undecryptable: task 'send': the arguments are encrypted, and this process has no key for that"
        )
        assert (job.state, job.arguments) == ("dead", ([WORD], {}))


def test_what_was_encrypted_for_one_place_is_of_no_use_in_another(kept):
    with shops(kept, {"encryption": LOCKED}) as [shop]:
        first, second = shop.send.enqueue("first"), shop.send.enqueue("second")
        third, fourth = shop.send.enqueue("third"), shop.send.enqueue("fourth")
        shop.send.options(queue="bulk", id=third.id).enqueue("bulk")
        taken = elements(kept.record("mail", first.id))
        for handle, index, value in ((second, 7, taken[7]), (fourth, 1, msgspec.Raw(b"\xa5other"))):
            fields = elements(kept.record("mail", handle.id))
            fields[index] = value
            kept.put_record("mail", handle.id, joined(fields))
        fields = elements(kept.record("bulk", third.id))
        fields[7] = elements(kept.record("mail", third.id))[7]
        kept.put_record("bulk", third.id, joined(fields))
        shop.run()
        assert sorted(shop.ran) == ["first", "third"]
        for handle in (second, fourth, shop.app.tasks["send"].handle(third.id, "bulk")):
            assert handle.job().history[-1].error_type == "Undecryptable"


def test_a_result_is_bound_to_its_job(kept):
    with shops(kept, {"encryption": LOCKED}) as [shop]:
        first, second = shop.send.enqueue("first"), shop.send.enqueue("second")
        shop.run()
        kept.put_ending("mail", first.id, kept.ending("mail", second.id))
        with pytest.raises(Undecryptable):
            first.result(1)
        assert first.job().result == ENCRYPTED


def test_keys_of_encryption_are_changed_without_losing_a_job(kept):
    old, both = AesGcm({"old": OLD}), AesGcm({"new": NEW, "old": OLD})
    with shops(kept, {"encryption": old}, {"encryption": both}, {"encryption": LOCKED}) as [before, between, after]:
        first, second = before.send.enqueue("1"), between.send.enqueue("2")
        between.run()
        assert between.send.handle(first.id).result(1) == "result 1"
        assert after.send.handle(second.id).result(1) == "result 2"
        with pytest.raises(Undecryptable):
            before.send.handle(second.id).result(1)


def test_what_is_not_encrypted_is_still_read(store):
    with shops(store, {}, {"encryption": LOCKED}) as [plain, shop]:
        handle = plain.send.enqueue("ada")
        shop.run()
        assert shop.send.handle(handle.id).result(1) == "result ada"
        early = plain.send.enqueue("bob")
        plain.run()
        assert shop.send.handle(early.id).result(1) == "result bob"


def test_no_hash_of_the_arguments_lies_in_the_store(store):
    with shops(store, {"encryption": LOCKED}) as [shop]:
        shop.send.options(id="one").enqueue("ada")
        shop.send.options(id="two").enqueue("bob")
        prints = [read_record(store.record("mail", id)).fingerprint for id in ("one", "two")]
        assert prints[0] == prints[1] != ""
        assert not shop.send.options(id="one").enqueue("bob").created  # so this is no conflict,
        with pytest.raises(JobConflict):
            shop.other.options(id="one").enqueue("ada")  # but this is
        shop.run()
        assert shop.ran == ["ada", "bob"]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("settings", [({}, {"encryption": LOCKED}), ({"encryption": LOCKED}, {})])
def test_a_repeat_is_one_whichever_of_the_two_is_encrypted(store, settings, ended):
    with shops(store, *settings) as [first, second]:
        assert first.send.options(id="one").enqueue("ada").created
        if ended:
            keeper = first if "encryption" in settings[0] else second
            keeper.run()
        assert not second.send.options(id="one").enqueue("ada").created
        with pytest.raises(JobConflict):
            second.other.options(id="one").enqueue("ada")
        assert not first.send.options(id="one").enqueue("ada").created


class Fragile:
    """Encryption of somebody's own, that fails for some contexts and tells all in its errors."""

    def __init__(self, *fails: str) -> None:
        self._fails = fails

    def encrypt(self, data: bytes, context: bytes) -> bytes:
        if msgspec.msgpack.decode(context)[0] in self._fails:
            raise LookupError(data.decode("latin-1"))
        return bytes(each ^ 1 for each in data)

    def decrypt(self, data: bytes, context: bytes) -> bytes:
        if msgspec.msgpack.decode(context)[0] in self._fails:
            raise LookupError(data.decode("latin-1"))
        return bytes(each ^ 1 for each in data)


def test_encryption_of_ones_own(kept):
    with shops(kept, {"encryption": Fragile()}) as [shop]:
        done, dead, cancelled, _ = filled(kept, shop)
        assert WORD.encode() not in kept.everything()
        assert done.result(1) == f"result {WORD}"
        assert (dead.job().error, cancelled.job().error) == (f"ValueError: message {WORD}", f"reason {WORD}")


def test_what_cannot_be_encrypted_is_not_stored(kept):
    why = r"^the arguments cannot be encrypted: LookupError$"
    with shops(kept, {"encryption": Fragile("arguments")}) as [shop], pytest.raises(ProtectionError, match=why):
        shop.send.enqueue(WORD)
    with shops(kept, {"encryption": Fragile("result")}) as [shop]:
        handle = shop.send.enqueue(WORD)
        shop.run()
        job = handle.job()
        assert (job.state, job.error) == ("dead", "ProtectionError: the result cannot be encrypted: LookupError")
        assert (job.attempts, job.failures, job.history[-1].outcome) == (1, 1, "died")
    texts = ("message", "traceback", "reason", "log", "progress")
    with shops(kept, {"encryption": Fragile(*texts)}) as [shop]:
        _, dead, cancelled, _ = filled(kept, shop)
        job = dead.job()
        assert (job.error, job.traceback, cancelled.job().error) == (f"ValueError: {LOST}", LOST, LOST)
        assert (job.log[-1].message, job.progress.message) == (LOST, LOST)
    assert WORD.encode() not in kept.everything()


def test_what_cannot_be_decrypted_is_told_by_its_type(kept):
    with shops(kept, {"encryption": Fragile()}, {"encryption": Fragile("arguments", "result")}) as [shop, broken]:
        handle = shop.send.enqueue(WORD)
        broken.run()
        assert handle.job().error.endswith("the arguments cannot be decrypted: LookupError")
        assert broken.ran == []


def test_a_text_that_pretends_to_be_encrypted_is_encrypted(kept):
    with shops(kept, {"encryption": LOCKED}) as [shop]:
        handle = shop.give_up.enqueue(WORD)
        shop.run()
        app = Spool(kept.url, encryption=LOCKED)

        @app.task(retries=0)
        async def pretend() -> None:
            raise ValueError(TEXT + base64.b64encode(WORD.encode()).decode())

        pretender = pretend.enqueue()
        asyncio.run(run_all(app))
        assert base64.b64encode(WORD.encode()) not in kept.everything()
        assert pretender.job().history[-1].message == ENCRYPTED
        assert handle.status() is State.CANCELLED
        app.close()


# What costs nothing when it is off


def test_without_keys_there_is_nothing_in_the_way(tmp_path):
    app = Spool(_file(tmp_path))
    assert type(app.broker) is SqliteBroker
    with app.using(connect("sqlite://:memory:")) as broker:
        assert type(broker) is SqliteBroker

    @app.task
    async def plain() -> None: ...

    assert len(elements(plain.call().job.record)) == len(Record.__struct_fields__)
    app.close()


def test_it_is_put_around_a_broker_once(tmp_path):
    app = Spool(_file(tmp_path), signing=SIGNING)
    assert type(app.broker).__name__ == "Protected"
    assert Spool(app.broker, signing=SIGNING).broker is app.broker
    assert app.broker.url == _file(tmp_path)
    app.close()


def test_the_mark_of_a_refused_record_means_nothing_in_a_store(tmp_path):
    store = Store(_file(tmp_path))
    mark = bytes(Refused.because(Unsigned("not really")))
    with shops(store, {"signing": SIGNING}) as [shop]:
        handle = shop.send.enqueue("ada")
        store.put_record("mail", handle.id, mark)
        good = shop.send.enqueue("good")
        shop.run()
        assert (shop.ran, good.status()) == (["good"], "done")
        assert handle.status() is State.DEAD
        with closing(connect(store.direct)) as broker:
            tally = broker.call(Get("mail", handle.id)).tally
        assert "Undecodable" in tally
        assert "not really" not in tally


def test_tests_in_memory_do_without(tmp_path):
    store = Store(_file(tmp_path))
    with shops(store, {"signing": SIGNING, "encryption": LOCKED}) as [shop], testing.isolated(shop.app):
        handle = shop.send.enqueue(WORD)
        assert testing.enqueued(shop.app)[0].arguments == {"to": WORD}
        testing.run_until_idle(shop.app)
        assert handle.result() == f"result {WORD}"


# Settings


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "takes keys by id"),
        (None, "takes keys by id"),
        ([b"s" * 32], "takes keys by id"),
        ({b"id": b"s" * 32}, "the id of key 1 is not usable"),
        ({"ok": NEW, "S3cretS3cret/+": b"s" * 32}, "the id of key 2 is not usable"),
        ({"2026": b"S3cret"}, "the key '2026' must have 32 .*bytes, not 6"),
        ({"2026": "S3cret!?"}, "the key '2026' is not base64"),
        ({"2026": "S3cretä"}, "the key '2026' is not base64"),
        ({"2026": text(b"S3cret")}, "the key '2026' must have 32 .*bytes, not 6"),
        ({"2026": 2026}, "the key '2026' must be bytes, or text in base64, not int"),
        ({"2026": b"s" * 1025}, "the key '2026' must have 32 .*bytes, not 1025"),
    ],
)
@pytest.mark.parametrize("kind", [Signing, AesGcm])
def test_keys_that_cannot_be_used(kind, keys, problem):
    with pytest.raises(ConfigError, match=f"{kind.__name__}.*{problem}") as wrong:
        kind(keys)
    assert "S3cret" not in str(wrong.value)


def test_keys_as_bytes_and_in_both_alphabets_of_base64():
    key = bytes(range(220, 252))
    texts = [base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode().rstrip("=") + "\n"]
    assert texts[0] != texts[1]
    sealed = AesGcm({"a": key}).encrypt(b"data", b"context")
    assert [AesGcm({"a": each}).decrypt(sealed, b"context") for each in texts] == [b"data"] * 2
    for wrong in (b"", b"\x01", b"\x02" + sealed[1:], sealed[:20], sealed[:-1], sealed + b"\0"):
        with pytest.raises(Undecryptable):
            AesGcm({"a": key}).decrypt(wrong, b"context")
    with pytest.raises(Undecryptable):
        AesGcm({"a": key}).decrypt(sealed, b"another context")


def test_nothing_shows_a_key():
    app = Spool("sqlite://:memory:", signing=Signing({"a": b"S3cret" * 6}), encryption=AesGcm({"b": b"S3cret12" * 4}))
    shown = [repr(each) for each in (app, app.broker, SIGNING, LOCKED, Signing({"a": b"S3cret" * 6}))]
    assert "S3cret" not in " ".join(shown)
    assert shown[2:4] == ["<Signing new>", "<AesGcm new>"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"signing": {"2026": NEW}}, "signing takes a Signing, as .*, not dict"),
        ({"signing": LOCKED}, "signing takes a Signing, as .*, not AesGcm"),
        ({"encryption": NEW}, "encryption takes something with encrypt and decrypt, as .*, not bytes"),
        ({"encryption": SIGNING}, "encryption takes something with encrypt and decrypt, as .*, not Signing"),
    ],
)
def test_what_an_app_cannot_use(given, problem):
    with pytest.raises(ConfigError, match=problem):
        Spool("sqlite://:memory:", **given)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"SIGNING_KEYS": text(NEW)}, "SPOOL_SIGNING_KEYS: entry 1 is not of the form id=base64"),
        ({"SIGNING_KEYS": f"a={text(NEW)},{text(NEW)}"}, "SPOOL_SIGNING_KEYS: entry 2 is not of the form"),
        ({"SIGNING_KEYS": f"a={text(NEW)} a={text(NEW)}"}, "SPOOL_SIGNING_KEYS: the id 'a' is there twice"),
        ({"SIGNING_KEYS": "a=bm5u"}, "SPOOL_SIGNING_KEYS: Signing: the key 'a' must have 32 to 1,024 bytes, not 3"),
        (
            {"ENCRYPTION_KEYS": f"a={text(NEW * 2)}"},
            "SPOOL_ENCRYPTION_KEYS: AesGcm: the key 'a' must have 32 bytes, not 64",
        ),
        ({"ACCEPT_UNSIGNED": "1"}, "SPOOL_ACCEPT_UNSIGNED says something only with SPOOL_SIGNING_KEYS"),
        ({"SIGNING_KEYS": f"a={text(NEW)}", "ACCEPT_UNSIGNED": "maybe"}, "SPOOL_ACCEPT_UNSIGNED must be 1 or 0"),
        ({"SIGNING_KEYS_FILE": "/nowhere"}, "SPOOL_SIGNING_KEYS_FILE: /nowhere cannot be read: No such file"),
        ({"SIGNING_KEYS_FILE": "/dev/null"}, "SPOOL_SIGNING_KEYS_FILE: /dev/null is empty"),
        ({"SIGNING_KEYS_FILE": "/x", "SIGNING_KEYS": "a=b"}, "give SPOOL_SIGNING_KEYS or SPOOL_SIGNING_KEYS_FILE"),
    ],
)
def test_keys_in_the_environment_that_cannot_be_used(monkeypatch, variables, problem):
    for name, value in variables.items():
        monkeypatch.setenv(f"SPOOL_{name}", value)
    with pytest.raises(ConfigError, match=problem) as wrong:
        _ = Spool("sqlite://:memory:").broker
    assert text(NEW) not in str(wrong.value)


def test_keys_in_a_file(kept, monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"new={text(NEW)}\nold={text(OLD)}\n")
    monkeypatch.setenv("SPOOL_SIGNING_KEYS_FILE", str(file))
    monkeypatch.setenv("SPOOL_ENCRYPTION_KEYS", f" old={text(OLD)} , new={text(NEW)} ")
    with shops(kept, {}, {"signing": SIGNING, "encryption": AesGcm({"x": OLD})}) as [shop, other]:
        handle = shop.send.enqueue("ada")
        assert "known here: x" in refused(other, other.send.handle(handle.id), "Undecryptable").error
        shop.app.jobs(id=str(handle)).replay()
        shop.run()
        assert handle.result(1) == "result ada"


# Real workers


@pytest.mark.parametrize("more", [[], ["--url", "sqlite:///other.db"]])
def test_a_worker_with_keys_that_cannot_be_used_says_so_and_ends(tmp_path, more):
    command = [sys.executable, "-m", "spool", "worker", "tests.secret_shop:app", *more]
    given = {
        "SPOOL_URL": _file(tmp_path),
        "SPOOL_SIGNING_KEYS": "a=S3cret!",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(command, env=os.environ | given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "SPOOL_SIGNING_KEYS: Signing: the key 'a' is not base64" in done.stderr
    assert "S3cret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(120)
def test_worker_processes_have_the_keys_of_their_environment(store, monkeypatch):
    monkeypatch.setenv("SPOOL_SIGNING_KEYS", f"new={text(NEW)}")
    monkeypatch.setenv("SPOOL_ENCRYPTION_KEYS", f"new={text(NEW)}")
    app = secret_shop.app
    options = WorkerOptions(app="tests.secret_shop:app", url=store.url, processes=1, pool_size=1, log_level="error")
    broker, plain = connect(store.url), Spool("sqlite://:memory:")
    with app.using(broker), plain.using(broker, plain=True), Fleet(options) as fleet:
        fleet.wait_ready()
        inner = secret_shop.add_later.enqueue(20, 22).result(30)
        assert secret_shop.add.handle(inner).result(30) == 42  # signed where it was made, in the pool
        told = secret_shop.tell.enqueue(WORD)
        failed = [task.enqueue(WORD) for task in (secret_shop.fail, secret_shop.fail_apart)]
        given_up = secret_shop.give_up.enqueue(WORD)
        assert told.result(30) == f"result {WORD}"
        for handle in failed:
            with pytest.raises(JobFailed, match=f"message {WORD}"):
                handle.result(30)
        with pytest.raises(JobCancelled, match=f"reason {WORD}"):
            given_up.result(30)

        @plain.task(name="add")
        async def add(a: int, b: int) -> int: ...

        unsigned = add.enqueue(1, 2)
        with pytest.raises(JobFailed, match="the job is not signed") as dead:
            unsigned.result(30)
        assert dead.value.error_type == "Unsigned"
        assert secret_shop.add.enqueue(1, 2).result(30) == 3
    broker.close()
    assert WORD.encode() not in store.everything()
    assert os.environ["SPOOL_SIGNING_KEYS"]
