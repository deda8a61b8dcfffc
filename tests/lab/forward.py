"""Forward connections to the API server's Service address: `python -m tests.lab.forward ADDRESS PORT`.

The lab has no kube-proxy. Pods with an address of their own reach ADDRESS:443 at the host's end of their veth pair,
where this listens, also before the first pod has brought that address into being (IP_FREEBIND, ip(7)). PORT is the
API server's on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

IP_FREEBIND = 15
"""linux/in.h; the module socket does not name it."""
HTTPS = 443


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def forward(address: str, port: int) -> None:
    """Until the process ends. Raises OSError where somebody else listens there."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, HTTPS))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))

    server = await asyncio.start_server(serve, sock=listener)
    print("forwarding", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(forward(sys.argv[1], int(sys.argv[2])))
