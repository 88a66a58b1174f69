"""The tables of the configuration, as typed models."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from ratelimit.config.values import (
    CountTable,
    Different,
    FilePath,
    Folder,
    Forget,
    HaproxyPeer,
    Hold,
    HostName,
    HostPort,
    Ladder,
    Listen,
    Origin,
    PeerName,
    ReadableFile,
    SecretFile,
    Some,
    StatsSocket,
    StoreUrl,
    SyncInterval,
    TrustedNetwork,
    WebhookUrl,
    Window,
    check_host_name,
)
from ratelimit.events.webhooks import EVENTS, EventName
from ratelimit.model import (
    FUSE,
    MAX_BYTES,
    MAX_OPEN,
    MAX_RATE,
    NAME,
    SHARED_CLIENTS,
    Address,
    Counts,
)
from ratelimit.notation import DAY, MILLISECOND, SECOND, format_duration
from ratelimit.store import MEMORY

_T = TypeVar("_T")

_MAX_TRUSTED = 1000  # networks, which are searched at each connection
_MAX_PEERS = 1000  # names of HAProxies


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AgentSection(Section):
    """``[agent]``: the listening addresses for HAProxy and the number of clients in memory."""

    listen: Annotated[tuple[Listen, ...], Some] = Field((Address("127.0.0.1", 9190),), strict=False)
    http_listen: tuple[str, ...] = Field((), strict=False)
    peers: Annotated[tuple[Listen, ...], Different] = Field((), strict=False)
    peer_name: PeerName = "agent"
    peers_allowed: tuple[PeerName, ...] = Field((), strict=False, max_length=_MAX_PEERS)
    peers_ca: ReadableFile = ""
    peers_certificate: ReadableFile = Field("", validate_default=True)
    trusted: tuple[TrustedNetwork, ...] = Field(
        (), strict=False, max_length=_MAX_TRUSTED, validate_default=True
    )
    trusted_proxies: tuple[TrustedNetwork, ...] = Field((), strict=False, max_length=_MAX_TRUSTED)
    max_clients: int = Field(1_000_000, ge=8, le=1_000_000_000)

    @field_validator("http_listen")
    @classmethod
    def _is_reserved(cls, listen: tuple[str, ...]) -> tuple[str, ...]:
        if listen:
            raise ValueError("not available in this version; leave it at its default")
        return listen

    @field_validator("peers_certificate")
    @classmethod
    def _is_verified(cls, certificate: str, info: ValidationInfo) -> str:
        if "peers_ca" in info.data and bool(certificate) != bool(info.data["peers_ca"]):
            raise ValueError("TLS needs both agent.peers_certificate and agent.peers_ca")
        return certificate

    @field_validator("trusted")
    @classmethod
    def _is_safe(cls, trusted: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        listens = (*info.data.get("listen", ()), *info.data.get("peers", ()))
        beyond = [str(one) for one in listens if not one.is_loopback]
        if beyond and not trusted:
            raise ValueError(
                f"must name the networks of the HAProxies, because {beyond[0]} is not on loopback "
                "and every peer can block any client"
            )
        return trusted


class OpsSection(Section):
    """``[ops]``: the HTTP API for operators."""

    token_file: FilePath = ""
    listen: HostPort = Address("127.0.0.1", 9191)
    hosts: tuple[HostName, ...] = Field((), strict=False, max_length=64)
    origins: tuple[Origin, ...] = Field((), strict=False, max_length=64)

    @field_validator("listen")
    @classmethod
    def _is_safe(cls, listen: Address, info: ValidationInfo) -> Address:
        if not listen.is_loopback and not info.data.get("token_file"):
            raise ValueError("needs ops.token_file unless it is on loopback")
        return listen


class StoreSection(Section):
    """``[store]``: what the nodes share."""

    url: StoreUrl = MEMORY
    sync_interval: SyncInterval = 10 * MILLISECOND
    prefix: Annotated[str, StringConstraints(pattern=f"^{NAME}$")] = "ratelimit"
    state_dir: FilePath = ""
    replicas: int = Field(0, ge=0, le=16)
    shared_clients: int = Field(SHARED_CLIENTS, ge=1, le=1_000_000)
    tls_server_name: str = ""
    secret_file: SecretFile = ""
    on_outage: Literal["local", "share"] = "local"

    @field_validator("replicas", "secret_file")
    @classmethod
    def _is_shared(cls, value: _T, info: ValidationInfo) -> _T:
        if value and info.data.get("url") == MEMORY:
            raise ValueError("needs a store.url that nodes share, such as redis://")
        return value

    @field_validator("tls_server_name")
    @classmethod
    def _has_tls(cls, name: str, info: ValidationInfo) -> str:
        if name:
            check_host_name(name)
            if not info.data.get("url", "rediss").startswith("rediss"):
                raise ValueError("needs a store.url with TLS, such as rediss://")
        return name


class LimitSection(Section):
    """``[limits.NAME]``: at most ``rate`` hits of one client in any ``window``."""

    window: Window = SECOND
    block: Ladder = Field(
        (10 * SECOND, 60 * SECOND, 600 * SECOND, 3600 * SECOND), strict=False, max_length=32
    )
    forget: Forget = DAY
    strict: bool = False
    shadow: bool = False
    ipv4_prefix: int = Field(32, ge=1, le=32)
    ipv6_prefix: int = Field(64, ge=1, le=128)
    headers: bool = False
    fuse: float = Field(FUSE, ge=0, le=1, strict=False)
    secret: bool = True
    table: CountTable = ""
    counts: Counts = "requests"
    open: int = Field(0, ge=0, le=MAX_OPEN)
    count_refused: bool = True
    # After ``counts``, which its maximum depends on.
    rate: int = Field(100, ge=1, le=MAX_BYTES)

    @field_validator("rate")
    @classmethod
    def _is_counted(cls, rate: int, info: ValidationInfo) -> int:
        if rate > MAX_RATE and not info.data.get("counts", "").startswith("bytes"):
            raise ValueError(f"must be less than or equal to {MAX_RATE}")
        return rate

    @field_validator("strict")
    @classmethod
    def _outlasts_the_window(cls, strict: bool, info: ValidationInfo) -> bool:
        window, ladder = info.data.get("window", 0), info.data.get("block", ())
        if strict and ladder and ladder[0] < window:
            # After a block a client has its whole rate again.
            shown = format_duration(window)
            raise ValueError(f"needs blocks of at least the window, {shown}, or block = []")
        return strict

    @property
    def is_fed_by_peers(self) -> bool:
        """Whether the configuration says that HAProxy's stick tables feed this limit."""
        return bool(self.table or self.open or self.counts != "requests")

    @field_validator("table", "counts", "open")
    @classmethod
    def _is_not_strict(cls, value: _T, info: ValidationInfo) -> _T:
        # Default values are not validated, so the value is one of the file.
        if value not in ("", 0, "requests") and info.data.get("strict"):
            raise ValueError("impossible with strict: HAProxy's peers report a hit afterwards")
        return value


class ListsSection(Section):
    """``[lists]``: networks that are always allowed or always denied.

    ``read_lists()`` validates the entries.
    """

    allow: tuple[str, ...] = Field((), strict=False)
    deny: tuple[str, ...] = Field((), strict=False)
    allow_files: tuple[str, ...] = Field((), strict=False)
    deny_files: tuple[str, ...] = Field((), strict=False)


class HaproxySection(Section):
    """``[haproxy]``: the HAProxy processes of this node."""

    sockets: Annotated[tuple[StatsSocket, ...], Different] = Field((), strict=False, max_length=64)
    maps_dir: Folder = ""
    peer_sockets: tuple[HaproxyPeer, ...] = Field((), strict=False, max_length=_MAX_PEERS)

    @field_validator("peer_sockets")
    @classmethod
    def _has_names(cls, peers: tuple[HaproxyPeer, ...]) -> tuple[HaproxyPeer, ...]:
        names = [name for name, _ in peers]
        if len(set(names)) < len(names):
            raise ValueError("names an HAProxy twice")
        return peers


class WebhookSection(Section):
    """``[[webhooks]]``: a receiver of events."""

    url: WebhookUrl = Field(repr=False)
    events: Annotated[tuple[EventName, ...], Some] = Field(EVENTS, strict=False)
    secret_file: SecretFile = ""


class LoadSection(Section):
    """``[load]``: thresholds of the events for high and low load."""

    high: int = Field(0, ge=0)
    low: int = Field(0, ge=0)
    hold: Hold = 30 * SECOND

    @field_validator("low")
    @classmethod
    def _is_lower(cls, low: int, info: ValidationInfo) -> int:
        if low and low >= info.data.get("high", low + 1):
            raise ValueError("must be less than high")
        return low
