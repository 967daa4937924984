"""``waybill edge check``, the ways to the cloud: name, addresses, proxy, TLS, MQTT, credit, each uplink by itself.

The dialer is the agent's own. The cloud is met under a client id of its own (:func:`waybill.wire.trial_id`), so that
the connection of a running agent stays.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Final

from edge_agent.config import EdgeConfig
from edge_agent.setup.check_machine import SOON_DAYS, certificate
from edge_agent.setup.finding import Finding
from edge_agent.uplink.config import UplinkSettings, labels, with_certificates
from edge_agent.uplink.dial import PATIENCE, REFUSED, Address, Dialer, LinkLost
from edge_agent.uplink.link import Link, Uplink
from waybill.errors import ConfigError
from waybill.pki import FloorMs
from waybill.wire import Ack

_REFUSED: Final = "the cloud refuses this gateway"


async def ways(settings: EdgeConfig, version: str, floor_ms: FloorMs, now: dt.datetime) -> AsyncIterator[Finding]:
    """Try each uplink, whatever became of the one before."""
    if not settings.uplinks:
        yield Finding("uplink", "warning", "none is configured: messages stay here", mend="add [[uplink]]")
    for uplink, label in zip(with_certificates(settings.uplinks), labels(settings.uplinks), strict=True):
        told = ""
        if uplink.certificate is not None and uplink.key is not None:
            found = certificate(uplink.certificate, uplink.key, uplink.ca, settings.gateway, now, label)
            told = found.text
            yield found
        elif uplink.tls and uplink.broker == "cloud":
            text = "has no certificate, and the ingest lets nobody in without one"
            yield Finding("certificate", "warning", text, label, f"waybill cloud gateway issue {settings.gateway}")
        elif not uplink.tls:
            yield Finding(
                "certificate", "warning", "no TLS: everybody on the way can read and write", label, "url with mqtts://"
            )
        try:
            trial = Uplink(uplink, label, settings.gateway, version, floor_ms=floor_ms, trial=True)
        except ConfigError as error:
            if str(error) != told:
                yield Finding("uplink", "failed", str(error), label)
            for finding in _skipped(uplink, label, ("tcp", "proxy", "tls", "websocket", "mqtt", "credit")):
                yield finding
            continue
        async for finding in _way(trial, label, settings.gateway):
            yield finding


async def _way(trial: Uplink, label: str, gateway: str) -> AsyncIterator[Finding]:
    uplink = trial.settings
    via = uplink.through()
    host = uplink.host if via is None else via.host
    began = time.monotonic()
    try:
        found = await trial.dialer.addresses()
    except LinkLost as lost:
        mend = "see [[uplink]] url and /etc/resolv.conf; dig or getent hosts asks the same"
        yield Finding("dns", "failed", str(lost), label, mend)
        for finding in _skipped(uplink, label, ("tcp", "proxy", "tls", "websocket", "mqtt", "credit")):
            yield finding
        return
    names = ", ".join(dict.fromkeys(str(each[4][0]) for each in found))
    yield Finding("dns", "ok", f"{host}: {names}, in {_ms(began)}", label)
    reached = await asyncio.gather(*(_reach(trial.dialer, each) for each in found))
    bad = [f"{each[4][0]}: {why}" for each, (why, _) in zip(found, reached, strict=True) if why]
    good = ", ".join(f"{each[4][0]} in {took}" for each, (why, took) in zip(found, reached, strict=True) if not why)
    if len(bad) == len(found):
        mend = "nothing listens there, or a firewall is between: wss:// on 443 or a proxy may go (docs/uplink.md)"
        yield Finding("tcp", "failed", "; ".join(bad), label, mend)
        for finding in _skipped(uplink, label, ("proxy", "tls", "websocket", "mqtt", "credit")):
            yield finding
        return
    mend = "some addresses of the name do not answer: connections take longer" if bad else ""
    yield Finding("tcp", "warning" if bad else "ok", "; ".join([good, *bad]), label, mend)
    async for finding in _talk(trial, label, gateway):
        yield finding


async def _reach(dialer: Dialer, to: Address) -> tuple[str, str]:
    """Connect once; returns what is wrong, and how long it took."""
    began = time.monotonic()
    try:
        sock = await dialer.reach(to, PATIENCE / 2, lambda _: None)
    except LinkLost as lost:
        return str(lost), ""
    sock.close()
    return "", _ms(began)


async def _talk(trial: Uplink, label: str, gateway: str) -> AsyncIterator[Finding]:
    """Make the whole connection, and say how far it came."""
    uplink = trial.settings
    findings: list[Finding] = []
    began = time.monotonic()

    def passed(step: str, sock: socket.socket) -> None:
        name = "mqtt" if step == "connect" else step
        findings.append(_passed(name, sock, uplink, label, _ms(began)))

    link: Link | None = None
    lost: LinkLost | None = None
    try:
        link = await trial.connect(passed)
    except LinkLost as error:
        lost = error
    for finding in findings:
        yield finding
    rest = [step for step in _steps(uplink) if step not in {finding.step for finding in findings}]
    if lost is not None:
        yield _lost(rest[0], str(lost), uplink, label, gateway)
        for finding in _skipped(uplink, label, tuple(rest[1:])):
            yield finding
    if link is not None:
        try:
            yield await _credit(link, label, uplink)
        finally:
            await link.leave()
    cost = trial.traffic()
    if uplink.metered:
        yield Finding("cost", "ok", f"this has cost {cost.sent + cost.received:,} bytes of a metered uplink", label)


def _steps(uplink: UplinkSettings) -> list[str]:
    """Return the steps after TCP that this way has."""
    there = {
        "proxy": bool(uplink.proxy),
        "tls": uplink.tls,
        "websocket": uplink.websocket,
        "mqtt": True,
        "credit": True,
    }
    return [step for step, has in there.items() if has]


def _passed(step: str, sock: socket.socket, uplink: UplinkSettings, label: str, took: str) -> Finding:
    if step == "tls" and isinstance(sock, ssl.SSLSocket):
        return _tls(sock, label, took)
    said = {
        "proxy": f"lets through to {uplink.host}:{uplink.port}",
        "websocket": "accepted, subprotocol mqtt",
        "mqtt": "CONNECT is answered: accepted",
    }
    return Finding(step, "ok", f"{said[step]}, in {took}", label)


def _tls(sock: ssl.SSLSocket, label: str, took: str) -> Finding:
    shown = sock.getpeercert() or {}
    names = ", ".join(str(name[1]) for name in shown.get("subjectAltName", ()))
    end = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), dt.UTC)
    days = (end - dt.datetime.now(dt.UTC)).days
    text = f"{sock.version()}, the cloud is {names}, until {end:%Y-%m-%d}, in {took}"
    if days < SOON_DAYS:
        return Finding("tls", "warning", f"{text}: {days} days left", label, "tell who runs the ingest")
    return Finding("tls", "ok", text, label)


def _lost(step: str, why: str, uplink: UplinkSettings, label: str, gateway: str) -> Finding:
    """Say what broke off, at ``step``."""
    if step == "mqtt" and why.startswith(_REFUSED) and uplink.broker == "cloud":
        text = f"CONNECT is answered: {why}"
        mend = f"the certificate must be of {gateway}; if it is, the ingest is too old to be tried out"
        return Finding("mqtt", "failed" if uplink.certificate is None else "warning", text, label, mend)
    if step == "credit" and uplink.broker == "foreign":
        text = "the broker does not let a trial subscribe, which its rules may do right"
        return Finding("credit", "skipped", text, label)
    mend = {
        "proxy": "see [[uplink]] proxy and its password; the proxy's rules must allow CONNECT to that host and port",
        "tls": _tls_mend(why, uplink),
        "websocket": "the ingest needs its [websocket] table, and what stands before it must pass WebSockets",
        "mqtt": _mqtt_mend(why, uplink, gateway),
        "credit": "see the ingest's log",
    }[step]
    return Finding(step, "failed", why, label, mend)


def _tls_mend(why: str, uplink: UplinkSettings) -> str:
    if "expired" in why or "not yet valid" in why:
        return "where the clock is right the ingest needs another certificate: waybill cloud server issue"
    if "mismatch" in why:
        return f"a name in url that its certificate has, or one that has {uplink.host}: waybill cloud server issue"
    if "not trusted" in why:
        return "ca is the ca.pem that came with this gateway's certificate; if it is, something in between opens TLS"
    return "something else than an ingest listens there, or what is in between does not let TLS pass"


def _mqtt_mend(why: str, uplink: UplinkSettings, gateway: str) -> str:
    if why == REFUSED:
        return f"the ingest takes those of its [listener] ca, within their dates: waybill cloud gateway issue {gateway}"
    if "keepalive" in why or "within" in why:
        return "something else than an ingest listens there, or it is overloaded: see its log"
    if not uplink.tls:
        return "does an ingest of Waybill listen there? where it has a certificate, url begins with mqtts://"
    return "does an ingest of Waybill listen there? see the ingest's log"


async def _credit(link: Link, label: str, uplink: UplinkSettings) -> Finding:
    if uplink.broker == "foreign":
        return Finding("credit", "skipped", "behind a broker of others it comes to the agent alone", label)
    try:
        async with asyncio.timeout(PATIENCE):
            async for message in link.received():
                if isinstance(message, Ack) and message.credit is not None:
                    return Finding("credit", "ok", f"the cloud takes {message.credit >> 10} KiB at a time", label)
    except TimeoutError:
        pass
    except LinkLost as lost:
        return Finding("credit", "failed", str(lost), label, "see the ingest's log")
    return Finding("credit", "failed", f"none within {PATIENCE:.0f} s", label, "the ingest is overloaded: see its log")


def _skipped(uplink: UplinkSettings, label: str, steps: tuple[str, ...]) -> list[Finding]:
    has = {"tcp", *_steps(uplink)}
    return [Finding(step, "skipped", "not tried", label) for step in steps if step in has]


def _ms(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"
