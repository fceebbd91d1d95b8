"""Stands between one process and the ZooKeeper servers, and cuts or swallows what they say to each other."""

import asyncio
import threading


class Proxies:
    """All of them, in a thread of their own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def open(self, targets):
        """A proxy for each of these ports."""
        return asyncio.run_coroutine_threadsafe(Proxy.open(self.loop, targets), self.loop).result(timeout=10)


class Proxy:
    @classmethod
    async def open(cls, loop, targets):
        proxy = cls()
        proxy.loop, proxy.connections = loop, set()
        # One fault after the other.
        proxy.lock = threading.Lock()
        # What is done with bytes to and from the servers: "pass", "swallow".
        proxy.requests = proxy.replies = "pass"
        proxy.refuses = False
        proxy.servers = [await asyncio.start_server(proxy.serving(target), "127.0.0.1", 0) for target in targets]
        return proxy

    @property
    def addresses(self):
        ports = [server.sockets[0].getsockname()[1] for server in self.servers]
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    def cut(self):
        """Closes all connections, and opens none until it is healed."""
        self.loop.call_soon_threadsafe(self.set, "pass", "pass", True)

    def silence(self, requests_too):
        """Swallows replies, so that what was asked for is done but nobody is told; or all."""
        self.loop.call_soon_threadsafe(self.set, "swallow" if requests_too else "pass", "swallow", False)

    def heal(self):
        self.loop.call_soon_threadsafe(self.set, "pass", "pass", False)

    def set(self, requests, replies, refuses):
        healed = (self.requests, self.replies) != (requests, replies) and replies == "pass"
        self.requests, self.replies, self.refuses = requests, replies, refuses
        # A connection that bytes are missing of is of no use any more.
        if refuses or healed:
            for connection in list(self.connections):
                connection.close()

    def serving(self, target):
        async def serve(reader, writer):
            if self.refuses:
                writer.close()
                return
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)
            except OSError:
                writer.close()
                return
            both = {writer, server_writer}
            self.connections |= both
            requests, replies = self.pump(reader, server_writer, "requests"), self.pump(server_reader, writer, "replies")
            await asyncio.gather(requests, replies)
            self.connections -= both
        return serve

    async def pump(self, reader, writer, direction):
        try:
            while data := await reader.read(65536):
                if getattr(self, direction) == "pass":
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        writer.close()
