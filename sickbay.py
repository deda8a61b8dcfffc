"""The front door: `sickbay agent | controller | repair | explain | demo`.

Exit codes: 0 success; 1 an error nobody foresaw (a bug: the log has the traceback); 2 a flag, configuration
file, kubeconfig or address that cannot be used; 3 `explain` was given nothing it knows; 4 to 8 are of `repair`:
4 not allowed any more, 5 the API server does not say whether it is allowed, 6 the device is held, 7 the repair
failed, 8 refused, for this is not a repair container; 75 the agent lost access to its devices and wants to be
started anew.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

# Who starts it from a checkout has not been stopped by pip.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"sickbay: needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")

try:
    import msgspec

    from health.explain import explain, prose
    from health.xids import CatalogueError, Xid, builtin, parse
    from remediation.repair import command as repairs
    from runtime import garbage, logs
    from runtime.config import load
    from runtime.config_error import ConfigError
    from runtime.version import VERSION
    from simulation.demo import flags as demos
except ModuleNotFoundError as missing:
    sys.exit(
        f"sickbay: the Python module {missing.name} is missing; `pip install .` or `make demo` installs it"
    )

EXIT_OK = 0
EXIT_UNFORESEEN = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3

log = logging.getLogger("sickbay")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        code: int = flags.run(flags)
        return code
    except _usage_errors() as error:
        print(f"sickbay {flags.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception:
        log.exception("stopped by an error nobody foresaw")
        return EXIT_UNFORESEEN


def _usage_errors() -> tuple[type[Exception], ...]:
    from runtime.endpoint import ListenError
    from runtime.kubernetes_auth import KubeconfigError

    return (ConfigError, CatalogueError, KubeconfigError, ListenError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sickbay",
        description="The health system of accelerator nodes on Kubernetes.",
        epilog="Exit codes: 0 success, 1 unforeseen error, 2 unusable flag, file, kubeconfig or address, "
        "3 nothing that explain knows, 75 the agent lost its devices. Of repair: 4 not allowed any more, "
        "5 API server unreachable, 6 device held, 7 failed, 8 not in a repair container.",
    )
    parser.add_argument("--version", action="version", version=f"sickbay {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _agent_flags(commands.add_parser("agent", help="watch this node's accelerators"))
    _controller_flags(commands.add_parser("controller", help="fence and heal nodes"))
    repair = commands.add_parser("repair", help="one repair of a node, in the container of a repair Job")
    repairs.add_commands(repair)
    repair.set_defaults(run=_repair)
    explain = commands.add_parser(
        "explain", help="what an Xid or a kernel line means, and what is done about it"
    )
    explain.add_argument("subject", nargs="+", help="an Xid such as 79, or a whole kernel line (- reads one)")
    explain.add_argument("--output", choices=("text", "json"), default="text")
    explain.add_argument("--xid-overrides", type=Path, metavar="FILE", help="catalogue entries of your own")
    explain.set_defaults(run=_explain)
    demo = commands.add_parser("demo", help="a fault, healed, on this machine: no root, no cluster, no GPU")
    demos.add_flags(demo)
    return parser


def _common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file; flags and environment outrank it"
    )
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: the pod's ServiceAccount")
    parser.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="where /metrics, /healthz, /readyz are served"
    )
    parser.add_argument("--log-format", choices=("json", "text"))
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser.add_argument("--version", action="version", version=f"sickbay {VERSION}")


def _agent_flags(parser: argparse.ArgumentParser) -> None:
    _common_flags(parser)
    parser.add_argument("--node", metavar="NAME", help="this node's name; default: as the token says")
    parser.add_argument("--kernel-log", metavar="PATH", help="default: /dev/kmsg")
    parser.add_argument(
        "--kernel-log-since", metavar="SEQUENCE", help="with --drill: pass older records over"
    )
    parser.add_argument("--boot-id", metavar="PATH", help="default: /proc/sys/kernel/random/boot_id")
    parser.add_argument("--state-file", metavar="PATH", help="what outlives restarts within a boot")
    parser.add_argument(
        "--worker-command", type=shlex.split, metavar="COMMAND", help="the process that talks to NVML"
    )
    parser.add_argument("--sample-interval", metavar="DURATION")
    parser.add_argument("--renew-interval", metavar="DURATION")
    parser.add_argument(
        "--pod-resources-socket", metavar="PATH", help="the kubelet's; who holds which device"
    )
    parser.add_argument("--device-plugin-folder", metavar="PATH", help="where the plugins' sockets are")
    parser.add_argument("--pods-socket", metavar="PATH", help="the kubelet's; this node's pods")
    parser.add_argument("--receipts", metavar="PATH", help="folder; what repairs did on this host")
    parser.add_argument("--kubelet-address", metavar="HOST:PORT", help="this node's kubelet, for its pages")
    parser.add_argument("--kubelet-authority", metavar="FILE", help="certificate that proves the kubelet")
    parser.add_argument("--xid-overrides", metavar="FILE", help="catalogue entries of your own")
    parser.add_argument(
        "--drill", action="store_true", default=None, help="believe lines that userspace wrote"
    )
    parser.add_argument("--once", action="store_true", help="one look, then end; needs no cluster")
    parser.add_argument("--print-metrics", action="store_true", help="with --once: the metrics page")
    parser.add_argument("--print-report", action="store_true", help="with --once: the report as JSON")
    parser.set_defaults(run=_agent, parser=parser)


def _controller_flags(parser: argparse.ArgumentParser) -> None:
    _common_flags(parser)
    parser.add_argument("--policy", metavar="FILE", help="default: observe everything, change nothing")
    parser.add_argument("--lease-namespace", metavar="NAMESPACE")
    parser.add_argument("--lease-name", metavar="NAME")
    parser.add_argument("--lease-duration", metavar="DURATION", help="default: 15s")
    parser.add_argument("--renew-deadline", metavar="DURATION", help="default: 10s")
    parser.add_argument("--retry-period", metavar="DURATION", help="default: 2s")
    parser.set_defaults(run=_controller)


_NOT_CONFIGURATION = ("command", "run", "parser", "config", "once", "print_metrics", "print_report")


def _given(flags: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(flags).items() if name not in _NOT_CONFIGURATION}


def _agent(flags: argparse.Namespace) -> int:
    from exporter import agent
    from exporter.configuration import ENVIRONMENT_PREFIX, AgentConfiguration

    once = flags.once or flags.print_metrics or flags.print_report
    if flags.once and not (flags.print_metrics or flags.print_report):
        flags.parser.error("--once needs --print-metrics, --print-report or both")
    loaded = load(
        AgentConfiguration,
        file=flags.config,
        environ=os.environ,
        flags=_given(flags),
        prefix=ENVIRONMENT_PREFIX,
    ).value
    logs.configure(format=loaded.log_format, level="WARNING" if once else loaded.log_level)
    if once:
        return agent.print_once(loaded, metrics=flags.print_metrics, report=flags.print_report)
    garbage.settle()
    return agent.run(loaded)


def _controller(flags: argparse.Namespace) -> int:
    from remediation import controller
    from remediation.configuration import ENVIRONMENT_PREFIX, ControllerConfiguration

    loaded = load(
        ControllerConfiguration,
        file=flags.config,
        environ=os.environ,
        flags=_given(flags),
        prefix=ENVIRONMENT_PREFIX,
    ).value
    logs.configure(format=loaded.log_format, level=loaded.log_level)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    garbage.settle()
    return controller.run(loaded, version=VERSION, stopping=stopping)


def _repair(flags: argparse.Namespace) -> int:
    outcome = repairs.run(flags)
    print(f"sickbay repair {flags.repair}: {outcome.message}", file=sys.stderr)
    return int(outcome.code)


def _explain(flags: argparse.Namespace) -> int:
    catalogue = builtin()
    if flags.xid_overrides is not None:
        catalogue = catalogue.overridden(_overrides(flags.xid_overrides))
    subject = " ".join(flags.subject)
    explanation = explain(sys.stdin.readline() if subject == "-" else subject, catalogue)
    if explanation is None:
        print("sickbay explain: neither an Xid nor a kernel line of the NVIDIA driver; "
              "try: sickbay explain 79", file=sys.stderr)  # fmt: skip
        return EXIT_UNKNOWN
    if flags.output == "json":
        print(msgspec.json.format(msgspec.json.encode(explanation), indent=2).decode())
    else:
        print(prose(explanation))
    return EXIT_OK


def _overrides(path: Path) -> tuple[Xid, ...]:
    try:
        return parse(path.read_text(encoding="utf-8"), file=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path}: cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
