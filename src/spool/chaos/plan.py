"""What a run is to do: its load, its faults, and when each of them strikes. All of it follows from the plan's seed."""

from __future__ import annotations

import random
import shlex
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from spool.errors import ConfigError

BrokerKind = Literal["redis", "sqlite"]
Durability = Literal["always", "everysec", "none"]
Subject = Literal["worker", "producer", "store", "network", "job"]


class Fault(msgspec.Struct, frozen=True):
    """A kind of fault. ``shortest`` and ``longest`` are how long it lasts, in leases."""

    name: str
    subject: Subject
    summary: str
    shortest: float = 0.0
    longest: float = 0.0
    brokers: tuple[BrokerKind, ...] = ("redis", "sqlite")
    forgets: bool = False
    """Makes any store lose what it had acknowledged: struck only when named."""


_REDIS: Final = ("redis",)
_ALL: Final = (
    Fault("kill-child", "worker", "SIGKILL of one worker process"),
    Fault("kill-supervisor", "worker", "SIGKILL of one supervisor, started again later", 0.2, 2.0),
    Fault("kill-all", "worker", "SIGKILL of every process of every worker, started again later", 0.2, 2.0),
    Fault("stop-worker", "worker", "SIGSTOP of a supervisor and its processes past the lease, then SIGCONT", 1.5, 3.0),
    Fault("stop-child", "worker", "SIGSTOP of one worker process past the lease, then SIGCONT", 1.5, 3.0),
    Fault("deploy", "worker", "SIGTERM of each worker in turn, a new one in its place", 0.5, 1.5),
    Fault("clock", "worker", "one worker's clock an hour off, either way (libfaketime)", 1.0, 3.0),
    Fault("kill-producer", "producer", "SIGKILL of one producer; its successor sends its last job again", 0.1, 1.0),
    Fault("redis-kill", "store", "SIGKILL of Redis, started again later", 0.1, 1.5, _REDIS),
    Fault("power-loss", "store", "as redis-kill, and gone is what fsync had not secured", 0.1, 1.5, _REDIS),
    Fault("redis-pause", "store", "SIGSTOP of Redis, then SIGCONT", 0.3, 3.0, _REDIS),
    Fault("client-pause", "store", "CLIENT PAUSE", 0.2, 1.5, _REDIS),
    Fault("maxmemory", "store", "Redis has no memory left: writes that need some are refused", 0.5, 2.0, _REDIS),
    Fault("disk-full", "store", "the disk of the SQLite file is full", 0.5, 2.0, ("sqlite",)),
    Fault("corrupt", "store", "garbage in place of the records of some jobs"),
    Fault("flushall", "store", "FLUSHALL", 0.0, 0.0, _REDIS, forgets=True),
    Fault("cut", "network", "connections of a worker, or of all, are cut, and refused for a time", 0.3, 2.0, _REDIS),
    Fault("half-open", "network", "connections stay open and nothing passes", 0.3, 3.0, _REDIS),
    Fault("delay", "network", "everything passes late, by up to a quarter of the lease", 0.5, 2.0, _REDIS),
    Fault(
        "reply-lost", "network", "the server carries out, and the connection ends before its reply", 0.3, 1.0, _REDIS
    ),
    Fault("block-loop", "job", "a job blocks its event loop for 5 leases"),
    Fault("segfault", "job", "a job that ends its process with SIGSEGV"),
    Fault("exit", "job", "a job that ends its process with os._exit"),
    Fault("recursion", "job", "a job that recurses until its stack is used up"),
    Fault("memory", "job", "a job that allocates without end, under RLIMIT_AS"),
    Fault("stubborn", "job", "a job that ignores its timeout: async, in a thread, in a process"),
)
FAULTS: Final = {fault.name: fault for fault in _ALL}
POISONS: Final = frozenset(fault.name for fault in _ALL if fault.subject == "job")


class Strike(msgspec.Struct, frozen=True):
    """One fault at one time. ``at`` and ``seconds`` count from the start of the load.

    ``pick`` and ``pick2``, in [0, 1), decide whom it hits among those who are there when it strikes.
    """

    number: int
    at: float
    fault: str
    seconds: float
    pick: float
    pick2: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Times in seconds. Raises `ConfigError` for what cannot be done.

    >>> Plan(seconds=20, faults=("kill-child",)).broker
    'redis'
    """

    seconds: float = 60.0
    """How long load and faults last; recovery and the audit come after."""
    seed: int = 0
    broker: BrokerKind = "redis"
    durability: Durability = "always"
    """Redis: appendfsync always or everysec, or no AOF at all. SQLite: synchronous FULL for always, else NORMAL."""
    rate: float = 100.0
    """Jobs per second, all producers together."""
    producers: int = 2
    workers: int = 3
    """Supervisors."""
    processes: int = 2
    """Worker processes of each."""
    concurrency: int = 10
    lease: float = 2.0
    grace: float = 2.0
    every: float = 0.0
    """Mean seconds between two strikes; 0 is 1.5 leases, or less if not every fault would have its turn."""
    singly: bool = False
    """Wait between strikes until the one before is over and recovered from."""
    faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("producers", "workers", "processes", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seconds", "rate", "lease"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not self.grace >= 0 or not self.every >= 0:
            raise ConfigError("grace and every must be 0 or more")
        if self.broker == "sqlite" and self.durability == "none":
            raise ConfigError("SQLite has no durability none: it is always (FULL) or everysec (NORMAL)")
        for name in self.faults:
            if name not in FAULTS:
                raise ConfigError(f"there is no fault {name!r}; there are {', '.join(FAULTS)}")
            if self.broker not in FAULTS[name].brokers:
                raise ConfigError(f"the fault {name} is none of {self.broker}")

    @property
    def forgetful(self) -> bool:
        """Whether this store may lose what it acknowledged when it is killed."""
        return self.broker == "redis" and self.durability != "always"

    @property
    def command(self) -> str:
        """The command that runs this plan again."""
        words = ["spool", "chaos", "--seed", str(self.seed), "--seconds", f"{self.seconds:g}", "--broker", self.broker]
        for field in ("durability", "rate", "producers", "workers", "processes", "concurrency", "lease", "grace"):
            if (value := getattr(self, field)) != _DEFAULTS[field]:
                words += [f"--{field}", value if isinstance(value, str) else f"{value:g}"]
        if self.every:
            words += ["--every", f"{self.every:g}"]
        if self.singly:
            words.append("--singly")
        if self.faults != default_faults(self.broker):
            words += ["--faults", ",".join(self.faults)] if self.faults else ["--no-faults"]
        return shlex.join(words)


_DEFAULTS: Final[dict[str, Any]] = {
    field.name: field.default for field in msgspec.structs.fields(Plan) if field.name != "faults"
}


def default_faults(broker: BrokerKind) -> tuple[str, ...]:
    """Return the faults that a durable store survives.

    >>> "disk-full" in default_faults("sqlite"), "flushall" in default_faults("redis")
    (True, False)
    """
    return tuple(fault.name for fault in _ALL if broker in fault.brokers and not fault.forgets)


def schedule(plan: Plan) -> list[Strike]:
    """Return when what strikes: the same for the same plan.

    Faults come in random order, each as often as the others. Those of the store do not overlap one another, nor do
    those of the network; else they do as it happens, unless the plan says ``singly``.
    """
    dice = random.Random(f"spool chaos {plan.seed}")  # noqa: S311 - to be repeated, not to be secret
    if not plan.faults:
        return []
    calm = 2 * plan.lease + 2.0
    begin = min(1.5, plan.seconds / 10)
    every = plan.every or min(1.5 * plan.lease, max(0.2, (plan.seconds - begin) / (len(plan.faults) + 1)))
    deck: list[str] = []
    free: dict[str, float] = {}
    strikes: list[Strike] = []
    at, rounds = begin, 0
    while at < plan.seconds and rounds < 100_000:
        rounds += 1
        deck = deck or dice.sample(plan.faults, len(plan.faults))
        fault = FAULTS[deck.pop()]
        lasts = dice.uniform(fault.shortest, fault.longest) * plan.lease
        pick, pick2 = dice.random(), dice.random()
        lane = "" if plan.singly else fault.subject
        when = max(at, free.get(lane, 0.0))
        if when + lasts <= plan.seconds:
            strikes.append(Strike(len(strikes), round(when, 3), fault.name, round(lasts, 3), pick, pick2))
            if plan.singly:
                free[lane] = when + lasts + calm
            elif fault.subject in ("store", "network"):
                free[lane] = when + lasts + 0.5 * plan.lease
        at += every * dice.uniform(0.4, 1.6)
        if plan.singly:
            at = max(at, free.get(lane, 0.0))
    strikes.sort(key=lambda strike: strike.at)
    return [msgspec.structs.replace(strike, number=number) for number, strike in enumerate(strikes)]


class Script(msgspec.Struct, frozen=True):
    """A plan with its schedule, as it lies in a file."""

    plan: Plan
    strikes: list[Strike]


def load_script(path: Path) -> Script:
    """Read a file written by `dump_script`, or the result of a run. Raises `ConfigError`."""
    try:
        script = msgspec.json.decode(path.read_bytes(), type=Script)
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path} is no schedule of spool chaos: {error}") from error
    for strike in script.strikes:
        if strike.fault not in FAULTS or script.plan.broker not in FAULTS[strike.fault].brokers:
            raise ConfigError(f"{path}: {strike.fault!r} is no fault of {script.plan.broker}")
    return script


def dump_script(script: Script) -> str:
    """Return a script as JSON."""
    return msgspec.json.format(msgspec.json.encode(script), indent=2).decode() + "\n"
