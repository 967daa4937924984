"""What the state of a fleet looks like to those who watch it: the JSON of the cloud's HTTP API and the agent's socket.

=====================  ==============================  ==========================================
HTTP, cloud's socket   agent's socket                  answer
=====================  ==============================  ==========================================
``/v1/fleet``          –                               :class:`FleetSnapshot`
``/v1/gateways/{id}``  op ``gateway``                  :class:`GatewayDetail`
``/v1/commands``       –                               :class:`CommandsState`
``/v1/kafka``          –                               :class:`KafkaState`
``/v1/log``            op ``log``                      :class:`LogState`
=====================  ==============================  ==========================================

Fields at their default are left out of the JSON. Times: milliseconds since 1970 UTC by the clock of who answers, ``0``:
not known. ``None``: not known, as of gateways whose agents say nothing of themselves. Texts come from gateways and
devices: whoever draws them must not take them for markup or for control characters.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Link = Literal["online", "connecting", "offline", "off", "unknown"]
"""``off``: no uplink is configured; the cloud itself knows ``online``, ``offline`` and ``unknown`` (never seen)."""


class _State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all have in common."""


class GatewayRow(_State, frozen=True):
    """One gateway in one row.

    ``since_ms``: since when its link is so; ``reason``: why it is offline; ``uplink``: the one in use, or last used.
    ``node``: to which node of the cloud it is or was connected, ``address``: from where. ``partition``: the frames
    partition of its messages, None where it is not known.

    What follows is of its newest health record, ``reported_ms``; None without one. ``backlog``, ``backlog_bytes``:
    what waits in all lanes; ``oldest_ms``: when its oldest message came. ``holds_s``: seconds that the buffer lasts
    without the uplink; ``drained_s``: until the backlog is gone. ``bytes_per_min``: on the wire, both directions.
    ``rate_in``, ``rate_out``: messages a second from devices, and acknowledged by the cloud. ``dropped``: messages
    since the agent's start that left with a receipt or were not taken for want of room. ``devices``: connected.
    ``certificate_ms``: when the certificate of its uplink ends. ``plan_used``: part of the data plan that is used
    (1.0: all). ``trouble``: what a person should look at, or empty.
    """

    gateway: str
    state: Link = "unknown"
    since_ms: int = 0
    reason: str = ""
    uplink: str = ""
    node: str = ""
    address: str = ""
    version: str = ""
    partition: int | None = None
    reported_ms: int = 0
    backlog: int | None = None
    backlog_bytes: int | None = None
    oldest_ms: int = 0
    holds_s: float | None = None
    drained_s: float | None = None
    bytes_per_min: float | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    dropped: int | None = None
    devices: int | None = None
    certificate_ms: int = 0
    plan_used: float | None = None
    trouble: str = ""


class FleetSnapshot(_State, frozen=True):
    """All gateways, or those that changed since ``since`` of the request (then ``full`` is false).

    ``revision``: what to give as ``since`` the next time; it is of one node's one start, to others it means nothing,
    and they answer in full. ``gone``: gateways that are forgotten since then. ``total``, ``online``, ``offline``:
    gateways; the rest is unknown. ``left_out``: gateways for which this node has no room. ``lag_ms``: of each frames
    partition, by its number, how long its oldest message waits to be routed (0: none does; None: not known).
    ``faults``: why what is said may be old, and what else is wrong with the cloud itself.
    """

    at_ms: int
    deployment: str
    node: str
    revision: str
    full: bool
    gateways: tuple[GatewayRow, ...]
    gone: tuple[str, ...] = ()
    total: int = 0
    online: int = 0
    offline: int = 0
    left_out: int = 0
    lag_ms: tuple[int | None, ...] = ()
    faults: tuple[str, ...] = ()


class LinkChange(_State, frozen=True):
    """A moment at which a gateway's link changed. ``reason``: why it is not online."""

    at_ms: int
    state: Link
    uplink: str = ""
    reason: str = ""


class UplinkUse(_State, frozen=True):
    """One uplink. ``sent``, ``received``: bytes on the wire since the start. ``certificate_ms``: when that ends."""

    name: str
    state: str
    metered: bool = False
    sent: int = 0
    received: int = 0
    error: str = ""
    certificate_ms: int = 0


class LaneInfo(_State, frozen=True):
    """What waits in a lane; :class:`edge_agent.status.LaneState` says what each means."""

    lane: str
    count: int = 0
    bytes: int = 0
    oldest_ms: int = 0
    held: tuple[str, ...] = ()
    cap: int = 0
    dropped: int = 0
    expired: int = 0
    refused: int = 0
    full: bool = False


class DeviceInfo(_State, frozen=True):
    """A device that is connected to the gateway."""

    device: str
    since_ms: int = 0
    address: str = ""


class Talker(_State, frozen=True):
    """A topic or a device among the largest: ``count`` messages and ``bytes`` of topics and payloads, about.

    Neither is too large by more than ``over_count`` and ``over_bytes``.
    """

    name: str
    count: int
    bytes: int
    over_count: int = 0
    over_bytes: int = 0


class Talkers(_State, frozen=True):
    """Who uses the link: what was put into frames since ``since_ms``, in all and by the largest, each list in order.

    ``count``, ``bytes``: of all messages, before compression; ``wire``: the bytes of their frames.
    """

    since_ms: int = 0
    count: int = 0
    bytes: int = 0
    wire: int = 0
    topics_by_bytes: tuple[Talker, ...] = ()
    topics_by_count: tuple[Talker, ...] = ()
    devices_by_bytes: tuple[Talker, ...] = ()
    devices_by_count: tuple[Talker, ...] = ()


class History(_State, frozen=True):
    """The last minutes, a point each ``step_s`` seconds, the newest last, which ended at ``until_ms``.

    ``rate_in``, ``rate_out``: messages a second. ``bytes_per_min``: on the wire. ``latency_ms``: from the
    sending of a frame to its ack from the cloud's journal, the mean of those that were sent once; None: none was.
    """

    step_s: int = 60
    until_ms: int = 0
    rate_in: tuple[float, ...] = ()
    rate_out: tuple[float, ...] = ()
    bytes_per_min: tuple[float, ...] = ()
    latency_ms: tuple[float | None, ...] = ()


class DiskInfo(_State, frozen=True):
    """The file system of the buffer, bytes. ``buffer``: what its files take; ``per_day``: written to storage."""

    free: int = 0
    total: int = 0
    buffer: int = 0
    per_day: float | None = None


class PlanInfo(_State, frozen=True):
    """The data plan, bytes. ``forecast``: used by ``ends_ms``, None where that cannot be said."""

    budget: int
    used: int
    forecast: int | None = None
    ends_ms: int = 0
    stage: int = 0
    used_up: bool = False
    held: tuple[str, ...] = ()


class Health(_State, frozen=True):
    """What an agent says of itself: the value of a record of ``waybill.health`` (JSON), and part of GatewayDetail.

    ``at_ms``: by the gateway's clock, as are all times here; ``clock``: why that is not to be trusted, or empty.
    ``links``: the last changes, the newest last. ``uplinks``: in order of preference. ``connected``: how many devices
    are; ``devices``: some of them (in a record none). ``fault``, ``error``, ``alarm``, ``full``: as in the agent's
    status.
    """

    at_ms: int
    version: str = ""
    started_ms: int = 0
    epoch: int = 0
    clock: str = ""
    links: tuple[LinkChange, ...] = ()
    uplinks: tuple[UplinkUse, ...] = ()
    lanes: tuple[LaneInfo, ...] = ()
    holds_s: float | None = None
    drained_s: float | None = None
    rate_in: float = 0.0
    rate_out: float = 0.0
    bytes_per_min: float = 0.0
    connected: int = 0
    devices: tuple[DeviceInfo, ...] = ()
    history: History = History()
    talkers: Talkers = Talkers()
    disk: DiskInfo = DiskInfo()
    plan: PlanInfo | None = None
    fault: str = ""
    error: str = ""
    alarm: str = ""
    full: str = ""


class GatewayDetail(_State, frozen=True):
    """One gateway. ``health``: None where its agent says nothing of itself.

    In the cloud ``health`` is that of ``row.reported_ms``; at the agent it is of now, with longer lists.
    """

    at_ms: int
    row: GatewayRow
    health: Health | None = None


class CommandRow(_State, frozen=True):
    """One command and its newest state. ``written_ms``: when it was written; ``at_ms``: when the state was.

    ``open``: no state was read yet. ``result``: what the device answered, as text, cut off; ``name`` is empty where the
    command itself is older than what is remembered.
    """

    id: str
    gateway: str
    device: str
    name: str = ""
    state: Literal["open", "delivered", "done", "expired", "rejected"] = "open"
    written_ms: int = 0
    expires_ms: int = 0
    at_ms: int = 0
    reason: str = ""
    result: str = ""


class CommandsState(_State, frozen=True):
    """The newest commands, the newest first. ``fault``: why they may be old."""

    at_ms: int
    commands: tuple[CommandRow, ...] = ()
    fault: str = ""


class Broker(_State, frozen=True):
    """A Kafka broker that the cluster knows of now."""

    id: int
    address: str
    controller: bool = False


class TopicState(_State, frozen=True):
    """One topic of the deployment. ``use``: what for.

    ``under_replicated``: partitions that miss a replica; ``offline``: without a leader. ``records``: that are in it
    now, about (compacted ones and the ends of transactions count, too). ``lag``: of the frames, those that
    are not routed yet.
    """

    topic: str
    use: Literal["frames", "table", "commands", "route", "dead letters"]
    partitions: int = 0
    replicas: int = 0
    under_replicated: int = 0
    offline: int = 0
    records: int | None = None
    lag: int | None = None


class PartitionState(_State, frozen=True):
    """A frames partition and who routes it. ``reason``: why it is not ``ready``.

    ``position``: the first offset that is not routed. ``behind_ms``: how long its oldest frame waits, 0: none does.
    ``routed``, ``copies``, ``dead``, ``dropped``: messages since that node's start; ``held``: frames that wait for
    what comes before them.
    """

    partition: int
    node: str = ""
    state: str = "nobody"
    reason: str = ""
    position: int | None = None
    behind_ms: int | None = None
    held: int = 0
    routed: int = 0
    copies: int = 0
    dead: int = 0
    dropped: int = 0


class NodeState(_State, frozen=True):
    """A node of the cloud as it says itself: the value of its record in ``waybill.health``.

    ``faults``: what is wrong there now. ``routed``: messages a second. ``partitions``: that it routes.
    ``told_ms``: when it said so.
    """

    node: str
    version: str = ""
    address: str = ""
    started_ms: int = 0
    connected: int = 0
    devices: int = 0
    routed: float = 0.0
    partitions: tuple[PartitionState, ...] = ()
    faults: tuple[str, ...] = ()
    told_ms: int = 0


class KafkaState(_State, frozen=True):
    """The log behind the fleet. ``kind``: ``embedded`` has no brokers. ``fault``: why the topics are not known."""

    at_ms: int
    kind: Literal["kafka", "embedded"]
    brokers: tuple[Broker, ...] = ()
    nodes: tuple[NodeState, ...] = ()
    partitions: tuple[PartitionState, ...] = ()
    topics: tuple[TopicState, ...] = ()
    fault: str = ""


class LogLine(_State, frozen=True):
    """Something that happened. ``number``: counts on from 1.

    ``source``: a gateway, a node, or a part of the process.
    """

    number: int
    at_ms: int
    level: Literal["info", "warning", "error"]
    source: str
    text: str


class LogState(_State, frozen=True):
    """The newest lines, the newest last. ``since``: give it to be told those after these."""

    at_ms: int
    lines: tuple[LogLine, ...] = ()
    since: str = ""
