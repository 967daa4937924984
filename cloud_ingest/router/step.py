"""The router's step: journal records in, one atomic step and the state after it out. Pure.

::

    JournalRecord ─ read_header ─ admit (E2, E3) ─ held (R7, R10)? ─ news (R4) ─ decode ─┬─ records ─▶ Step.records
                                                                                      ├─ dead letters ─▶ Step.records
                                        control lane: receipts, statuses, dictionaries ◀─┘

:func:`plan` changes nothing; the :class:`Plan` it returns is adopted when its commit has returned (R3). A plan can be
cut off after any number of messages: the rest of its frame is planned again, and the ledger tells what is done. So
bisecting for a poisonous record (R5) is planning with a smaller ``limit``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import JournalRecord, OutRecord, Step
from cloud_ingest.presence import record_of
from cloud_ingest.router.commands import status_record
from cloud_ingest.router.control import (
    MALFORMED,
    Rejected,
    dictionaries_in,
    health_record,
    parse_presence,
    parse_receipt,
    parse_status,
)
from cloud_ingest.router.dictionaries import DictionariesDraft
from cloud_ingest.router.entry import Key
from cloud_ingest.router.ledger import Draft, Span
from cloud_ingest.router.order import HeldDraft, HeldFrame
from cloud_ingest.router.records import append_records, dead_frame, dead_letter, one_record
from cloud_ingest.router.routes import Target
from cloud_ingest.router.state import Partition, Plan
from waybill.errors import Corrupt
from waybill.frames import Frame, FrameHeader, decode, read_header
from waybill.printable import printable
from waybill.wire import (
    COMMAND_STATUS_TOPIC,
    CONTROL_LANE,
    DICTIONARY_TOPIC,
    HEALTH_TOPIC,
    PRESENCE_TOPIC,
    RECEIPT_TOPIC,
    CommandStatus,
    is_control,
    is_node,
)

MAX_REASON = 64


def plan(
    state: Partition,
    records: Sequence[JournalRecord],
    now_ms: int,
    *,
    at_end: bool = False,
    limit: int | None = None,
    condemned: str = "",
    log_start: int | None = None,
    log_ms: int | None = None,
) -> Plan | None:
    """Plan the next step over ``records``, which follow ``state.position``; None where there is nothing to write.

    ``now_ms``: the router's clock, and ``log_ms`` the log's (without it: the same). At the partition's end commands
    expire by the first, and gaps are given up by the second (R7).
    ``at_end``: whether the partition ends with ``records``.
    ``limit``: plan at most so many messages (R5), else the step's own bounds hold.
    ``condemned``: why the records of this plan were refused; its messages become dead letters.
    ``log_start``: the journal's oldest offset; given, the ledger forgets what it may (E4).
    """
    planner = _Planner(state, now_ms, limit, condemned)
    return planner.run(records, at_end=at_end, log_start=log_start, log_ms=now_ms if log_ms is None else log_ms)


class _Planner:
    """One plan in the making."""

    def __init__(self, state: Partition, now_ms: int, limit: int | None, condemned: str) -> None:
        self.state = state
        self.now_ms = now_ms
        self.exact = limit is not None
        self.left = state.limits.step_messages if limit is None else limit
        self.bytes_left = state.limits.step_bytes
        self.condemned = condemned
        self.ledger = Draft(state.ledger)
        self.held = HeldDraft(state.held)
        self.dictionaries = DictionariesDraft(state.dictionaries)
        self.overdue: HeldFrame | None = None
        self.unfinished = state.unfinished.copy()
        self.fresh: dict[str, str] = {}
        self.step = Step()
        self.plan = Plan(
            self.step,
            self.ledger,
            self.held,
            self.dictionaries,
            self.unfinished,
            state.position,
            state.newest_ms,
            state.cut.copy(),
        )
        self.counters = self.plan.counters

    @property
    def full(self) -> bool:
        return self.left <= 0 or self.bytes_left <= 0

    def run(self, records: Sequence[JournalRecord], *, at_end: bool, log_start: int | None, log_ms: int) -> Plan | None:
        state, plan = self.state, self.plan
        if state.lost:
            self.ledger.edit_offsets().lost.add(*state.lost)
        self._drain()
        for record in records:
            if self.full or not self._arrive(record):
                break
            plan.consumed += 1
            plan.position = record.offset + 1
            plan.newest_ms = max(plan.newest_ms, record.stamp_ms)
            self._drain()
        done = plan.consumed == len(records)
        at_end = at_end and done
        self._expire(max(plan.newest_ms, log_ms if at_end else 0))
        self._states(max(plan.newest_ms, self.now_ms if at_end else 0))
        if log_start is not None and not self.exact:
            self.ledger.forget(log_start)
        plan.more = not done or bool(self.unfinished)
        oldest = self.held.oldest
        self.step.next_offset = plan.position if oldest is None else oldest.offset
        self._prune_unreadable()
        self.step.ledger = self.ledger.values(state.number)
        self.step.dictionaries = self.dictionaries.values
        if self.step.records or self.step.ledger or plan.consumed or self.step.next_offset != state.committed:
            return plan
        return None

    # --- frames ---

    def _arrive(self, record: JournalRecord) -> bool:
        """Route or hold ``record``; False where the limit cut it off."""
        if self._has_moved(record.gateway):
            # again in the journal, in the partition that is the gateway's by now, with its ledger (R4)
            self._emit(OutRecord(self.state.topics.frames, record.gateway.encode(), record.frame, []))
            return True
        try:
            header = read_header(record.frame)
        except Corrupt as error:
            self._unreadable(record, str(error))
            return True
        key = Key(record.gateway, header.epoch, header.lane)
        span = Span(key, header.prev_epoch, header.prev_last, header.first, header.last)
        relaxed = header.durability == "relaxed"
        elsewhere = header.order == "fifo" and record.offset >= self.state.cleared
        self.ledger.admit(span, record.offset, relaxed=relaxed, oldest=header.oldest_epoch, elsewhere=elsewhere)
        lane = (record.gateway, header.lane)
        if self.held.queues(lane):
            self.unfinished[lane] = None  # what it says of epochs may let others go, and these go first
            self._drain()
            if lane in self.unfinished:
                return False
        if self._is_ahead(key, header) or self._lacks_dictionary(key, header):
            self._learn_early(record, header)
            self.held.add(record, header)
            self.counters.frames += 1
            self.counters.frames_held += 1
            return True
        done = self._route(record, header)
        if self.held.queues(lane):
            self.unfinished[lane] = None  # it may have been what others waited for
        self.counters.frames += done
        return done

    def _has_moved(self, gateway: str) -> bool:
        count = self.state.partitions
        return count != 0 and not is_node(gateway) and partition_of(gateway.encode(), count) != self.state.number

    def _is_ahead(self, key: Key, header: FrameHeader) -> bool:
        """Tell whether a frame of a fifo lane has something new, and must wait for what is before it (R7)."""
        return header.order == "fifo" and self.ledger.waits(key, header.first) and self._has_news(key, header)

    def _lacks_dictionary(self, key: Key, header: FrameHeader) -> bool:
        """Tell whether a frame has something new that cannot be read yet: its dictionary may be on its way (R10)."""
        number = header.dictionary
        return number != 0 and not self.dictionaries.knows(key.gateway, number) and self._has_news(key, header)

    def _has_news(self, key: Key, header: FrameHeader) -> bool:
        return bool(self.ledger.news(key, header.first, header.last))

    def _unreadable(self, record: JournalRecord, error: str) -> None:
        """Dead-letter a frame of which not even the header can be read; again after a restart it is a copy."""
        if record.offset + 1 in self.ledger.read_offsets().unreadable:
            return
        self.ledger.edit_offsets().unreadable.add(record.offset + 1, record.offset + 1)
        self._emit(dead_frame(self.state.topics.dead_letters, record, None, error))

    def _prune_unreadable(self) -> None:
        """Forget unreadable frames below the committed offset: they are not read again."""
        known = self.ledger.read_offsets().unreadable
        if known and known.first <= self.step.next_offset:
            self.ledger.edit_offsets().unreadable.drop_below(self.step.next_offset + 1)

    def _route(self, record: JournalRecord, header: FrameHeader) -> bool:
        """Write what is new of a frame; False where the limit cut it off before its end."""
        key = Key(record.gateway, header.epoch, header.lane)
        news = self.ledger.news(key, header.first, header.last)
        fresh = sum(last - first + 1 for first, last in news)
        earlier = self.plan.cut.pop(record.offset, 0)
        if not news:
            self.counters.copies += header.count - earlier
            return True
        if not self.ledger.has_room(key, header.first, header.last):
            self._emit(dead_frame(self.state.topics.dead_letters, record, header, "the lane has too many gaps"))
            self.counters.dead += fresh
            return True
        try:
            frame = decode(record.frame, dictionary=self.dictionaries.get(record.gateway, header.dictionary))
        except Corrupt as error:
            for first, last in news:
                self.ledger.bury(key, first, last)
            self._emit(dead_frame(self.state.topics.dead_letters, record, header, str(error)))
            self.counters.dead += fresh
            return True
        planned = 0
        for first, last in news:
            if self.exact:
                last = min(last, first + self.left - 1)  # noqa: PLW2901 - cut off by the limit
            if last < first:
                break
            self._messages(record, frame, key, first, last)
            planned += last - first + 1
            self._spend(last - first + 1)
        self.bytes_left -= frame.size
        if planned < fresh:
            self.plan.cut[record.offset] = earlier + planned
            return False
        self.counters.copies += header.count - fresh - earlier
        return True

    def _messages(self, record: JournalRecord, frame: Frame, key: Key, first: int, last: int) -> None:
        """Write the new messages ``first..last`` of a frame."""
        if is_control(record.gateway, frame.header.lane):
            for seq in range(first, last + 1):
                self._control(record, frame, key, seq)
            return
        targets = self.state.routes.targets(record.gateway, frame.sources)
        reasons = self._reasons(targets)
        if not reasons:
            append_records(self.step.records, record, frame, targets, first, last)
            self.ledger.deliver(key, first, last)
            self.counters.routed += last - first + 1
            return
        run = first
        for seq in range(first, last + 1):
            source = frame.rows[seq - frame.header.first][0]
            if source in reasons:
                if run < seq:
                    self._deliver_run(record, frame, targets, key, run, seq - 1)
                run = seq + 1
                topic = targets[source].topic
                letters = self.state.topics.dead_letters if topic is None else f"{topic}.dlq"
                self._bury(letters, one_record(record, frame, targets, seq), key, seq, reasons[source])
        if run <= last:
            self._deliver_run(record, frame, targets, key, run, last)

    def _deliver_run(
        self, record: JournalRecord, frame: Frame, targets: Sequence[Target], key: Key, first: int, last: int
    ) -> None:
        append_records(self.step.records, record, frame, targets, first, last)
        self.ledger.deliver(key, first, last)
        self.counters.routed += last - first + 1

    def _reasons(self, targets: Sequence[Target]) -> Mapping[int, str]:
        """Return for each source whose messages become dead letters the reason why."""
        if self.condemned:
            return {
                source: self.condemned if target.topic is not None else "no route"
                for source, target in enumerate(targets)
            }
        refused = self.state.refused
        topics = {target.topic for target in targets}
        if None not in topics and refused.keys().isdisjoint(topics):
            return {}
        return {
            source: "no route" if target.topic is None else refused[target.topic]
            for source, target in enumerate(targets)
            if target.topic is None or target.topic in refused
        }

    def _bury(self, topic: str, record: OutRecord, key: Key, seq: int, error: str) -> None:
        self.step.records.append(dead_letter(topic, record, error))
        self.ledger.bury(key, seq, seq)
        self.counters.dead += 1

    def _emit(self, record: OutRecord) -> None:
        self.step.records.append(record)
        self._spend(1)

    def _spend(self, messages: int) -> None:
        self.left -= messages
        self.plan.messages += messages

    # --- the control lane ---

    def _control(self, record: JournalRecord, frame: Frame, key: Key, seq: int) -> None:
        """Act on one of the agent's own messages."""
        source, _, _, payload, _ = frame.rows[seq - frame.header.first]
        topic = frame.sources[source][0]
        try:
            if topic == RECEIPT_TOPIC:
                self._receipt(record, payload)
            elif topic == COMMAND_STATUS_TOPIC:
                self._status(record, payload)
            elif topic == PRESENCE_TOPIC:
                self._presence(key, payload)
            elif topic == HEALTH_TOPIC:
                self._health(record.gateway, payload)
            elif topic == DICTIONARY_TOPIC:
                self._dictionary(record.gateway, payload)
            else:
                raise Rejected("unknown topic in the control lane")
        except (*MALFORMED, Rejected, Corrupt) as error:
            target = self.state.routes.target(record.gateway, topic, frame.sources[source][1])._replace(topic=None)
            letter = one_record(record, frame, {source: target}, seq)
            self._bury(self.state.topics.dead_letters, letter, key, seq, str(error))
        else:
            self.ledger.deliver(key, seq, seq)

    def _receipt(self, record: JournalRecord, payload: bytes) -> None:
        """Declare a loss (E5); to the ledger a receipt is a frame header of that epoch."""
        receipt = parse_receipt(payload)
        key = Key(record.gateway, receipt.epoch, receipt.lane)
        span = Span(key, receipt.prev_epoch, receipt.prev_last, receipt.first, receipt.last)
        if not self.ledger.has_room(key, receipt.first, receipt.last):
            raise Rejected("the lane has too many gaps")
        self.ledger.admit(span, record.offset)
        before = self.ledger.edit(key).dropped_count
        self.ledger.drop(key, receipt.first, receipt.last, receipt.bytes, printable(receipt.reason[:MAX_REASON]))
        self.counters.dropped += self.ledger.edit(key).dropped_count - before
        self.counters.receipts += 1
        lane = (record.gateway, receipt.lane)
        if self.held.queues(lane):
            self.unfinished[lane] = None

    def _status(self, record: JournalRecord, payload: bytes) -> None:
        """Write a command's state, once (C1)."""
        if self.condemned:
            raise Rejected(self.condemned)
        status = parse_status(payload, record.gateway)
        verdict = self.state.commands.verdict(status, self.fresh)
        if verdict == "copy":
            return
        if verdict != "write":
            raise Rejected(verdict)
        refused = self.state.refused.get(self.state.topics.command_status)
        if refused:
            raise Rejected(refused)
        self._write_status(status)

    def _presence(self, key: Key, payload: bytes) -> None:
        """Write that a device came or went (C3)."""
        refused = self.condemned or self.state.refused.get(self.state.topics.presence)
        if refused:
            raise Rejected(refused)
        self.step.records.append(record_of(self.state.topics.presence, parse_presence(payload, key.gateway, key.epoch)))

    def _health(self, gateway: str, payload: bytes) -> None:
        """Write what a gateway says of itself; while its topic is refused nowhere: the next one says it again."""
        if self.condemned:
            raise Rejected(self.condemned)
        record = health_record(self.state.topics.health, payload, gateway)
        if self.state.topics.health not in self.state.refused:
            self.step.records.append(record)

    def _dictionary(self, gateway: str, content: bytes) -> None:
        """Take in a dictionary, and let the frames go that waited for it (R10)."""
        if self.condemned:
            raise Rejected(self.condemned)
        self._learn(gateway, content)
        self.counters.dictionaries += 1

    def _learn(self, gateway: str, content: bytes) -> None:
        self.dictionaries.add(gateway, content)
        for frame in self.held.frames.values():
            if frame.record.gateway == gateway:
                self.unfinished[frame.lane] = None

    def _learn_early(self, record: JournalRecord, header: FrameHeader) -> None:
        """Take in the dictionaries of a frame that is about to be held: they wait for nothing (R10)."""
        if header.lane == CONTROL_LANE and not self.condemned:
            for content in dictionaries_in(record.frame):
                with contextlib.suppress(Corrupt):  # it becomes a dead letter in its turn
                    self._learn(record.gateway, content)

    def _write_status(self, status: CommandStatus) -> None:
        self.step.records.append(status_record(self.state.topics.command_status, status))
        self.plan.statuses.append(status)
        self.fresh[status.id] = status.state
        self.counters.statuses += 1

    def _states(self, now_ms: int) -> None:
        """Write ``expired`` and ``rejected`` (C1), last: what the gateways reported before comes first."""
        if self.full:
            return

        def is_busy(gateway: str) -> bool:
            return bool(self.held.queues((gateway, CONTROL_LANE)))

        refused = self.state.refused.get(self.state.topics.command_status)
        for status in self.state.commands.due(now_ms, self.left, is_busy):
            if status.id in self.fresh:
                continue
            self._spend(1)
            error = self.condemned or refused
            if error:
                record = status_record(self.state.topics.command_status, status)
                self.step.records.append(dead_letter(self.state.topics.dead_letters, record, error))
                self.plan.statuses.append(status)
            else:
                self._write_status(status)

    # --- order (R7) ---

    def _drain(self) -> None:
        """Route the held frames that wait for nothing any more, in order, until the step is full."""
        while self.unfinished and not self.full:
            lane = next(iter(self.unfinished))
            queues = self.held.queues(lane)
            heads = [queue[0] for queue in queues.values()]
            ready = {head.header.epoch: head for head in heads if self._is_ready(head)}
            if not ready:
                del self.unfinished[lane]
                continue
            # an epoch's frames go before those of the epoch that follows it
            frame = next((head for head in ready.values() if head.header.prev_epoch not in ready), None)
            frame = frame or next(iter(ready.values()))
            if not self._route(frame.record, frame.header):
                return
            self.held.remove(frame)

    def _is_ready(self, frame: HeldFrame) -> bool:
        header = frame.header
        key = Key(frame.record.gateway, header.epoch, header.lane)
        if self._is_ahead(key, header):
            return False
        return self._is_overdue(frame) or not self._lacks_dictionary(key, header)

    def _is_overdue(self, frame: HeldFrame) -> bool:
        """Tell whether a frame must go now, even as a dead letter, because one behind it waited too long."""
        overdue = self.overdue
        return (
            overdue is not None
            and (frame.lane, frame.header.epoch) == (overdue.lane, overdue.header.epoch)
            and (frame.place, frame.offset) <= (overdue.place, overdue.offset)
        )

    def _expire(self, time_ms: int) -> None:
        """Give up what frames wait for too long, or that take too much memory; the oldest first (R7, R10)."""
        limits = self.state.limits
        while not self.full and (oldest := self.held.oldest) is not None:
            late = oldest.offset < self.state.cleared and oldest.record.stamp_ms + limits.hold_ms <= time_ms
            if not late and self.held.size <= limits.hold_bytes:
                return
            key = Key(oldest.record.gateway, oldest.header.epoch, oldest.header.lane)
            self.overdue = oldest
            if oldest.lane not in self.unfinished:
                if oldest.header.order == "fifo":
                    self.counters.given_up += self.ledger.give_up(key, oldest.header.first)
                self.counters.frames_given_up += 1
                self.unfinished[oldest.lane] = None
            self._drain()
