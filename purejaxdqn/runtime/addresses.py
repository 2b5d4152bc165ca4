"""Checks where other processes and clusters are said to be, before anything is waited for."""

from typing import Any

from purejaxdqn.checks import ConfigError


def check_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Refuses arguments of `purejaxdqn.runtime.processes.join_processes` that cannot be."""
    if coordinator is None or coordinator == "auto":
        why = "needs a coordinator, such as 10.0.0.1:8476"
        if coordinator == "auto":
            why = "is found out where coordinator is 'auto'"
        for name, value in {"num_processes": num_processes, "process_id": process_id}.items():
            if value is not None:
                raise ConfigError(f"{name} ({value}) {why}")
        return
    split_address("coordinator", coordinator)
    if num_processes is None or num_processes < 1:
        raise ConfigError(f"num_processes ({num_processes}) must be at least 1")
    if process_id is None or not 0 <= process_id < num_processes:
        raise ConfigError(f"process_id ({process_id}) must be 0 to {num_processes - 1}")


def find_node(address: str | None) -> tuple[str, int] | None:
    """Finds host and port in the address of a cluster, None where it has none; refuses others."""
    if address in (None, "auto", "local"):
        return None
    return split_address("cluster", str(address).removeprefix("ray://"))


def split_address(name: str, address: Any) -> tuple[str, int]:
    """Splits an address such as "10.0.0.1:8476" into host and port, or refuses it."""
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
    if not (host and is_port and host.isprintable() and " " not in host):
        raise ConfigError(
            f"{name} ({address!r:.60}) must be a host and a port, such as 10.0.0.1:8476, or auto"
        )
    return host.strip("[]"), int(port)
