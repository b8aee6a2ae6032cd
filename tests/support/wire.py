"""A wire to a server on this machine, which a test can cut and mend: as an outage looks."""

from __future__ import annotations

import contextlib
import socket
import threading


class Wire:
    """Passes on what comes to `port`. Cut, it refuses everybody, also whoever was connected."""

    def __init__(self, port: int, to: int, address: str = "127.0.0.1") -> None:
        self.port, self.to, self.address = port, to, address
        self._sockets: set[socket.socket] = set()
        self._listening: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        listening = socket.create_server((self.address, self.port))
        self._listening = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def cut(self) -> None:
        for end in (self._listening, *self._sockets):
            if end is not None:
                with contextlib.suppress(OSError):  # not connected, or closed already
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self._sockets |= {here, there}
            for ends in ((here, there), (there, here)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(of: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := of.recv(65536):
            to.sendall(data)
    for end in (of, to):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
