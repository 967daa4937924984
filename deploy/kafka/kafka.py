"""A real Apache Kafka (KRaft) of one or three brokers on this machine: no container, no system Java.

    kafka.py run DIR                 in the foreground until Ctrl-C; DIR keeps the data for the next time
    kafka.py run --temporary -- CMD  for as long as CMD runs; {bootstrap} in CMD becomes the brokers' addresses
    kafka.py start DIR               in the background; prints the brokers' addresses
    kafka.py stop DIR                SIGTERM, after ten seconds SIGKILL
    kafka.py kill DIR NODE           SIGKILL one broker
    kafka.py up DIR [NODE]           start again what is down, on its data

For development only: it listens on loopback, and its plain listener lets anybody in.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from deploy.kafka.cluster import Cluster, KafkaError
from waybill.errors import ConfigError, Unavailable


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; ``command`` holds what follows ``--``."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run|start|stop|kill|up")
    for verb in ("run", "start", "stop", "kill", "up"):
        sub = verbs.add_parser(verb)
        sub.add_argument("directory", type=Path, nargs="?" if verb == "run" else None)
        if verb in {"kill", "up"}:
            sub.add_argument("node", type=int, nargs="?" if verb == "up" else None)
        if verb in {"run", "start"}:
            sub.add_argument("--brokers", type=int, choices=[1, 3], default=1, help="3: replication 3, two in sync")
            sub.add_argument("--port", type=int, help="of the first listener; free ones are picked without it")
            sub.add_argument("--scram", action="append", default=[], type=_pair(":"), metavar="USER:PASSWORD")
            sub.add_argument("--tls", nargs=2, type=Path, metavar=("KEY+CHAIN.pem", "CA.pem"), help="made without it")
            sub.add_argument("--set", action="append", default=[], type=_pair("="), metavar="NAME=VALUE")
        if verb == "run":
            sub.add_argument("--temporary", action="store_true", help="in a directory that is deleted at the end")
    options = parser.parse_args(arguments[:split])
    options.command = arguments[split + 1 :]
    if options.verb == "run" and bool(options.directory) == options.temporary:
        parser.error("run takes either a directory or --temporary")
    if options.verb in {"run", "start"} and options.tls and not options.scram:
        parser.error("--tls is for the SASL_SSL listener: give a --scram USER:PASSWORD too")
    return options


def _pair(separator: str) -> Callable[[str], tuple[str, str]]:
    def pair(text: str) -> tuple[str, str]:
        name, found, value = text.partition(separator)
        if not (name and found):
            raise argparse.ArgumentTypeError(f"{text!r} has no {separator!r} in it")
        return name, value

    return pair


def make(options: argparse.Namespace, directory: Path, *, bound: bool) -> Cluster:
    """Start the cluster that the options describe, in ``directory``."""
    return Cluster.start(
        directory,
        brokers=options.brokers,
        port=options.port,
        users=dict(options.scram),
        tls=tuple(options.tls) if options.tls else None,
        settings=dict(options.set),
        bound=bound,
    )


def run(options: argparse.Namespace) -> int:
    """Keep a cluster for as long as a command, or a person, wants it; return the command's exit code."""
    with ExitStack() as stack:
        if options.temporary:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waybill-kafka-")))
        else:
            directory = options.directory
        signal.signal(signal.SIGTERM, _interrupt)
        print("starting Kafka; the first time it is downloaded", file=sys.stderr, flush=True)
        if (directory / "state.json").exists():
            cluster = Cluster.attach(directory)
            cluster.up()
        else:
            cluster = make(options, directory, bound=True)
        stack.callback(cluster.stop, seconds=0 if options.temporary else 10)
        if not options.command:
            print(usage(cluster), flush=True)
            signal.pause()
        command = [word.replace("{bootstrap}", cluster.bootstrap) for word in options.command]
        with subprocess.Popen(command) as child:
            try:
                return child.wait()
            except KeyboardInterrupt:
                # Ctrl-C in a terminal reached the command too; a SIGTERM to this program did not.
                child.terminate()
                return child.wait(timeout=30)


def usage(cluster: Cluster) -> str:
    """Say how to use a running cluster."""
    lines = [f"Kafka serves on {cluster.bootstrap}"]
    if cluster.secure_bootstrap:
        lines += [
            f"and with SASL_SSL, SCRAM-SHA-512 on {cluster.secure_bootstrap}",
            f"  ssl.ca.location = {cluster.ca}" if cluster.ca.exists() else "  with the certificates that were given",
        ]
    lines += [
        f"  make demo KAFKA={cluster.bootstrap}",
        f"  kcat -b {cluster.bootstrap} -L",
        f"data and logs: {cluster.directory}; Ctrl-C stops it",
    ]
    return "\n".join(lines)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Run one verb; return the exit code."""
    options = parse(arguments)
    try:
        if options.verb == "run":
            return run(options)
        if options.verb == "start":
            print(make(options, options.directory, bound=False).bootstrap)
            return 0
        cluster = Cluster.attach(options.directory)
        match options.verb:
            case "stop":
                cluster.stop()
            case "kill":
                cluster.kill(options.node)
            case "up":
                cluster.up(options.node)
                print(cluster.bootstrap)
    except (KafkaError, ConfigError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
